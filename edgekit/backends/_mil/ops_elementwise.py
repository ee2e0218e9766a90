"""Elementwise operators: arithmetic, comparisons, logic and casts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.backends._mil.operators import Args, operator

_UNARY = ("abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round")
_MORE_UNARY = ("sign", "sin", "sinh", "sqrt", "square", "tan", "tanh")

_BINARY: Mapping[str, str] = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "real_div": "true_divide",
    "floor_div": "floor_divide",
    "mod": "remainder",
    "pow": "pow",
    "maximum": "maximum",
    "minimum": "minimum",
    "equal": "eq",
    "not_equal": "ne",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "logical_xor": "logical_xor",
}
"""MIL's name of each two-argument operator → torch's."""


def _unary(kind: str) -> Callable[[Any, Args], Any]:
    def apply(torch: Any, args: Args) -> Any:
        return getattr(torch, kind)(args.tensor("x"))

    return apply


def _binary(function: str) -> Callable[[Any, Args], Any]:
    def apply(torch: Any, args: Args) -> Any:
        return getattr(torch, function)(args.tensor("x"), args.tensor("y"))

    return apply


for _kind in _UNARY + _MORE_UNARY:
    operator(_kind)(_unary(_kind))
for _kind, _function in _BINARY.items():
    operator(_kind)(_binary(_function))


@operator("logical_not")
def logical_not(torch: Any, args: Args) -> Any:
    """True where `x` is false."""
    return torch.logical_not(args.tensor("x"))


@operator("identity", "cast")
def identity(_torch: Any, args: Args) -> Any:
    """`x`: the evaluator itself casts to the type stated for the output."""
    return args.tensor("x")


@operator("clip")
def clip(torch: Any, args: Args) -> Any:
    """`x` within [alpha, beta]."""
    return torch.clamp(args.tensor("x"), args.number("alpha"), args.number("beta"))


@operator("threshold")
def threshold(torch: Any, args: Args) -> Any:
    """The larger of `x` and alpha."""
    return torch.clamp(args.tensor("x"), min=args.number("alpha"))


@operator("log")
def log(torch: Any, args: Args) -> Any:
    """Natural logarithm of `x + epsilon`."""
    return torch.log(args.tensor("x") + args.number("epsilon", 1e-45))


@operator("rsqrt")
def rsqrt(torch: Any, args: Args) -> Any:
    """One over the square root of `x + epsilon`."""
    return torch.rsqrt(args.tensor("x") + args.number("epsilon", 1e-12))


@operator("inverse")
def inverse(_torch: Any, args: Args) -> Any:
    """One over `x + epsilon`."""
    return 1.0 / (args.tensor("x") + args.number("epsilon", 1e-4))


@operator("select")
def select(torch: Any, args: Args) -> Any:
    """`a` where the condition holds, else `b`."""
    condition, chosen, other = args.tensor("cond").bool(), args.tensor("a"), args.tensor("b")
    return torch.where(condition, chosen, other)
