"""The machine edgekit runs on, as a device."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from edgekit.core.errors import StableDeviceError, TransientDeviceError
from edgekit.core.places import cache_dir
from edgekit.transports.base import MAX_OUTPUT_BYTES, CommandResult, Transport

_CHUNK_BYTES = 1 << 20
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


class Local(Transport):
    """Commands are child processes, and files are copied.

    Relative paths start in a folder of the cache, not in the person's home.
    """

    summary: ClassVar[str] = "this machine"

    @property
    def home(self) -> Path:
        """Where relative paths start."""
        return cache_dir() / "devices" / self.device.name

    def open(self) -> None:
        """Make the folder that stands for the login's home."""
        self.home.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Nothing is held open."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stderr: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """See `Transport.run`."""
        start = time.monotonic()
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                list(argv), stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.home, start_new_session=True
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            # What a shell says on any other device.
            return CommandResult(_NOT_FOUND, b"", f"{argv[0]}: not found ({error.strerror})".encode(), 0.0)
        except PermissionError as error:
            return CommandResult(_NOT_EXECUTABLE, b"", f"{argv[0]}: {error.strerror}".encode(), 0.0)
        feeder = threading.Thread(target=_feed, args=(process, stdin), daemon=True)
        try:
            feeder.start()
            stdout, stderr = self._listen(process, argv[0], start + timeout, on_stderr)
            returncode = process.wait(timeout=max(0.1, start + timeout - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._too_long(argv[0], timeout) from None
        finally:
            _end(process)
            feeder.join(timeout=1)
        return CommandResult(
            128 - returncode if returncode < 0 else returncode, stdout, stderr, time.monotonic() - start
        )

    def _listen(
        self, process: subprocess.Popen[bytes], name: str, deadline: float, on_stderr: Callable[[str], None] | None
    ) -> tuple[bytes, bytes]:
        collected = {"stdout": bytearray(), "stderr": bytearray()}
        told = 0
        begin = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for stream, label in ((process.stdout, "stdout"), (process.stderr, "stderr")):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ, label)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._too_long(name, deadline - begin)
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    collected[key.data] += data
                    if len(collected[key.data]) > MAX_OUTPUT_BYTES:
                        raise StableDeviceError(
                            f"{name} on '{self.device.name}' printed more than {MAX_OUTPUT_BYTES >> 20} MiB."
                        )
                if on_stderr is not None:
                    end = collected["stderr"].rfind(b"\n") + 1
                    for line in bytes(collected["stderr"][told:end]).splitlines():
                        on_stderr(line.decode("utf-8", "replace"))
                    told = max(told, end)
        return bytes(collected["stdout"]), bytes(collected["stderr"])

    def _too_long(self, name: str, seconds: float) -> TransientDeviceError:
        return TransientDeviceError(f"{name} on '{self.device.name}' took longer than {seconds:.0f} s and was ended.")

    def push(self, local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """See `Transport.push`. A copy, never a hard link: a release must not change with the file it came from."""
        target = self.home / remote
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sent = _copy(local, target, None, on_bytes)
        except OSError as error:
            raise StableDeviceError(
                f"'{remote}' cannot be written on '{self.device.name}': {error.strerror}."
            ) from error
        if sent != local.stat().st_size:
            target.unlink(missing_ok=True)
            raise TransientDeviceError(f"'{local}' changed while it was copied to '{self.device.name}'.")

    def pull(self, remote: str, local: Path, max_bytes: int) -> None:
        """See `Transport.pull`."""
        source = self.home / remote
        try:
            size = source.stat().st_size
            if size > max_bytes:
                raise StableDeviceError(
                    f"'{remote}' on '{self.device.name}' has {size} bytes; at most {max_bytes} were expected."
                )
            local.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, local, max_bytes, None)
        except FileNotFoundError as error:
            raise StableDeviceError(f"There is no '{remote}' on '{self.device.name}'.") from error
        except OSError as error:
            raise StableDeviceError(
                f"'{remote}' cannot be read from '{self.device.name}': {error.strerror}."
            ) from error


def _copy(source: Path, target: Path, limit: int | None, on_bytes: Callable[[int], None] | None) -> int:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    temporary, done = Path(name), 0
    try:
        with os.fdopen(handle, "wb") as sink, source.open("rb") as stream:
            while data := stream.read(_CHUNK_BYTES if limit is None else min(_CHUNK_BYTES, limit - done)):
                sink.write(data)
                done += len(data)
                if on_bytes is not None:
                    on_bytes(len(data))
        shutil.copymode(source, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return done


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    if process.stdin is not None:
        # A command may end without reading what it is given.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(data)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything that it started: first so that it can clean up, then for good."""
    if process.poll() is None:
        for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
                break
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
