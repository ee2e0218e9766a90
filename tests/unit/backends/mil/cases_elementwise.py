"""Operators of one or two values each, activations and reductions: what coremltools builds, what torch computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

F = torch.nn.functional
RNG = np.random.default_rng(7)


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


def ints(*shape: int, low: int = 0, high: int = 5) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(np.int32)


@dataclass(frozen=True)
class Case:
    """One operator with its inputs: built by coremltools, expected of torch.

    `expected` takes the inputs as tensors, in order, and gives one tensor or a tuple.
    """

    kind: str
    inputs: Mapping[str, np.ndarray]
    build: Callable[..., Any]
    expected: Callable[..., Any]
    release: str = "iOS17"
    label: str = ""
    tolerance: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.label}" if self.label else self.kind


X = floats(2, 3, 4, 5)
POSITIVE = floats(2, 3, 4, low=0.1, high=3.0)
UNIT = floats(2, 3, 4, low=-0.95, high=0.95)
CHANNELS = floats(3, low=0.1, high=0.9)


def unary(kind: str, array: np.ndarray, expected: Callable[[torch.Tensor], torch.Tensor], **parameters: Any) -> Case:
    return Case(
        kind,
        {"x": array},
        lambda mb, x: getattr(mb, kind)(x=x, **parameters),
        expected,
        label=str(parameters.get("mode", "")),
    )


def f32(value: float) -> np.float32:
    return np.float32(value)


UNARY = [
    unary("abs", X, torch.abs),
    unary("acos", UNIT, torch.acos),
    unary("asin", UNIT, torch.asin),
    unary("atan", X, torch.atan),
    unary("atanh", UNIT, torch.atanh),
    unary("ceil", X, torch.ceil),
    unary("cos", X, torch.cos),
    unary("cosh", X, torch.cosh),
    unary("erf", X, torch.erf),
    unary("exp", X, torch.exp),
    unary("exp2", X, torch.exp2),
    unary("floor", X, torch.floor),
    unary("round", X, torch.round),
    unary("sign", X, torch.sign),
    unary("sin", X, torch.sin),
    unary("sinh", X, torch.sinh),
    unary("sqrt", POSITIVE, torch.sqrt),
    unary("square", X, torch.square),
    unary("tan", UNIT, torch.tan),
    unary("tanh", X, torch.tanh),
    unary("log", POSITIVE, torch.log),
    unary("rsqrt", POSITIVE, torch.rsqrt),
    unary("inverse", POSITIVE, lambda x: 1 / (x + 1e-4)),
    unary("identity", X, lambda x: x),
    unary("cast", X * 3, lambda x: x.to(torch.int32), dtype="int32"),
    unary("clip", X, lambda x: x.clamp(-0.5, 1.0), alpha=f32(-0.5), beta=f32(1.0)),
    unary("threshold", X, lambda x: x.clamp(min=0.25), alpha=f32(0.25)),
]

ACTIVATIONS = [
    unary("relu", X, torch.relu),
    unary("relu6", X * 5, F.relu6),
    unary("sigmoid", X, torch.sigmoid),
    unary("silu", X, F.silu),
    unary("softplus", X * 20, F.softplus),
    unary("softsign", X, F.softsign),
    unary("elu", X, lambda x: F.elu(x, 0.7), alpha=f32(0.7)),
    unary("leaky_relu", X, lambda x: F.leaky_relu(x, 0.1), alpha=f32(0.1)),
    unary("gelu", X, F.gelu, mode="EXACT"),
    unary("gelu", X, lambda x: F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION"),
    unary("gelu", X, lambda x: x * torch.sigmoid(1.702 * x), mode="SIGMOID_APPROXIMATION"),
    unary("prelu", X, lambda x: F.prelu(x, torch.from_numpy(CHANNELS)), alpha=CHANNELS),
    unary("clamped_relu", X, lambda x: F.leaky_relu(x, 0.3).clamp(max=1.0), alpha=f32(0.3), beta=f32(1.0)),
    unary("linear_activation", X, lambda x: 1.5 * x - 0.25, alpha=f32(1.5), beta=f32(-0.25)),
    unary("scaled_tanh", X, lambda x: 1.5 * torch.tanh(0.5 * x), alpha=f32(1.5), beta=f32(0.5)),
    unary("sigmoid_hard", X, lambda x: (0.3 * x + 0.4).clamp(0, 1), alpha=f32(0.3), beta=f32(0.4)),
    unary("thresholded_relu", X, lambda x: F.threshold(x, 0.5, 0.0), alpha=f32(0.5)),
    unary("softmax", X, lambda x: torch.softmax(x, 1), axis=1),
    unary(
        "softplus_parametric",
        X,
        lambda x: torch.from_numpy(CHANNELS).view(1, 3, 1, 1) * F.softplus(x * 2),
        alpha=CHANNELS,
        beta=np.full(3, 2.0, np.float32),
    ),
]

A, B = floats(2, 3, 4), floats(3, 1)
WHOLE, DIVISOR = ints(2, 3, low=-7, high=8), ints(2, 3, low=1, high=4)


def binary(kind: str, function: Callable[..., torch.Tensor], x: np.ndarray = A, y: np.ndarray = B) -> Case:
    return Case(kind, {"x": x, "y": y}, lambda mb, x, y: getattr(mb, kind)(x=x, y=y), function, label=str(x.dtype))


def logical(kind: str, function: Callable[..., torch.Tensor]) -> Case:
    def build(mb: Any, x: Any, y: Any) -> Any:
        return getattr(mb, kind)(x=mb.cast(x=x, dtype="bool"), y=mb.cast(x=y, dtype="bool"))

    bits = {"x": ints(2, 3, high=2), "y": ints(2, 3, high=2)}
    return Case(kind, bits, build, lambda x, y: function(x.bool(), y.bool()).int())


BINARY = [
    binary("add", torch.add),
    binary("sub", torch.sub),
    binary("mul", torch.mul),
    binary("mul", torch.mul, WHOLE, DIVISOR),
    binary("real_div", torch.div, A, POSITIVE),
    binary("floor_div", lambda x, y: torch.floor(x / y), A, POSITIVE),
    binary("floor_div", lambda x, y: torch.div(x, y, rounding_mode="floor"), WHOLE, DIVISOR),
    binary("mod", torch.remainder, A, POSITIVE),
    binary("mod", torch.remainder, WHOLE, DIVISOR),
    binary("pow", torch.pow, POSITIVE, A),
    binary("maximum", torch.maximum, A, POSITIVE),
    binary("minimum", torch.minimum, A, POSITIVE),
    binary("equal", lambda x, y: x.eq(y).int(), DIVISOR, DIVISOR.T.reshape(2, 3)),
    binary("not_equal", lambda x, y: x.ne(y).int(), DIVISOR, DIVISOR.T.reshape(2, 3)),
    binary("greater", lambda x, y: x.gt(y).int()),
    binary("greater_equal", lambda x, y: x.ge(y).int()),
    binary("less", lambda x, y: x.lt(y).int()),
    binary("less_equal", lambda x, y: x.le(y).int()),
    logical("logical_and", torch.logical_and),
    logical("logical_or", torch.logical_or),
    logical("logical_xor", torch.logical_xor),
    Case(
        "logical_not",
        {"x": ints(2, 3, high=2)},
        lambda mb, x: mb.logical_not(x=mb.cast(x=x, dtype="bool")),
        lambda x: x.bool().logical_not().int(),
    ),
    Case(
        "select",
        {"c": ints(2, 3, 4, high=2), "a": A, "b": POSITIVE},
        lambda mb, c, a, b: mb.select(cond=mb.cast(x=c, dtype="bool"), a=a, b=b),
        lambda c, a, b: torch.where(c.bool(), a, b),
    ),
]


def reduction(kind: str, function: Callable[[torch.Tensor], torch.Tensor], array: np.ndarray = X) -> list[Case]:
    def kept(mb: Any, x: Any) -> Any:
        return getattr(mb, kind)(x=x, axes=[-1, 1], keep_dims=True)

    def gone(mb: Any, x: Any) -> Any:
        return getattr(mb, kind)(x=x, axes=[1, 3], keep_dims=False)

    return [
        Case(kind, {"x": array}, kept, lambda x: function(x)[:, None, :, None], label="kept"),
        Case(kind, {"x": array}, gone, function, label="gone"),
    ]


WIDE = floats(2, 3, 4, 5, low=0.1, high=2.0)
TIED = np.array([[1, 3, 3, 2], [5, 5, 0, 0]], np.float32)

REDUCTIONS = [
    *reduction("reduce_sum", lambda x: x.sum((1, 3))),
    *reduction("reduce_mean", lambda x: x.mean((1, 3))),
    *reduction("reduce_max", lambda x: x.amax((1, 3))),
    *reduction("reduce_min", lambda x: x.amin((1, 3))),
    *reduction("reduce_prod", lambda x: x.prod(3).prod(1)),
    *reduction("reduce_l1_norm", lambda x: x.abs().sum((1, 3))),
    *reduction("reduce_l2_norm", lambda x: x.square().sum((1, 3)).sqrt()),
    *reduction("reduce_sum_square", lambda x: x.square().sum((1, 3))),
    *reduction("reduce_log_sum", lambda x: x.sum((1, 3)).log(), WIDE),
    *reduction("reduce_log_sum_exp", lambda x: torch.logsumexp(x, (1, 3))),
    unary("reduce_argmax", TIED, lambda x: torch.tensor([1, 0]), axis=1, keep_dims=False),
    unary("reduce_argmin", TIED, lambda x: torch.tensor([[0], [2]]), axis=-1, keep_dims=True),
    unary("argsort", X, lambda x: torch.argsort(x, 1, descending=True), axis=1),
    unary("cumsum", X, lambda x: torch.cumsum(x, 1), axis=1),
    Case(
        "cumsum",
        {"x": X},
        lambda mb, x: mb.cumsum(x=x, axis=2, exclusive=True, reverse=True),
        lambda x: x.flip(2).cumsum(2).flip(2) - x,
        label="exclusive-reverse",
    ),
    Case(
        "topk",
        {"x": X},
        lambda mb, x: mb.topk(x=x, k=2, axis=3),
        lambda x: tuple(torch.topk(x, 2, 3)),
    ),
    Case(
        "topk",
        {"x": X},
        lambda mb, x: mb.topk(x=x, k=3, axis=2, ascending=True, return_indices=False),
        lambda x: torch.topk(x, 3, 2, largest=False).values,
        label="smallest",
    ),
    unary("non_zero", np.array([[0, 2, 0], [3, 0, 1]], np.float32), torch.nonzero),
]

CASES = [*UNARY, *ACTIVATIONS, *BINARY, *REDUCTIONS]
