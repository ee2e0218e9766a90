"""Reading of weight files (`weight.bin`): a header, then blobs that each have a record of 64 bytes before the data."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core.errors import ConfigError

if TYPE_CHECKING:
    from edgekit.core.task import Array

_SENTINEL = 0xDEADBEEF
_RECORD = struct.Struct("<IIQQQ")

_STORED: Mapping[int, str] = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
"""Element types of the weight file's own numbering."""

NUMPY: Mapping[str, str] = {
    "bool": "?",
    "fp16": "<f2",
    "fp32": "<f4",
    "fp64": "<f8",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
}
"""Element types that have whole bytes, as numpy writes them."""

SUB_BYTE_BITS: Mapping[str, int] = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
"""Element types that are packed, lowest bits first."""


class WeightFile:
    """One weight file of a package.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is not there.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ConfigError(f"The package lacks its weight file '{path.name}' (looked for '{path}').")
        self._path = path
        self._data = memoryview(path.read_bytes())

    def read(self, offset: int, dtype: str, count: int) -> Array:
        """`count` elements of `dtype` from the blob whose record is at `offset`, one-dimensional.

        Raises:
            ConfigError: The record is damaged, is of another type or size, or runs past the end of the file.
        """
        if offset + _RECORD.size > len(self._data):
            raise self._damaged(f"the record at byte {offset} lies past its end")
        sentinel, stored, size, start, _padding = _RECORD.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise self._damaged(f"there is no record at byte {offset}")
        if _STORED.get(stored) != dtype:
            raise self._damaged(f"the blob at byte {offset} holds {_STORED.get(stored, stored)}, not {dtype}")
        expected = packed_bytes(dtype, count)
        if size < expected or start + size > len(self._data):
            raise self._damaged(f"the blob at byte {offset} has {size} bytes where {expected} are needed")
        return from_bytes(self._data[start : start + expected], dtype, count)

    def _damaged(self, what: str) -> ConfigError:
        return ConfigError(f"The weight file '{self._path.name}' is damaged: {what}.", "Compile the model anew.")


def packed_bytes(dtype: str, count: int) -> int:
    """Bytes that `count` elements of `dtype` take."""
    import numpy as np

    if dtype in SUB_BYTE_BITS:
        return (SUB_BYTE_BITS[dtype] * count + 7) // 8
    return int(np.dtype(_numpy_name(dtype)).itemsize) * count


def from_bytes(data: memoryview, dtype: str, count: int) -> Array:
    """`count` elements of `dtype`; packed ones come out as int8 or uint8.

    Raises:
        ConfigError: There are too few bytes, or the type is unknown.
    """
    import numpy as np

    if len(data) < packed_bytes(dtype, count):
        raise ConfigError(f"A constant of {count} × {dtype} has only {len(data)} bytes.", "Compile the model anew.")
    if dtype not in SUB_BYTE_BITS:
        return np.frombuffer(data, _numpy_name(dtype), count).copy()
    unpacked = unpack_bits(np.frombuffer(data, np.uint8), SUB_BYTE_BITS[dtype], count)
    if dtype.startswith("int"):
        bits = SUB_BYTE_BITS[dtype]
        wide = unpacked.astype(np.int16)
        return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide).astype(np.int8)
    return unpacked


def unpack_bits(packed: Array, bits: int, count: int) -> Array:
    """`count` unsigned numbers of `bits` bits each, packed lowest bits first, as uint8."""
    import numpy as np

    flat = np.unpackbits(np.ascontiguousarray(packed, dtype=np.uint8), bitorder="little", count=bits * count)
    places = (1 << np.arange(bits, dtype=np.uint16)).astype(np.uint16)
    numbers: Array = (flat.reshape(count, bits) * places).sum(axis=1).astype(np.uint8)
    return numbers


def _numpy_name(dtype: str) -> str:
    if dtype not in NUMPY:
        raise ConfigError(f"The element type '{dtype}' cannot be read.", f"Known: {', '.join(sorted(NUMPY))}.")
    return NUMPY[dtype]
