"""Values: what a MIL type means in torch, and the rounding to it."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.program import MilType

_FLOATS = ("fp16", "fp32", "fp64", "bf16")


def settle(torch: Any, value: Any, kind: MilType) -> Any:
    """`value` as the program's type has it: rounded to float16 where it says so, wrapped to the width of integers.

    Args:
        torch: The library.
        value: What an operator gave; anything but a tensor passes as it is.
        kind: The type stated for it.

    Returns:
        A float32, int64 or bool tensor whose every value exists in the type.
    """
    if not hasattr(value, "dim") or kind.kind != "tensor":
        return value
    if kind.dtype == "fp16":
        return value.to(torch.float16).to(torch.float32)
    if kind.dtype in _FLOATS:
        return value.to(torch.float32)
    if kind.dtype == "bool":
        return value.bool()
    whole = value.to(torch.int64)
    narrow = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32}.get(kind.dtype)
    if narrow is not None:
        return whole.to(narrow).to(torch.int64)
    return whole & 0xFFFF if kind.dtype == "uint16" else whole


def as_tensor(torch: Any, value: Any) -> Any:
    """A constant as operators take it: arrays as tensors; strings, and lists with strings in them, as they are."""
    if isinstance(value, list):
        return [as_tensor(torch, item) for item in value]
    if not hasattr(value, "dtype"):
        return value
    if value.dtype.kind == "f":
        return torch.from_numpy(value.astype("float32"))
    if value.dtype.kind == "b":
        return torch.from_numpy(value)
    return torch.from_numpy(value.astype("int64"))
