"""Files over SFTP: pipelined, checked, and never seen half written.

paramiko's own `put` overlooks errors of the last writes, and its `prefetch` runs a thread that spins for ever once the
connection is gone. So the requests are pipelined here, through the same private calls that paramiko's files use.
"""

from __future__ import annotations

import contextlib
import posixpath
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.core.extras import require
from edgekit.transports._here import writing
from edgekit.transports._partial import partial_path

_CHUNK_BYTES = 32768
_MAX_REQUESTS = 64
_EOF = 1
_GOODBYE_SECONDS = 2.0
_OPEN, _READ, _WRITE, _STATUS, _DATA, _EXTENDED, _EXTENDED_REPLY = 3, 5, 6, 101, 103, 200, 201
_DONE, _FORBIDDEN, _UNSUPPORTED = 0, 3, 8
_WRITING, _CREATING = 2, 8


class TooLargeError(Exception):
    """The file on the device is larger than allowed; the first argument is its size as far as known."""


class ChangedError(Exception):
    """The file changed while it was read, or is not what was sent."""


class TakenError(ChangedError):
    """Another upload of the same content gave the temporary file its name, or began it anew."""


class NotAFileError(Exception):
    """The path on the device is something else than a file."""


class Upload:
    """One file on its way to the device, under a temporary name until it is whole.

    Args:
        sftp: paramiko's SFTPClient.
        remote: The path on the device.
        sha256: Hash of the content, where the upload can be continued after a cut. Then the temporary name follows from
            it, and two uploads of one content may meet there: they write the same bytes to the same places.
    """

    def __init__(self, sftp: Any, remote: str, sha256: str | None = None) -> None:
        self._sftp = sftp
        self._remote = remote
        folder, name = posixpath.split(remote)
        self.sha256 = sha256
        self.temporary = (
            posixpath.join(folder, f".{name}.{secrets.token_hex(4)}.part")
            if sha256 is None
            else partial_path(remote, sha256)
        )
        self.folder = folder or "."
        self.acknowledged = 0

    def found(self) -> int:
        """Bytes that an earlier upload of the same content left; 0 for none."""
        try:
            return self._sftp.stat(self.temporary).st_size or 0
        except FileNotFoundError:
            return 0

    def send(self, stream: BinaryIO, start: int, on_bytes: Callable[[int], None] | None) -> None:
        """Copy a stream to the temporary file.

        Args:
            stream: What to copy.
            start: Where to begin: the bytes before are there already.
            on_bytes: Called with the size of each piece that the device has acknowledged.

        Raises:
            OSError: The device refuses.
            ChangedError: What is there afterwards has another size.
        """
        self.acknowledged = start
        stream.seek(start)
        with self._opened(start) as handle, _short_goodbye(self._sftp):
            self._write_all(handle, stream, on_bytes)
            _sync(self._sftp, handle.handle)
        size = self.found()
        if size != self.acknowledged:
            if size == 0 and self.sha256 is not None:
                raise TakenError("another upload of it took what had arrived")
            raise ChangedError(f"{size} of {self.acknowledged} bytes are there; does something else write it?")

    def finish(self, executable: bool) -> None:
        """Give the file its name.

        Args:
            executable: Whether the login may run the file.

        Raises:
            OSError: The device refuses.
            TakenError: Another upload of the same content was faster.
        """
        try:
            if executable:
                mode = self._sftp.stat(self.temporary).st_mode or 0o644
                self._sftp.chmod(self.temporary, stat.S_IMODE(mode) | stat.S_IXUSR)
            self._sftp.posix_rename(self.temporary, self._remote)
        except FileNotFoundError as error:
            if self.sha256 is None:
                raise
            raise TakenError("another upload of it took what had arrived") from error

    def discard(self) -> None:
        """Remove the temporary file, as far as the device can still be reached."""
        paramiko = require("paramiko", "ssh", "the ssh transport")
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._sftp.remove(self.temporary)

    def _opened(self, start: int) -> Any:
        if start > 0:
            try:
                # Never made anew here: it would have a hole where the bytes before `start` were.
                return self._sftp.open(self.temporary, "r+")
            except FileNotFoundError as error:
                raise TakenError("what had arrived earlier is gone") from error
        try:
            return self._create()
        except FileNotFoundError:
            make_folders(self._sftp, self.folder)
            return self._create()

    def _create(self) -> Any:
        if self.sha256 is None:
            return self._sftp.open(self.temporary, "wx")
        return _open_shared(self._sftp, self.temporary)

    def _write_all(self, handle: Any, stream: BinaryIO, on_bytes: Callable[[int], None] | None) -> None:
        pipeline = _Pipeline(self._sftp)
        sizes: deque[int] = deque()
        offset = self.acknowledged

        def acknowledge() -> None:
            pipeline.finish_one()
            self.acknowledged += sizes[0]
            if on_bytes:
                on_bytes(sizes[0])
            sizes.popleft()

        while data := stream.read(_CHUNK_BYTES):
            if len(sizes) == _MAX_REQUESTS:
                acknowledge()
            pipeline.send(_WRITE, handle.handle, _int64(offset), data)
            sizes.append(len(data))
            offset += len(data)
        while sizes:
            acknowledge()


def _sync(sftp: Any, handle: bytes) -> None:
    """Have the device write a file to its disk before it gets its name, where its server can (OpenSSH's can).

    Without it a power cut some seconds later leaves the name, and no bytes.
    """
    pipeline = _Pipeline(sftp)
    pipeline.send(_EXTENDED, "fsync@openssh.com", handle)
    kind, message = pipeline.answer()
    code = message.get_int() if kind == _STATUS else _DONE
    if code not in (_DONE, _FORBIDDEN, _UNSUPPORTED):
        raise OSError(message.get_text())


def _open_shared(sftp: Any, path: str) -> Any:
    """A file to write to, made where it is not there and never emptied: paramiko's modes have no word for that."""
    from paramiko import SFTPAttributes, SFTPFile

    _, message = sftp._request(_OPEN, path, _WRITING | _CREATING, SFTPAttributes())
    return SFTPFile(sftp, message.get_binary(), "r+", 0)


def download(sftp: Any, remote: str, local: Path, max_bytes: int) -> None:
    """Copy a file from the device; it has its name here only when it is whole.

    Raises:
        OSError: The device refuses.
        TooLargeError: It is larger than `max_bytes`, or grows beyond that.
        NotAFileError: It is a folder or a special file.
        ChangedError: It became shorter while it was read.
        ConfigError: It cannot be written here.
    """
    facts = sftp.stat(remote)
    if facts.st_mode is not None and not stat.S_ISREG(facts.st_mode):
        # Before opening: a named pipe would keep us waiting for ever.
        raise NotAFileError
    size = facts.st_size or 0
    if size > max_bytes:
        raise TooLargeError(size)
    temporary = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")
    with writing(local):
        local.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("xb")
    try:
        with stream, sftp.open(remote, "r") as handle, _short_goodbye(sftp):
            _read_known(sftp, handle.handle, stream, size, local)
            _read_rest(sftp, handle.handle, stream, size, max_bytes, local)
        with writing(local):
            temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)


def make_folders(sftp: Any, folder: str) -> None:
    """Make a folder on the device and those above it.

    Raises:
        OSError: The device refuses, or something that is not a folder is in the way.
    """
    if is_folder(sftp, folder):
        return
    parent = posixpath.dirname(folder)
    if parent not in ("", folder):
        make_folders(sftp, parent)
    try:
        sftp.mkdir(folder)
    except OSError:
        # Somebody else may have made it in the meantime.
        if not is_folder(sftp, folder):
            raise


def is_folder(sftp: Any, path: str) -> bool:
    """Whether there is a folder at that path on the device."""
    try:
        return stat.S_ISDIR(sftp.stat(path).st_mode or 0)
    except FileNotFoundError:
        return False


def free_bytes(sftp: Any, folder: str) -> int | None:
    """Bytes that a login may still write in a folder; 0 also where no more files fit; None where it is not told.

    Raises:
        EOFError: The connection is gone.
    """
    try:
        kind, message = sftp._request(_EXTENDED, "statvfs@openssh.com", folder)
    except OSError:
        return None
    if kind != _EXTENDED_REPLY:
        return None
    _, block, _, _, free_blocks, files, _, free_files, *_ = (message.get_int64() for _ in range(11))
    return 0 if files and not free_files else int(block * free_blocks)


def _read_known(sftp: Any, handle: bytes, stream: BinaryIO, size: int, local: Path) -> None:
    """The bytes that the file had when its size was asked for."""
    pipeline = _Pipeline(sftp)
    wanted = deque((offset, min(_CHUNK_BYTES, size - offset)) for offset in range(0, size, _CHUNK_BYTES))
    asked: deque[tuple[int, int]] = deque()
    while wanted or asked:
        while wanted and len(asked) < _MAX_REQUESTS:
            offset, length = wanted.popleft()
            pipeline.send(_READ, handle, _int64(offset), length)
            asked.append((offset, length))
        offset, length = asked.popleft()
        data = pipeline.finish_one()
        if not data:
            raise ChangedError("it became shorter while it was read")
        with writing(local):
            stream.seek(offset)
            stream.write(data)
        if len(data) < length:
            wanted.appendleft((offset + len(data), length - len(data)))


def _read_rest(sftp: Any, handle: bytes, stream: BinaryIO, size: int, max_bytes: int, local: Path) -> None:
    """What comes after the size that was told: files below /proc say 0, and logs grow."""
    pipeline = _Pipeline(sftp)
    while True:
        pipeline.send(_READ, handle, _int64(size), _CHUNK_BYTES)
        data = pipeline.finish_one()
        if not data:
            return
        if size + len(data) > max_bytes:
            raise TooLargeError(size + len(data))
        with writing(local):
            stream.seek(size)
            stream.write(data)
        size += len(data)


@contextlib.contextmanager
def _short_goodbye(sftp: Any) -> Iterator[None]:
    """Wait only briefly for answers after Ctrl-C: it may have come in the middle of a packet, and none will come."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        sftp.get_channel().settimeout(_GOODBYE_SECONDS)
        raise


class _Pipeline:
    """Requests that are under way; answers are taken in the order of asking."""

    def __init__(self, sftp: Any) -> None:
        self._sftp = sftp
        self._asked: deque[int] = deque()
        self._answers: dict[int, tuple[int, Any]] = {}

    def send(self, kind: int, *arguments: Any) -> None:
        self._asked.append(self._sftp._async_request(self, kind, *arguments))

    def finish_one(self) -> bytes:
        """The data of the oldest request; empty for "done" and at the end of the file."""
        kind, message = self.answer()
        if kind == _DATA:
            return bytes(message.get_binary())
        try:
            self._sftp._convert_status(message)
        except EOFError:
            # Of the file, not of the connection: that one is an SSHException from _read_response.
            return b""
        return b""

    def answer(self) -> tuple[int, Any]:
        """The kind and the message of the answer to the oldest request."""
        number = self._asked.popleft()
        while number not in self._answers:
            self._sftp._read_response()
        return self._answers.pop(number)

    def _async_response(self, kind: int, message: Any, number: int) -> None:
        """What paramiko calls with each answer to a request of ours."""
        self._answers[number] = (kind, message)


def _int64(value: int) -> Any:
    from paramiko.sftp import int64

    return int64(value)
