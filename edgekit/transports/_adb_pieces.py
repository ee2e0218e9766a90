"""Large files over ADB: sent in pieces, so that one that was cut off goes on where it was.

ADB's own protocol writes a file from its beginning only. So each piece is a file of its own, and the device's shell puts
them together; the whole is hashed there before it gets its name. Two uploads of one file at once use the same pieces: what
they make is whole or refused, and the runner's lock keeps them from meeting.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from edgekit.core.errors import TransientDeviceError
from edgekit.core.files import sha256_bytes
from edgekit.transports._partial import digest_in, hash_seconds, partial_path, prefix_sha256
from edgekit.transports.base import CommandResult

PIECE_BYTES = 16 << 20
LOOK_AT_PIECES = """\
sha256sum < /dev/null || exit 3
for f in "$@"; do if [ -f "$f" ]; then sha256sum < "$f"; else echo none; fi; done
"""
"""Arguments: paths. A line for /dev/null and for each of them: its hash, or `none`. Exit 3: the device cannot hash."""

JOIN_PIECES = """\
mode=$1 whole=$2; shift 2
for f in "$@"; do
    cat "$f" >> "$whole" || { rm -f "$whole"; [ -f "$f" ] && exit 6; exit 4; }
    rm -f "$f"
done
chmod "$mode" "$whole" && sha256sum < "$whole"
"""
"""Arguments: permissions, the whole, its pieces. Each is removed once it is copied: there is no room needed for both.

Exit 4: a piece is gone."""


class Run(Protocol):
    """`Transport.run`."""

    def __call__(self, argv: Sequence[str], *, timeout: float) -> CommandResult:
        """See there."""


class Pieces:
    """A large file on its way to the device.

    Args:
        stream: The file.
        facts: Its size and permissions.
        target: Its absolute path on the device.
        run: Runs a command there.
        send: Sends a file to a path there.

    Attributes:
        whole: Where the pieces are put together.
        paths: Where the pieces are. Their names follow from the file's content.
    """

    def __init__(
        self, stream: BinaryIO, facts: os.stat_result, target: str, run: Run, send: Callable[[Path, str], None]
    ) -> None:
        self._stream, self._facts, self._run, self._send = stream, facts, run, send
        self._sha256 = prefix_sha256(stream, facts.st_size)
        self._there: set[int] = set()
        self.whole = partial_path(target, self._sha256, f".{secrets.token_hex(4)}")
        count = -(-facts.st_size // PIECE_BYTES)
        self.paths = [partial_path(target, self._sha256, f".{number}") for number in range(count)]

    def look(self) -> bool:
        """See which pieces an earlier upload has brought whole; False where the device cannot hash."""
        found = self._shell(LOOK_AT_PIECES, *self.paths).stdout.splitlines()
        if not found or digest_in(found[0]) is None:
            return False
        for number, line in zip(range(len(self.paths)), found[1:], strict=False):
            digest = digest_in(line)
            if digest is not None and digest == sha256_bytes(self._piece(number)):
                self._there.add(number)
        return True

    def send(self, on_bytes: Callable[[int], None] | None) -> None:
        """Send the pieces that are not there."""
        for number, path in enumerate(self.paths):
            if number in self._there:
                continue
            data = self._piece(number)
            with tempfile.NamedTemporaryFile(prefix="edgekit-piece-") as file:
                file.write(data)
                file.flush()
                self._send(Path(file.name), path)
            if on_bytes is not None:
                on_bytes(len(data))

    def join(self, where: str) -> CommandResult:
        """Make the whole of the pieces.

        Args:
            where: The file and its device, for a message.

        Raises:
            TransientDeviceError: It is not what was to be sent.
        """
        done = self._shell(JOIN_PIECES, f"{stat.S_IMODE(self._facts.st_mode):o}", self.whole, *self.paths)
        if done.returncode == 4:
            raise TransientDeviceError(f"{where} was sent by another run at the same time.", "Try again.")
        if done.returncode == 0 and digest_in(done.stdout) != self._sha256:
            self._shell('rm -f "$@"', self.whole, *self.paths)
            raise TransientDeviceError(f"{where} has other bytes than were to be sent.", "Try again.")
        return done

    def _piece(self, number: int) -> bytes:
        self._stream.seek(number * PIECE_BYTES)
        return self._stream.read(PIECE_BYTES)

    def _shell(self, script: str, *arguments: str) -> CommandResult:
        return self._run(["sh", "-c", script, "sh", *arguments], timeout=hash_seconds(self._facts.st_size))
