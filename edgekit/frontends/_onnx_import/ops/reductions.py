"""Reductions over axes, which opset 13 has as an attribute and 18 as an operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.frontends._onnx_import.call import Call
from edgekit.frontends._onnx_import.libs import Value, torch
from edgekit.frontends._onnx_import.registry import Entry, add, handles


def _sum(x: Value, axes: list[int], keep: bool) -> Value:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Value, axes: list[int], keep: bool) -> Value:
    return torch.mean(x, axes, keepdim=keep)


def _max(x: Value, axes: list[int], keep: bool) -> Value:
    return _extreme(torch.amax, x, axes, keep, largest=False)


def _min(x: Value, axes: list[int], keep: bool) -> Value:
    return _extreme(torch.amin, x, axes, keep, largest=True)


def _extreme(function: Callable[..., Any], x: Value, axes: list[int], keep: bool, largest: bool) -> Value:
    if x.numel() == 0:
        # The neutral element, which torch refuses to assume.
        shape = [1 if i in axes else s for i, s in enumerate(x.shape) if keep or i not in axes]
        return torch.full(shape, limit(x.dtype, largest), dtype=x.dtype)
    if x.dtype == torch.bool:
        return function(x.to(torch.uint8), axes, keepdim=keep).to(torch.bool)
    return function(x, axes, keepdim=keep)


def limit(dtype: Any, largest: bool) -> Any:
    """The largest or the smallest value of a type."""
    if dtype == torch.bool:
        return largest
    if dtype.is_floating_point:
        return float("inf") if largest else float("-inf")
    info = torch.iinfo(dtype)
    return info.max if largest else info.min


def _prod(x: Value, axes: list[int], keep: bool) -> Value:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Value, axes: list[int], keep: bool) -> Value:
    return _sum(torch.abs(x), axes, keep)


def _l2(x: Value, axes: list[int], keep: bool) -> Value:
    total = _sum(x * x, axes, keep)
    return torch.sqrt(total).to(x.dtype)


def _sum_square(x: Value, axes: list[int], keep: bool) -> Value:
    return _sum(x * x, axes, keep)


def _log_sum(x: Value, axes: list[int], keep: bool) -> Value:
    return torch.log(_sum(x, axes, keep)).to(x.dtype)


def _log_sum_exp(x: Value, axes: list[int], keep: bool) -> Value:
    return torch.logsumexp(x, axes, keepdim=keep).to(x.dtype)


_REDUCTIONS: dict[str, Callable[[Value, list[int], bool], Value]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceProd": _prod,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(function: Callable[[Value, list[int], bool], Value]) -> Callable[..., Value]:
    def run(call: Call, x: Value, axes_operand: Value = None) -> Value:
        axes = call.ints("axes", 1)
        if not axes:
            if call.attr("noop_with_empty_axes", 0):
                return _without_axes(call.op_type, x)
            axes = list(range(x.ndim))
        axes = [axis % max(x.ndim, 1) for axis in axes]
        if x.ndim == 0:
            return function(x.reshape(1), [0], False)
        return function(x, axes, bool(call.attr("keepdims", 1)))

    return run


def _without_axes(op_type: str, x: Value) -> Value:
    """What is left of a reduction over no axis: the function of each element alone."""
    if op_type in ("ReduceL1", "ReduceL2"):
        return torch.abs(x)
    if op_type == "ReduceSumSquare":
        return x * x
    return torch.log(x) if op_type == "ReduceLogSum" else x


for _name, _function in _REDUCTIONS.items():
    add("", _name, Entry(1, _reduction(_function), widens=True))


@handles("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: Value) -> Value:
    """Index of the largest or smallest: the first one, or the last."""
    function = torch.argmax if call.op_type == "ArgMax" else torch.argmin
    axis, keep = call.attr("axis", 0), bool(call.attr("keepdims", 1))
    if not call.attr("select_last_index", 0):
        return function(x, dim=axis, keepdim=keep)
    return x.shape[axis] - 1 - function(torch.flip(x, [axis]), dim=axis, keepdim=keep)


@handles("CumSum", widens=True)
def cumsum(call: Call, x: Value, axis: Value) -> Value:
    """Running sum."""
    return _running(call, x, lambda v, a: torch.cumsum(v, a, dtype=v.dtype), neutral=0)


@handles("CumProd", widens=True)
def cumprod(call: Call, x: Value, axis: Value) -> Value:
    """Running product."""
    return _running(call, x, lambda v, a: torch.cumprod(v, a, dtype=v.dtype), neutral=1)


def _running(call: Call, x: Value, function: Callable[[Value, int], Value], neutral: int) -> Value:
    axis = (call.known_int(1) or 0) % x.ndim
    if call.attr("reverse", 0):
        x = torch.flip(x, [axis])
    if call.attr("exclusive", 0):
        first = torch.full_like(torch.narrow(x, axis, 0, 1), neutral)
        x = torch.cat([first, torch.narrow(x, axis, 0, x.shape[axis] - 1)], axis)
    result = function(x, axis)
    return torch.flip(result, [axis]) if call.attr("reverse", 0) else result
