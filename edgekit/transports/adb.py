"""The ADB transport: Android devices on a cable or in the network, through the `adb` program.

`address` in devices.yaml is the serial number that `adb devices` prints, or `host:port` for a device that takes ADB over
the network; empty where only one device is attached. Commands start in `home`, /data/local/tmp, where adb's user may
write and run programs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, DeviceError, StableDeviceError, TransientDeviceError
from edgekit.core.units import format_bytes
from edgekit.transports import _adb_devices as listing
from edgekit.transports import _adb_shell as shell
from edgekit.transports._adb_errors import explain, lost, printable, state_error
from edgekit.transports._adb_pieces import PIECE_BYTES, Pieces
from edgekit.transports._adb_process import (
    INSTALL,
    Client,
    Finished,
    OutputTooLargeError,
    TimedOutError,
    find_adb,
)
from edgekit.transports._here import writing
from edgekit.transports.base import MAX_OUTPUT_BYTES, CommandResult, Transport

_SHORT_SECONDS = 15.0
_TRANSFER_SECONDS = 60.0
_BYTES_PER_SECOND = 256 << 10
"""A transfer slower than this on top of `_TRANSFER_SECONDS` is given up."""
_STATE_SECONDS = 5.0
_OTHERS_BYTES = 1 << 20


@dataclass(frozen=True)
class AdbOptions:
    """What `options:` of an adb device may hold.

    Attributes:
        adb: The program: its name on PATH, or its path.
        server_port: Port of the adb server on this machine; by default what ANDROID_ADB_SERVER_PORT says, else adb's own.
        home: The folder on the device where commands start and relative paths are taken from.
        connect_seconds: How long a device in the network may take to answer.
    """

    adb: str = "adb"
    server_port: int | None = None
    home: str = "/data/local/tmp"
    connect_seconds: float = 20.0


class AdbTransport(Transport):
    """A way to an Android device, as the `adb` program gives it.

    Args:
        device: The unit; its `address` is a serial number, `host:port`, or empty for the only one attached.
        options: The typed options.
    """

    summary: ClassVar[str] = "ADB, for Android devices on USB or in the network (unverified on hardware)"
    Options: ClassVar[type[Any]] = AdbOptions

    def __init__(self, device: Device, options: AdbOptions) -> None:
        super().__init__(device, options)
        self._client = Client(options.adb, options.server_port)
        self._serial: str | None = None
        self._has_shell_v2 = True

    @classmethod
    def missing(cls) -> str | None:
        """How to install `adb` where it is not on PATH."""
        return None if find_adb("adb") else INSTALL

    def open(self) -> None:
        """Find the device; connect to it first where it is in the network, and heal a connection that is dead.

        Raises:
            ConfigError: No address is given and several devices are attached.
            TransientDeviceError: It does not answer at the moment.
            StableDeviceError: It is not attached, has not allowed this computer, or there is no `adb` here.
        """
        self.close()
        started = self._adb("starting adb", "start-server", timeout=_SHORT_SECONDS)
        if started.returncode != 0:
            # Of several that start it at the same moment one succeeds, and the others find it the second time.
            started = self._adb("starting adb", "start-server", timeout=_SHORT_SECONDS)
        if started.returncode != 0:
            raise explain(started.said, self.device.name, self.device.address, "starting adb")
        if listing.is_network_address(self.device.address):
            self._serial = self._connected(self.device.address)
        else:
            self._serial = self._on_cable(self.device.address)
        features = self._adb("asking what it can do", *self._selected, "features", timeout=_SHORT_SECONDS)
        if features.returncode != 0:
            raise explain(features.said, self.device.name, self._serial, "asking what it can do")
        self._has_shell_v2 = "shell_v2" in re.split(r"[\s,]+", features.stdout.decode("utf-8", "replace"))

    def close(self) -> None:
        """Forget the device. The adb server keeps its connection, which other programs may use."""
        self._serial = None

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stderr: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """Run a command through the device's shell.

        Raises:
            ConfigError: `argv` is empty or holds a NUL.
            TransientDeviceError: The connection is lost, or the command takes longer than `timeout`.
            StableDeviceError: It prints more than MAX_OUTPUT_BYTES, or the folder it starts in is not there.
        """
        if not argv or any("\0" in word for word in argv):
            raise ConfigError("A command must have a program, and no NUL in its arguments.")
        run = self._run_v2 if self._has_shell_v2 else self._run_legacy
        return run(argv, timeout, stdin, on_stderr)

    def push(self, local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Copy a file to the device: to a temporary name, its size checked, then renamed. Makes the folders.

        A large file goes in pieces; those that an upload brought which was then cut off are not sent again.

        Raises:
            ConfigError: The file here cannot be read.
            TransientDeviceError: The connection is lost; files `.<name>.<letters>.part` may be left.
            StableDeviceError: The disk is full, or the device refuses for another reason.
        """
        try:
            stream = local.open("rb")
        except OSError as error:
            raise ConfigError(f"'{local}' cannot be read: {error.strerror}.") from error
        target, doing = self._absolute(remote), f"pushing '{remote}'"
        folder, name = posixpath.split(target)
        leftovers = [posixpath.join(folder, f".{name}.{secrets.token_hex(4)}.part")]
        with stream:
            facts = os.fstat(stream.fileno())
            try:
                pieces = self._pieces(stream, facts, target, doing)
                if pieces is None:
                    self._send(doing, local, leftovers[0])
                else:
                    leftovers = [pieces.whole, *pieces.paths]
                    pieces.send(on_bytes)
                    joined = pieces.join(self._where(remote))
                    if joined.returncode != 0:
                        raise self._refused(joined, doing)
                self._finish_push(leftovers[0], target, remote, facts.st_size)
            except StableDeviceError:
                with contextlib.suppress(DeviceError):
                    self.run(["rm", "-f", *leftovers], timeout=_SHORT_SECONDS)
                raise
        if on_bytes is not None and pieces is None:
            # adb tells its progress to terminals only.
            on_bytes(facts.st_size)

    def pull(self, remote: str, local: Path, max_bytes: int) -> None:
        """Copy a file from the device. Atomic here.

        Raises:
            ConfigError: It cannot be written here.
            TransientDeviceError: The connection is lost, or the file changed meanwhile.
            StableDeviceError: It does not exist, may not be read, is no file, or is larger than `max_bytes`.
        """
        source, doing = self._absolute(remote), f"pulling '{remote}'"
        size = self._size(source, remote)
        if size > max_bytes:
            raise self._too_large(remote, size, max_bytes)
        temporary = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")
        with writing(local):
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()

        def check() -> None:
            if temporary.exists() and temporary.stat().st_size > max_bytes:
                raise self._too_large(remote, temporary.stat().st_size, max_bytes)

        try:
            done = self._adb(
                doing, *self._selected, "pull", source, str(temporary.resolve()), timeout=_patience(size), check=check
            )
            if done.returncode != 0:
                raise explain(done.said, self.device.name, self._opened, doing)
            check()
            if temporary.stat().st_size < size:
                raise TransientDeviceError(
                    f"'{remote}' on the device '{self.device.name}' became shorter while it was read.", "Try again."
                )
            with writing(local):
                temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def _opened(self) -> str:
        if self._serial is None:
            raise TransientDeviceError(
                f"There is no open connection to the device '{self.device.name}'.",
                f"edgekit devices probe {self.device.name}",
            )
        return self._serial

    @property
    def _selected(self) -> tuple[str, str]:
        return ("-s", self._opened)

    def _absolute(self, remote: str) -> str:
        return posixpath.join(self.options.home, remote)

    def _adb(
        self,
        doing: str,
        *arguments: str,
        timeout: float,
        check: Callable[[], None] | None = None,
    ) -> Finished:
        try:
            return self._client.call(arguments, timeout=timeout, limit=_OTHERS_BYTES, check=check)
        except TimedOutError as error:
            raise TransientDeviceError(
                f"The device '{self.device.name}' did not answer within {timeout:g} s while {doing}.",
                f"edgekit devices probe {self.device.name}",
            ) from error
        except OutputTooLargeError as error:
            raise StableDeviceError(f"adb printed more than {format_bytes(_OTHERS_BYTES)} while {doing}.") from error

    # --- finding the device -----------------------------------------------------------------------------------------

    def _attached(self) -> dict[str, str]:
        """State by serial; waits a little for states that pass by themselves."""
        deadline = time.monotonic() + _STATE_SECONDS
        while True:
            done = self._adb("listing the attached devices", "devices", timeout=_SHORT_SECONDS)
            if done.returncode != 0:
                raise explain(done.said, self.device.name, self.device.address, "listing the attached devices")
            found = listing.attached(done.stdout.decode("utf-8", "replace"))
            mine = found.get(self.device.address) if self.device.address else next(iter(found.values()), None)
            if mine not in listing.PASSING or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def _on_cable(self, serial: str) -> str:
        found = self._attached()
        if not serial:
            if len(found) > 1:
                raise ConfigError(
                    f"Several devices are attached, and '{self.device.name}' has no address: {', '.join(sorted(found))}.",
                    f"Set `address:` of '{self.device.name}' in devices.yaml to one of them.",
                )
            serial = next(iter(found), "")
        if serial not in found:
            wanted = f"with the serial number '{serial}'" if serial else "on any cable"
            raise StableDeviceError(
                f"There is no Android device {wanted}: {listing.described(found)}.",
                f"Plug in '{self.device.name}' and switch on USB debugging, or correct its `address:`; `adb devices` lists them.",
            )
        if found[serial] != listing.READY:
            raise state_error(self.device.name, serial, found[serial])
        return serial

    def _connected(self, address: str) -> str:
        self._connect(address)
        state = self._attached().get(address)
        if state == "offline":
            # After the device's own daemon restarted, adb believes in its dead connection: only this mends it.
            self._adb("disconnecting", "disconnect", address, timeout=_SHORT_SECONDS)
            self._connect(address)
            state = self._attached().get(address)
        if state is None:
            raise lost(self.device.name, address, "connecting")
        if state != listing.READY:
            raise state_error(self.device.name, address, state)
        return address

    def _connect(self, address: str) -> None:
        done = self._adb("connecting", "connect", address, timeout=self.options.connect_seconds)
        said = done.said
        if listing.is_connected(said) or "failed to authenticate" in said:
            return
        raise TransientDeviceError(
            f"The device '{self.device.name}' at {address} cannot be reached: {printable(said)}.",
            f"Is it on, in this network, and does it take ADB there? Then: edgekit devices probe {self.device.name}",
        )

    # --- commands ---------------------------------------------------------------------------------------------------

    def _run_v2(
        self, argv: Sequence[str], timeout: float, stdin: bytes, on_stderr: Callable[[str], None] | None
    ) -> CommandResult:
        token = secrets.token_hex(12)
        marks = shell.Marks(token, on_stderr)
        line = shell.command_line(argv, self.options.home, token)
        started = time.monotonic()
        with self._ending(argv[0], timeout, lambda: marks.pid if marks.returncode is None else None):
            done = self._client.call(
                [*self._selected, "shell", "-T", line],
                timeout=timeout,
                limit=MAX_OUTPUT_BYTES,
                stdin=stdin,
                on_stderr=marks.feed,
                ended=lambda: marks.returncode is not None,
            )
        if marks.no_home:
            raise self._no_home()
        if marks.pid is None:
            raise explain(
                done.stderr.decode("utf-8", "replace"), self.device.name, self._opened, f"running '{argv[0]}'"
            )
        if marks.returncode is None or done.returncode not in (None, marks.returncode):
            raise lost(self.device.name, self._opened, f"running '{argv[0]}'")
        return CommandResult(marks.returncode, done.stdout, marks.text, time.monotonic() - started)

    def _run_legacy(
        self, argv: Sequence[str], timeout: float, stdin: bytes, on_stderr: Callable[[str], None] | None
    ) -> CommandResult:
        token = secrets.token_hex(12)
        source, errors = "/dev/null", self._absolute(f".{token}.err")
        started = time.monotonic()
        if stdin:
            source = self._absolute(f".{token}.in")
            self._push_bytes(stdin, source)
        line = shell.legacy_line(argv, self.options.home, token, source, errors)
        with self._ending(argv[0], timeout, lambda: None):
            # `exec` rather than `shell`: the old shell service puts a terminal between, which changes line ends.
            done = self._client.call([*self._selected, "exec-out", line], timeout=timeout, limit=MAX_OUTPUT_BYTES)
        if shell.legacy_has_no_home(done.stdout, token):
            raise self._no_home()
        was_started, returncode, stdout, stderr = shell.split_legacy(done.stdout, token)
        if not was_started:
            raise explain(
                done.stderr.decode("utf-8", "replace"), self.device.name, self._opened, f"running '{argv[0]}'"
            )
        if returncode is None:
            raise lost(self.device.name, self._opened, f"running '{argv[0]}'")
        if on_stderr is not None:
            for text in stderr.decode("utf-8", "replace").splitlines():
                on_stderr(text)
        return CommandResult(returncode, stdout, stderr, time.monotonic() - started)

    @contextlib.contextmanager
    def _ending(self, program: str, timeout: float, pid: Callable[[], int | None]) -> Any:
        """Say what a call that was given up means, and end the command on the device."""
        try:
            yield
        except BaseException as error:
            self._kill(pid())
            what = f"'{program}' on the device '{self.device.name}'"
            if isinstance(error, TimedOutError):
                raise TransientDeviceError(
                    f"{what} did not end within {timeout:g} s.", f"edgekit devices probe {self.device.name}"
                ) from error
            if isinstance(error, OutputTooLargeError):
                raise StableDeviceError(
                    f"{what} printed more than {format_bytes(MAX_OUTPUT_BYTES)}; its output was refused.",
                    f"edgekit devices probe {self.device.name}",
                ) from error
            raise

    def _kill(self, pid: int | None) -> None:
        if pid is None or pid <= 1:
            return
        # adb's daemon makes each command's shell the leader of a group of its own.
        with contextlib.suppress(DeviceError, TimedOutError, OutputTooLargeError):
            self._client.call(
                [*self._selected, "shell", f"kill -9 -{pid} || kill -9 {pid}"], timeout=5.0, limit=_OTHERS_BYTES
            )

    def _no_home(self) -> StableDeviceError:
        return StableDeviceError(
            f"There is no folder '{self.options.home}' on the device '{self.device.name}'.",
            f"Set `home:` among the options of '{self.device.name}' in devices.yaml to a folder where adb may write.",
        )

    # --- files ------------------------------------------------------------------------------------------------------

    def _push_bytes(self, data: bytes, target: str) -> None:
        with tempfile.NamedTemporaryFile(prefix="edgekit-stdin-") as file:
            file.write(data)
            file.flush()
            self._send("sending its input", Path(file.name), target)

    def _send(self, doing: str, local: Path, target: str) -> None:
        size = local.stat().st_size
        done = self._adb(doing, *self._selected, "push", str(local.resolve()), target, timeout=_patience(size))
        if done.returncode != 0:
            raise explain(done.said, self.device.name, self._opened, doing)

    def _pieces(self, stream: BinaryIO, facts: os.stat_result, target: str, doing: str) -> Pieces | None:
        """The file in pieces; None where it goes as one: it is small, or the device cannot hash."""
        if facts.st_size <= PIECE_BYTES:
            return None
        pieces = Pieces(stream, facts, target, self.run, functools.partial(self._send, doing))
        return pieces if pieces.look() else None

    def _finish_push(self, temporary: str, target: str, remote: str, size: int) -> None:
        done = self.run(["sh", "-c", shell.FINISH_PUSH, "sh", temporary, target, str(size)], timeout=_patience(size))
        if done.returncode == 3:
            raise StableDeviceError(f"{self._where(remote)} is a folder.", "Remove it, or choose another `root:`.")
        if done.returncode == 5:
            arrived = printable(done.stdout.decode("utf-8", "replace"))
            raise TransientDeviceError(f"{self._where(remote)}: {arrived} of {size} bytes arrived.", "Try again.")
        if done.returncode != 0:
            raise self._refused(done, f"pushing '{remote}'")

    def _refused(self, done: CommandResult, doing: str) -> DeviceError:
        said = done.stderr.decode("utf-8", "replace")
        return explain(f"remote {said}", self.device.name, self._opened, doing)

    def _where(self, remote: str) -> str:
        return f"'{remote}' on the device '{self.device.name}'"

    def _size(self, source: str, remote: str) -> int:
        done = self.run(["sh", "-c", shell.LOOK_AT, "sh", source], timeout=_SHORT_SECONDS)
        where, name = self._where(remote), self.device.name
        if done.returncode == 3:
            raise StableDeviceError(f"There is no {where}.", f"edgekit devices probe {name}")
        if done.returncode == 4:
            raise StableDeviceError(f"{where} is not a file.")
        text = done.stdout.decode("ascii", "replace").strip()
        if done.returncode != 0 or not text.isdigit():
            raise StableDeviceError(
                f"{where} cannot be read: {printable(done.stderr.decode('utf-8', 'replace')) or 'permission denied'}.",
                f"edgekit devices probe {name}",
            )
        return int(text)

    def _too_large(self, remote: str, size: int, max_bytes: int) -> StableDeviceError:
        return StableDeviceError(
            f"'{remote}' on the device '{self.device.name}' has {format_bytes(size)}; at most"
            f" {format_bytes(max_bytes)} are taken.",
            f"edgekit devices probe {self.device.name}",
        )


def _patience(size: int) -> float:
    return _TRANSFER_SECONDS + size / _BYTES_PER_SECOND
