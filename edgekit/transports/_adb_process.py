"""One call of the `adb` program: all three streams at once, in the caller's thread."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from edgekit.core.errors import StableDeviceError

INSTALL = "apt install adb   (or Android's SDK platform-tools, and `adb:` among the device's options names the program)"
SERVER_PORT = "ANDROID_ADB_SERVER_PORT"
_CHUNK_BYTES = 1 << 16
_TICK_SECONDS = 0.1
_LINGER_SECONDS = 2.0
"""How long after a command's end its output is waited for: what it left running may hold the pipes open for ever."""


class OutputTooLargeError(Exception):
    """The call printed more than it may."""


class TimedOutError(Exception):
    """The call took longer than it may."""


@dataclass(frozen=True)
class Finished:
    """What a call left.

    Attributes:
        returncode: Exit status of the program here; None where it was ended because the command's end was seen.
        stdout: What it printed.
        stderr: What it printed to standard error.
    """

    returncode: int | None
    stdout: bytes
    stderr: bytes

    @property
    def said(self) -> str:
        """Everything it printed, as text: adb tells its failures on either stream."""
        return (self.stderr + b"\n" + self.stdout).decode("utf-8", "replace").strip()


def find_adb(program: str) -> str | None:
    """The path of the program, or None where there is none of that name."""
    return shutil.which(Path(program).expanduser())


class Client:
    """Calls `adb`.

    Args:
        program: Its name on PATH, or its path.
        server_port: Port of the adb server; None for what the environment says, else adb's own.
    """

    def __init__(self, program: str, server_port: int | None) -> None:
        self._program = program
        self._environment = dict(os.environ)
        if server_port is not None:
            self._environment[SERVER_PORT] = str(server_port)

    def call(
        self,
        arguments: Sequence[str | bytes],
        *,
        timeout: float,
        limit: int,
        stdin: bytes | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
        ended: Callable[[], bool] | None = None,
        check: Callable[[], None] | None = None,
    ) -> Finished:
        """Run it to its end.

        Args:
            arguments: What follows the program's name.
            timeout: Seconds after which it is ended.
            limit: Bytes that both outputs together may have.
            stdin: What it reads; None for nothing at all.
            on_stderr: Called with each piece of standard error.
            ended: Says whether the command on the device is known to have ended.
            check: Called several times a second; what it raises ends the call.

        Raises:
            StableDeviceError: There is no such program.
            TimedOutError: It took too long.
            OutputTooLargeError: It printed too much.
        """
        program = find_adb(self._program)
        if program is None:
            raise StableDeviceError(f"The program '{self._program}' is not installed on this machine.", INSTALL)
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        streams = _Streams(process, stdin, limit, on_stderr)
        deadline = time.monotonic() + timeout
        try:
            lingered = streams.pump(deadline, ended or (lambda: False), check or (lambda: None))
            returncode = None if lingered else process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise TimedOutError from error
        finally:
            # Only this process: the server that it may have started lives on, as adb's users expect.
            process.kill()
            process.wait()
            streams.close()
        return Finished(returncode, bytes(streams.stdout), bytes(streams.stderr))


class _Streams:
    """The three streams of a running call."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: bytes | None,
        limit: int,
        on_stderr: Callable[[bytes], None] | None,
    ) -> None:
        self._process = process
        self._input = memoryview(stdin or b"")
        self._limit = limit
        self._on_stderr = on_stderr
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._selector = selectors.DefaultSelector()
        for stream, event, move in (
            (process.stdout, selectors.EVENT_READ, self._read_stdout),
            (process.stderr, selectors.EVENT_READ, self._read_stderr),
            (process.stdin, selectors.EVENT_WRITE, self._write),
        ):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                self._selector.register(stream, event, partial(move, stream))

    def pump(self, deadline: float, ended: Callable[[], bool], check: Callable[[], None]) -> bool:
        """Until both outputs are at their end; whether the wait was cut short because the command had ended."""
        quiet_since = time.monotonic()
        while self._is_open(self._process.stdout) or self._is_open(self._process.stderr):
            now = time.monotonic()
            if now >= deadline:
                raise TimedOutError
            moved = False
            for key, _ in self._selector.select(min(_TICK_SECONDS, deadline - now)):
                moved |= key.data()
            check()
            if moved or not ended():
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > _LINGER_SECONDS:
                return True
        return False

    def close(self) -> None:
        """Close what is open."""
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed:
                stream.close()

    def _is_open(self, stream: object) -> bool:
        return stream in {key.fileobj for key in self._selector.get_map().values()}

    def _read_stdout(self, source: IO[bytes]) -> bool:
        return self._read(source, self.stdout) is not None

    def _read_stderr(self, source: IO[bytes]) -> bool:
        data = self._read(source, self.stderr)
        if data and self._on_stderr is not None:
            self._on_stderr(data)
        return data is not None

    def _read(self, source: IO[bytes], collected: bytearray) -> bytes | None:
        """What has come; None at the stream's end."""
        data = os.read(source.fileno(), _CHUNK_BYTES)
        if not data:
            self._selector.unregister(source)
            return None
        collected += data
        if len(self.stdout) + len(self.stderr) > self._limit:
            raise OutputTooLargeError
        return data

    def _write(self, sink: IO[bytes]) -> bool:
        try:
            written = os.write(sink.fileno(), self._input[:_CHUNK_BYTES]) if self._input else 0
        except BrokenPipeError:
            # A command may end without reading what it is given.
            self._input = memoryview(b"")
            written = 0
        self._input = self._input[written:]
        if not self._input:
            self._selector.unregister(sink)
            sink.close()
        return written > 0
