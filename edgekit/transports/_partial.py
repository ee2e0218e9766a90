"""Uploads that go on where they were cut off: what a partial file is called, and how much of it is to be believed.

A large file goes to a name made of its content's hash, so that a partial file is only ever continued with the content it
began with. What is there already counts as far as the device's own SHA-256 of it is that of the same bytes here.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from typing import BinaryIO

RESUMABLE_BYTES = 4 << 20
"""Smaller files are sent anew: they take hardly longer than the question of what has arrived."""
HASH_PREFIX = 'head -c "$2" < "$1" | { sha256sum 2>/dev/null || shasum -a 256; }'
"""Arguments: a file, and how many of its bytes. macOS has the second program only."""
_CHUNK_BYTES = 1 << 20
_BYTES_PER_SECOND = 1 << 20
_HASH_SECONDS = 60.0
_DIGEST = re.compile(rb"\s*([0-9a-f]{64})\b")


def partial_path(remote: str, sha256: str, suffix: str = "") -> str:
    """Where a file that is to become `remote` is put until it is whole.

    The agent looks for the same name (`partial_bytes` in `edgekit/agent/store.py`).
    """
    folder, name = posixpath.split(remote)
    return posixpath.join(folder, f".{name}.{sha256[:16]}{suffix}.part")


def prefix_sha256(stream: BinaryIO, size: int) -> str:
    """The hexadecimal SHA-256 of the first `size` bytes; the stream is at their end afterwards."""
    digest = hashlib.sha256()
    stream.seek(0)
    while size > 0 and (data := stream.read(min(_CHUNK_BYTES, size))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def digest_in(output: bytes) -> str | None:
    """The hash that `HASH_PREFIX` printed, or None where the device has no program for it."""
    found = _DIGEST.match(output)
    return None if found is None else found[1].decode()


def hash_seconds(size: int) -> float:
    """How long a device may take to hash so many bytes."""
    return _HASH_SECONDS + size / _BYTES_PER_SECOND
