"""What a `.tflite` file asks of runtimes from before LiteRT: its operators' versions, against those they have."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from edgekit.backends._litert.operator_versions import NEWEST
from edgekit.core.errors import BackendError
from edgekit.core.workload import OlderRuntime

RUNTIMES = {"2.14.0": ("1.23.2", "2"), "2.13.0": ("1.21.2", "2")}
"""Releases of tflite-runtime that are tried, the newest first, with the NumPy that each was built for: the least by its own
metadata; NumPy 2 refuses modules that were compiled for 1."""
_CUSTOM = 32
_OPERATOR_CODES = 1
_OLD_CODE, _VERSION, _CODE = 0, 2, 3


def older_runtimes(path: Path) -> tuple[OlderRuntime, ...]:
    """The releases of tflite-runtime, and what each lacks for a file.

    Raises:
        BackendError: It is not a `.tflite` file.
    """
    wanted = sorted(operator_versions(path.read_bytes()))
    return tuple(
        OlderRuntime(f"tflite-runtime=={release}", {"numpy": numpy}, tuple(_lacking(wanted, release)))
        for release, numpy in RUNTIMES.items()
    )


def _lacking(wanted: list[tuple[int, int]], release: str) -> Iterator[str]:
    for code, version in wanted:
        known = NEWEST.get(code)
        newest = known.versions.get(release, 0) if known else 0
        if version > newest:
            has = f"it has versions up to {newest}" if newest else "it does not have this operator"
            yield f"{known.name if known else f'operator {code}'} version {version} ({has})"


def operator_versions(content: bytes) -> set[tuple[int, int]]:
    """Code and version of each built-in operator that a file names. Needs no library: a host may have no runtime.

    Raises:
        BackendError: The bytes are not a `.tflite` file.
    """
    try:
        if content[4:8] != b"TFL3":
            raise BackendError("The model is not a .tflite file: its identifier is missing.")
        model = _u32(content, 0)
        codes = model + _field(content, model, _OPERATOR_CODES)
        codes += _u32(content, codes)
        return {found for place in _items(content, codes) if (found := _operator(content, place))[0] != _CUSTOM}
    except struct.error as error:
        raise BackendError("The .tflite file is cut off: its operators cannot be read.") from error


def _operator(content: bytes, table: int) -> tuple[int, int]:
    """Code and version; the code is in the old field of one byte, in the new one, or in both."""
    old, version, new = (_field(content, table, field) for field in (_OLD_CODE, _VERSION, _CODE))
    code = max(
        struct.unpack_from("<b", content, table + old)[0] if old else 0,
        struct.unpack_from("<i", content, table + new)[0] if new else 0,
    )
    return code, struct.unpack_from("<i", content, table + version)[0] if version else 1


def _items(content: bytes, vector: int) -> Iterator[int]:
    for index in range(_u32(content, vector)):
        place = vector + 4 + 4 * index
        yield place + _u32(content, place)


def _field(content: bytes, table: int, number: int) -> int:
    """Where a table's field is, from the table's start; 0 where it is left out."""
    listing = table - struct.unpack_from("<i", content, table)[0]
    size = struct.unpack_from("<H", content, listing)[0]
    place = 4 + 2 * number
    return int(struct.unpack_from("<H", content, listing + place)[0]) if place < size else 0


def _u32(content: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", content, place)[0])
