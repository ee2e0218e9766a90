"""Element by element, one operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.frontends._onnx_import.call import Call
from edgekit.frontends._onnx_import.dtypes import tensor_from_array, tensor_from_proto, torch_dtype
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import Value, np, torch
from edgekit.frontends._onnx_import.registry import Entry, add, handles

_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.linalg.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, x: function(x)


for _name, _function in _PLAIN.items():
    add("", _name, Entry(1, _plain(_function), widens=_name in ("Abs", "BitwiseNot", "Neg", "Sign")))


@handles("IsInf")
def is_inf(call: Call, x: Value) -> Value:
    """Infinities of the signs asked for."""
    negative, positive = call.attr("detect_negative", 1), call.attr("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if positive:
        return x == float("inf")
    return x == float("-inf") if negative else torch.zeros_like(x, dtype=torch.bool)


@handles("Cast")
def cast(call: Call, x: Value) -> Value:
    """Conversion to another type."""
    return converted(x, torch_dtype(call.attr("to")))


@handles("CastLike")
def cast_like(call: Call, x: Value, target: Value) -> Value:
    """Conversion to the type of a second operand."""
    return converted(x, target.dtype)


@handles("BitCast")
def bit_cast(call: Call, x: Value) -> Value:
    """The same bits, read as another type."""
    return x.view(torch_dtype(call.attr("to")))


def converted(x: Value, dtype: Any) -> Value:
    """`x` as another type, unchanged where it has it already."""
    return x if x.dtype == dtype else x.to(dtype)


@handles("Constant")
def constant(call: Call) -> Value:
    """A tensor kept in an attribute."""
    if "value" in call.attributes:
        return tensor_from_proto(call.attr("value"))
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if name in call.attributes:
            return tensor_from_array(np.array(call.attr(name), dtype=dtype))
    for name in ("value_int", "value_ints"):
        if name in call.attributes:
            return tensor_from_array(np.array(call.attr(name), dtype=np.int64))
    raise Refused("it holds strings or a sparse tensor, which torch does not have")
