"""What is sent to a device's shell, and how its answer is read. Pure.

A command stands between two marks: a random word with the shell's process number before it, and the same word with its
exit status after it. So a command that was never started, one that ended and one whose connection was lost are told
apart, whatever adb's own exit status is, and a command that takes too long can be ended there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

FINISH_PUSH = """\
if [ -d "$2" ]; then exit 3; fi
if [ ! -f "$1" ]; then exit 4; fi
n=$(echo $(wc -c < "$1"))
if [ "$n" != "$3" ]; then rm -f "$1"; echo "$n"; exit 5; fi
touch "$1"; mv -f "$1" "$2" || exit 6
"""
"""adb gives a file the age that it has here; what looks for old files there must see when it came.

Sizes are compared as words: Android's shell counts in 32 bits.

Arguments: temporary name, name, size. Exit 3: a folder is in the way; 4: nothing arrived; 5: another size, printed."""

LOOK_AT = """\
if [ ! -e "$1" ]; then exit 3; fi
if [ ! -f "$1" ]; then exit 4; fi
if [ ! -r "$1" ]; then exit 5; fi
stat -L -c %s "$1"
"""
"""Argument: a path. Prints the file's size; exit 3: not there, 4: not a file, 5: not readable."""

_NO_HOME = "home"
_MARK_BYTES = 64
_HEAD_BYTES = 1 << 16


def command_line(argv: Sequence[str], home: str, token: str) -> bytes:
    """The line for a device whose shell tells both outputs and the exit status apart."""
    return _encoded(
        f"{_entered(home, token, '>&2')} {shlex.join(argv)}; r=$?; echo {token}:$r >&2; exit $r",
    )


def legacy_line(argv: Sequence[str], home: str, token: str, stdin: str, stderr: str) -> bytes:
    """The line for an older device, which gives one stream and no status: the marks and stderr follow the output.

    Args:
        argv: The command.
        home: Where it starts.
        token: The mark.
        stdin: File on the device that it reads, removed afterwards where it is not /dev/null.
        stderr: A file that may be made there, removed afterwards.
    """
    files = shlex.join([stderr] if stdin == "/dev/null" else [stderr, stdin])
    return _encoded(
        f"{_entered(home, token, '')} {shlex.join(argv)} < {shlex.quote(stdin)} 2> {shlex.quote(stderr)}; r=$?;"
        f" echo; echo {token}:$r; cat {shlex.quote(stderr)}; rm -f {files}"
    )


def _entered(home: str, token: str, to: str) -> str:
    place = shlex.quote(home)
    return f"cd {place} || {{ echo {token}:{_NO_HOME} {to}; exit 1; }}; echo {token}:$$ {to};"


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")


class Marks:
    """Reads the stream that the marks are in.

    Args:
        token: The mark.
        on_line: Called with each whole line between the marks.

    Attributes:
        pid: Process number of the shell on the device; None until the command was started.
        returncode: The command's exit status; None until it ended.
        no_home: Whether the folder where commands start is not there.
    """

    def __init__(self, token: str, on_line: Callable[[str], None] | None = None) -> None:
        mark = token.encode()
        self._first = re.compile(rb"(?:\A|\n)" + mark + rb":(\d+|" + _NO_HOME.encode() + rb") *\r?\n")
        self._last = re.compile(mark + rb":(\d+)\r?\n")
        self._on_line = on_line
        self._raw = bytearray()
        self._start: int | None = None
        self._stop: int | None = None
        self._told = 0
        self.pid: int | None = None
        self.returncode: int | None = None
        self.no_home = False

    def feed(self, data: bytes) -> None:
        """More of the stream."""
        seen = len(self._raw)
        self._raw += data
        if self._start is None:
            found = self._first.search(self._raw, 0, _HEAD_BYTES)
            if found is None:
                return
            self.no_home = found[1] == _NO_HOME.encode()
            self.pid = None if self.no_home else int(found[1])
            self._start = self._told = found.end()
        if self._stop is None:
            ended = self._last.search(self._raw, max(self._start, seen - _MARK_BYTES))
            if ended is not None:
                self._stop, self.returncode = ended.start(), int(ended[1])
            self._tell()

    @property
    def text(self) -> bytes:
        """What the command printed between the marks."""
        return b"" if self._start is None else bytes(self._raw[self._start : self._stop])

    def _tell(self) -> None:
        if self._on_line is None:
            return
        end = self._raw.rfind(b"\n") + 1 if self._stop is None else self._stop
        piece = bytes(self._raw[self._told : max(end, self._told)])
        self._told += len(piece)
        for line in piece.splitlines():
            self._on_line(line.decode("utf-8", "replace"))


def split_legacy(raw: bytes, token: str) -> tuple[bool, int | None, bytes, bytes]:
    """What came of a `legacy_line`.

    Returns:
        Whether the command was started; its exit status, None where the end is missing; its output; its stderr.
    """
    mark = token.encode()
    head = re.match(rb"\A" + mark + rb":(\d+) *\r?\n", raw)
    if head is None:
        return False, None, b"", b""
    tail = re.compile(rb"\n" + mark + rb":(\d+)\r?\n").search(raw, max(0, head.end() - 1))
    if tail is None:
        return True, None, raw[head.end() :], b""
    return True, int(tail[1]), raw[head.end() : max(tail.start(), head.end())], raw[tail.end() :]


def legacy_has_no_home(raw: bytes, token: str) -> bool:
    """Whether the folder where commands start is not there."""
    return raw.startswith(f"{token}:{_NO_HOME}".encode())
