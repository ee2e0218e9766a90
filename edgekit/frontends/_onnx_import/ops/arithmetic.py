"""Element by element, two operands or more, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from edgekit.frontends._onnx_import.call import Call, is_known, scalar
from edgekit.frontends._onnx_import.libs import Value, torch
from edgekit.frontends._onnx_import.registry import Entry, add, handles


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, a, b: function(a, b)


_TENSORS_ONLY: dict[str, Callable[..., Any]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}
for _name, _function in _TENSORS_ONLY.items():
    add("", _name, Entry(1, _binary(_function), widens=True))


def _numbers(a: Value, b: Value) -> tuple[Value, Value]:
    """Known scalars as Python numbers, but never both: one has to say the type."""
    if is_known(a, b):
        return a, b
    return scalar(a), scalar(b)


@handles("Add", widens=True)
def add_(call: Call, a: Value, b: Value) -> Value:
    """Sum, a constant always behind: so a layer's bias is found."""
    a, b = _numbers(*((b, a) if is_known(a) else (a, b)))
    return a + b


@handles("Sub", widens=True)
def sub(call: Call, a: Value, b: Value) -> Value:
    """Difference."""
    a, b = _numbers(a, b)
    return a - b


@handles("Mul", widens=True)
def mul(call: Call, a: Value, b: Value) -> Value:
    """Product."""
    a, b = _numbers(a, b)
    return a * b


@handles("Div", widens=True)
def div(call: Call, a: Value, b: Value) -> Value:
    """Quotient; of integers, towards zero."""
    floating = a.is_floating_point()
    a, b = _numbers(a, b)
    if floating:
        return a / b
    if not hasattr(a, "shape"):
        a = torch.tensor(a, dtype=b.dtype)
    return torch.div(a, b, rounding_mode="trunc")


@handles("Mod", widens=True)
def mod(call: Call, a: Value, b: Value) -> Value:
    """Remainder, with the sign of the divisor or, with fmod, of the dividend."""
    return torch.fmod(a, b) if call.attr("fmod", 0) else torch.remainder(a, b)


@handles("Pow", widens=True)
def power(call: Call, base: Value, exponent: Value) -> Value:
    """Power, in the type of the base."""
    if is_known(exponent) and not is_known(base):
        exponent = scalar(exponent)
    return torch.pow(base, exponent).to(base.dtype)


@handles("BitShift", widens=True)
def bit_shift(call: Call, a: Value, b: Value) -> Value:
    """Shift to the left or right."""
    left = call.attr("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@handles("Max", widens=True)
def maximum(call: Call, *values: Value) -> Value:
    """Largest."""
    return functools.reduce(torch.maximum, values)


@handles("Min", widens=True)
def minimum(call: Call, *values: Value) -> Value:
    """Smallest."""
    return functools.reduce(torch.minimum, values)


@handles("Sum")
def total(call: Call, *values: Value) -> Value:
    """Sum of all operands."""
    return functools.reduce(lambda a, b: a + b, values)


@handles("Mean")
def mean(call: Call, *values: Value) -> Value:
    """Mean of all operands."""
    return functools.reduce(lambda a, b: a + b, values) / len(values)


@handles("Where")
def where(call: Call, condition: Value, a: Value, b: Value) -> Value:
    """Choice element by element."""
    return torch.where(condition, a, b)
