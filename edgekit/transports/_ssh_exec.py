"""One command over an SSH channel: all three streams at once, in the caller's thread."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections.abc import Callable
from typing import Any

_CHUNK_BYTES = 1 << 16
_LINGER_SECONDS = 2.0
"""How long after its end a command's output is waited for: what it left running may hold the pipes open for ever."""


class OutputTooLargeError(Exception):
    """The command printed more than it may."""


class Execution:
    """A command that runs.

    Args:
        channel: A paramiko channel on which nothing was asked for yet.
        stdin: What the command reads.
        on_stderr: Called with each line of standard error.
        max_output_bytes: Limit for both outputs together.
    """

    def __init__(
        self, channel: Any, stdin: bytes, on_stderr: Callable[[str], None] | None, max_output_bytes: int
    ) -> None:
        self._channel = channel
        self._stdin: memoryview | None = memoryview(stdin)
        self._on_stderr = on_stderr
        self._max_output_bytes = max_output_bytes
        self._line = bytearray()
        self.stdout = bytearray()
        self.stderr = bytearray()

    def run(self, command: bytes, deadline: float) -> int:
        """Run to the end.

        Args:
            command: The line for the login's shell.
            deadline: On the clock of `time.monotonic`.

        Returns:
            The exit status; −1 where the connection went away without saying one.

        Raises:
            TimeoutError: The deadline has passed.
            OutputTooLargeError: It printed more than it may.
        """
        channel = self._channel
        channel.exec_command(command)
        last_moved = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(channel, selectors.EVENT_READ)
            while True:
                moved = self._read() | self._write()
                now = time.monotonic()
                last_moved = now if moved else last_moved
                if not moved:
                    if channel.exit_status_ready() and (self._at_end() or now - last_moved > _LINGER_SECONDS):
                        break
                    if now >= deadline:
                        raise TimeoutError
                    self._wait(selector, deadline - now)
                elif now >= deadline:
                    raise TimeoutError
        if self._line and self._on_stderr:
            self._on_stderr(self._line.decode(errors="replace"))
        return int(channel.exit_status)

    def _at_end(self) -> bool:
        channel = self._channel
        # In this order: nothing arrives after the end was seen.
        return (channel.closed or channel.eof_received) and not (channel.recv_ready() or channel.recv_stderr_ready())

    def _read(self) -> bool:
        channel, moved = self._channel, False
        if channel.recv_ready():
            self.stdout += channel.recv(_CHUNK_BYTES)
            moved = True
        if channel.recv_stderr_ready():
            data = channel.recv_stderr(_CHUNK_BYTES)
            self.stderr += data
            self._tell(data)
            moved = True
        if len(self.stdout) + len(self.stderr) > self._max_output_bytes:
            raise OutputTooLargeError
        return moved

    def _tell(self, data: bytes) -> None:
        if self._on_stderr is None:
            return
        self._line += data
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._on_stderr(line.decode(errors="replace").removesuffix("\r"))

    def _write(self) -> bool:
        channel = self._channel
        if self._stdin is None or not channel.send_ready():
            return False
        if channel.closed or channel.exit_status_ready():
            # A command may end without reading what it was given.
            self._stdin = None
            return False
        with contextlib.suppress(OSError):  # closed since we looked: the next round sees it
            if self._stdin:
                self._stdin = self._stdin[channel.send(bytes(self._stdin[:_CHUNK_BYTES])) :]
            else:
                self._stdin = None
                channel.shutdown_write()
        return True

    def _wait(self, selector: selectors.BaseSelector, seconds: float) -> None:
        # Nothing wakes us when the other side has room for more input, so that is looked for.
        pause = min(seconds, 0.01 if self._stdin is not None else 0.5)
        if self._channel.eof_received and not self._channel.exit_status_ready():
            self._channel.status_event.wait(pause)
        else:
            selector.select(pause)
