"""A device's side of ADB, over TCP on the loopback interface, for the real `adb` program to talk to.

It speaks the transport protocol (CNXN, AUTH, OPEN, OKAY, WRTE, CLSE) and the services `shell:`, `shell,v2:`, `exec:` and
`sync:`. Its shell is mksh with toybox's tools alone on PATH, as on Android, in a folder of its own. It is no Android: there
is no Java, no framework, and `getprop` and `dumpsys` print recordings.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.core.device import Device
from tests.devices import adb_services
from tests.devices.adb_wire import (
    AUTH,
    AUTH_TOKEN,
    CLSE,
    CNXN,
    MAX_PAYLOAD,
    OKAY,
    OPEN,
    VERSION,
    WRTE,
    GoneError,
    Message,
    Stream,
    read_message,
)

INSTALL = "bash scripts/install-system-packages.sh   (Debian: adb, mksh, toybox)"
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "adb"
_FEATURES = ("shell_v2", "cmd", "stat_v2")
_APPLETS = (
    *("cat", "chmod", "cp", "cut", "date", "df", "find", "grep", "head", "id", "ln", "ls", "mkdir", "mv", "printf"),
    *("readlink", "rm", "rmdir", "sed", "sha256sum", "sleep", "sort", "split", "stat", "sync", "tail", "tee", "test"),
    *("timeout", "touch", "true", "uname", "wc"),
)


def tool(name: str) -> str:
    """The path of a program that the tests need."""
    found = shutil.which(name)
    assert found, f"There is no {name}: {INSTALL}"
    return found


@dataclass
class Faults:
    """Switches of what goes wrong; they may be set while the daemon runs.

    Attributes:
        unauthorized: The person at the device never says yes.
        silent: Connections are taken and never answered.
        drop_after: The connection is reset after so many more bytes, once; None for never.
        quota: Bytes that `sync:` may still write; None for no limit.
    """

    unauthorized: bool = False
    silent: bool = False
    drop_after: int | None = None
    quota: int | None = None


class AdbDaemon:
    """A device. Use it as a context manager.

    Args:
        folder: An empty folder for everything it has.
        shell: Program and arguments that a command line is appended to; by default mksh in the sandbox.
        root: Folder that paths of `sync:` are taken from: a root file system that `shell` enters, else `/`.
        features: What it says it can do.
        properties: What `getprop` prints; by default the recording of a Pixel 8, with this machine's processor.
    """

    def __init__(
        self,
        folder: Path,
        shell: Sequence[str] | None = None,
        root: Path = Path("/"),
        features: Sequence[str] = _FEATURES,
        properties: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.root = root
        self.features = tuple(features)
        self.faults = Faults()
        self.port = 0
        self.commands: list[str] = []
        self._properties = properties or {}
        self._given_shell = shell
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self.processes: set[subprocess.Popen[bytes]] = set()

    @property
    def home(self) -> Path:
        """/data/local/tmp of the sandbox."""
        return self.folder / "data" / "local" / "tmp"

    @property
    def bin(self) -> Path:
        """/system/bin of the sandbox: the only folder on PATH."""
        return self.folder / "system" / "bin"

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def shell(self) -> list[str]:
        """Program and arguments that a command line is appended to."""
        return list(self._given_shell) if self._given_shell is not None else [str(self.bin / "sh"), "-c"]

    @property
    def environment(self) -> dict[str, str]:
        """Of commands on it."""
        return {"PATH": str(self.bin), "HOME": "/", "ANDROID_DATA": "/data", "TMPDIR": str(self.home)}

    def device(self, name: str = "phone", target: str = "android-arm64", **more: object) -> Device:
        """A device that is this daemon; `options` and other fields may be given."""
        options = {"home": str(self.home), **more.pop("options", {})}  # type: ignore[dict-item]
        return Device(name=name, target=target, transport="adb", address=self.address, options=options, **more)  # type: ignore[arg-type]

    def start(self) -> None:
        """Start it, on the port it had before if there was one."""
        self._prepare()
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Stop it and everything it started, without a goodbye."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing a listener does not wake its accept; shutting it down does.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.drop()
        for process in list(self.processes):
            kill(process)

    def drop(self) -> None:
        """Reset all connections, as a cable that is pulled."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.reset()

    def reboot(self, seconds: float = 0.3) -> None:
        """Everything ends; it is back after a while, with nothing running."""
        self.stop()
        time.sleep(seconds)
        self.start()

    def account(self, count: int) -> None:
        """Count bytes of a connection, for `drop_after`."""
        with self._lock:
            if self.faults.drop_after is None:
                return
            self.faults.drop_after -= count
            due = self.faults.drop_after <= 0
            if due:
                self.faults.drop_after = None
        if due:
            self.drop()
            raise GoneError

    def leave(self, connection: _Connection) -> None:
        """A connection has ended."""
        with self._lock:
            self._connections.discard(connection)

    def __enter__(self) -> AdbDaemon:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            connection = _Connection(self, peer)
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=connection.serve, daemon=True).start()

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        if self.bin.exists():
            return
        self.bin.mkdir(parents=True)
        (self.bin / "sh").symlink_to(tool("mksh"))
        toybox = tool("toybox")
        for applet in _APPLETS:
            (self.bin / applet).symlink_to(toybox)
        adb_services.install_recordings(self.bin, FIXTURES, self._properties)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Connection:
    """One host that is connected."""

    def __init__(self, daemon: AdbDaemon, peer: socket.socket) -> None:
        self._daemon = daemon
        self._peer = peer
        self._send_lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._next = 1

    def serve(self) -> None:
        """Answer until the host leaves."""
        try:
            while True:
                message = read_message(self._peer)
                self._daemon.account(len(message.data) + 24)
                if not self._daemon.faults.silent:
                    self._answer(message)
        except (GoneError, OSError):
            self.reset()
        finally:
            for stream in list(self._streams.values()):
                stream.lose()
            self._daemon.leave(self)

    def reset(self) -> None:
        """End it at once."""
        with contextlib.suppress(OSError):
            self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._peer.shutdown(socket.SHUT_RDWR)
        self._peer.close()

    def send(self, message: Message) -> None:
        """Send one message."""
        self._daemon.account(len(message.data) + 24)
        with self._send_lock:
            self._peer.sendall(message.encoded())

    def close_stream(self, stream: Stream) -> None:
        """The service has ended."""
        self._streams.pop(stream.local, None)
        with contextlib.suppress(GoneError, OSError):
            self.send(Message(CLSE, stream.local, stream.remote))

    def _answer(self, message: Message) -> None:
        if message.command in {CNXN, AUTH}:
            self._greet()
        elif message.command == OPEN:
            self._open(message)
        elif message.command == WRTE:
            stream = self._streams.get(message.arg1)
            if stream is None:
                self.send(Message(CLSE, 0, message.arg0))
            else:
                stream.arrived(message.data)
                self.send(Message(OKAY, stream.local, stream.remote))
        elif message.command == OKAY:
            stream = self._streams.get(message.arg1)
            if stream is not None:
                stream.acknowledged()
        elif message.command == CLSE:
            stream = self._streams.pop(message.arg1, None)
            if stream is not None:
                stream.lose()

    def _greet(self) -> None:
        if self._daemon.faults.unauthorized:
            self.send(Message(AUTH, AUTH_TOKEN, 0, os.urandom(20)))
            return
        banner = (
            "device::ro.product.name=edgekit_test;ro.product.model=edgekit test device;ro.product.device=edgekit;"
            f"features={','.join(self._daemon.features)}"
        )
        self.send(Message(CNXN, VERSION, MAX_PAYLOAD, banner.encode()))

    def _open(self, message: Message) -> None:
        stream = Stream(self._next, message.arg0, self.send)
        self._next += 1
        service = adb_services.service_for(message.data.rstrip(b"\0"), self._daemon)
        if service is None:
            self.send(Message(CLSE, 0, message.arg0))
            return
        self._streams[stream.local] = stream
        self.send(Message(OKAY, stream.local, stream.remote))
        threading.Thread(target=self._run, args=(service, stream), daemon=True).start()

    def _run(self, service: adb_services.Service, stream: Stream) -> None:
        with contextlib.suppress(GoneError, OSError):
            service(stream)
        self.close_stream(stream)
