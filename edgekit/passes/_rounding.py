"""Rounding of one layer's weights, up or down, learned so that its results stay: AdaRound's optimization.

A layer is taken as the product of rows of data and a matrix for each group of channels: for a convolution a row is the
patch under its window. Rows are sampled, so that a step costs the same for large images as for small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA
from edgekit.passes._training.levels import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.passes._graph import Layer

_STRETCH, _BELOW = 1.2, -0.1
"""The rectified sigmoid of the paper reaches 0 and 1 in finite steps."""
_EDGE = 1e-4
_WARM_UP = 0.2
"""The share of steps that only reconstruct, before weights are pushed up or down."""
_SHARPEST, _BLUNTEST = 2.0, 20.0
_PUSH = 0.01
_ROWS_A_STEP = 256
_ELEMENTWISE = {"relu", "relu_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "gelu", "silu", "silu_"}
_ELEMENTWISE |= {"hardswish", "hardswish_", "sigmoid", "tanh", "elu"}


@dataclass(frozen=True)
class Rows:
    """What a layer multiplies, and what it should give.

    Attributes:
        data: As the layers before it make it now, shape (groups, rows, weights of one output channel).
        wanted: The float layer's results without its bias, shape (groups, rows, output channels of a group).
        bias: Shape (groups, 1, output channels of a group).
        activation: What follows the layer, element by element.
    """

    data: Any
    wanted: Any
    bias: Any
    activation: Callable[[Any], Any]


def activation_after(node: Any) -> Callable[[Any], Any]:
    """The activation function that alone reads a layer's results; the identity where there is none."""
    readers = list(node.users)
    if len(readers) == 1 and readers[0].op == "call_function":
        (reader,) = readers
        name = str(reader.target).split(".")
        if name[0] == "aten" and name[1] in _ELEMENTWISE and reader.args[0] is node:
            rest, keywords = reader.args[1:], reader.kwargs
            # A copy: some of them work in place.
            return lambda value: reader.target(value.clone(), *rest, **keywords)
    return lambda value: value


def can_be_rows(layer: Layer) -> bool:
    """Whether a layer's data can be laid out as rows: all but transposed and three-dimensional convolutions."""
    return layer.kind == "linear" or (layer.kind == "conv" and "conv3d" not in str(layer.node.target))


def rows_of(layer: Layer, value: Any, shape: tuple[int, ...]) -> Any:
    """A layer's data as rows (groups, rows, weights of one output channel).

    Args:
        layer: A linear layer or a convolution.
        value: What it multiplies.
        shape: Of its weight.
    """
    torch = require("torch", TORCH_EXTRA, "learned rounding")
    if layer.kind == "linear":
        return value.reshape(1, -1, shape[-1])
    dimensions = len(shape) - 2
    value = value if value.dim() == len(shape) else value.unsqueeze(0)
    stride, padding, dilation = _window(layer, dimensions)
    before = [(step * (size - 1)) // 2 for step, size in zip(dilation, shape[2:], strict=True)]
    if padding == "same":
        sides = [(low, step * (size - 1) - low) for low, step, size in zip(before, dilation, shape[2:], strict=True)]
    else:
        sides = [(amount, amount) for amount in ([0] * dimensions if padding == "valid" else padding)]
    value = torch.nn.functional.pad(value, [amount for side in reversed(sides) for amount in side])
    kernel = list(shape[2:])
    if dimensions == 1:
        value, kernel, stride, dilation = value.unsqueeze(2), [1, *kernel], [1, *stride], [1, *dilation]
    patches = torch.nn.functional.unfold(value, kernel, dilation=dilation, stride=stride)
    split = patches.reshape(patches.shape[0], layer.groups, -1, patches.shape[-1])
    return split.permute(1, 0, 3, 2).reshape(layer.groups, -1, split.shape[2])


def _window(layer: Layer, dimensions: int) -> tuple[list[int], Any, list[int]]:
    given = dict(zip(("stride", "padding", "dilation"), layer.node.args[3:6], strict=False)) | layer.node.kwargs

    def each(name: str, default: int) -> list[int]:
        value = given.get(name, default)
        values = [value] if isinstance(value, int) else list(value)
        return values * dimensions if len(values) == 1 else values

    padding = given.get("padding", 0)
    return each("stride", 1), padding if isinstance(padding, str) else each("padding", 0), each("dilation", 1)


def grouped(weight: Any, groups: int) -> Any:
    """A weight (out, in of a group, …) as (groups, out of a group, weights of one output channel)."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def learn(
    rows: Rows, weight: Any, scale: Any, levels: tuple[float, ...], steps: int, rate: float, generator: Any
) -> tuple[Any, bool]:
    """Levels that keep the layer's results best, and whether learning beat rounding to nearest.

    Args:
        rows: The layer's data and wanted results.
        weight: Float weights, shape (groups, out, weights of one output channel).
        scale: Of each output channel, shape (groups, out, 1).
        levels: The grid's levels, ascending by 1.
        steps: Of the optimizer.
        rate: Its learning rate.
        generator: Draws the rows of each step.
    """
    torch = require("torch", TORCH_EXTRA, "learned rounding")
    place = (weight / scale).clamp(levels[0], levels[-1])
    low = ((place - levels[0]).floor() + levels[0]).clamp(max=levels[-2])
    choice = torch.logit(((place - low - _BELOW) / _STRETCH).clamp(_EDGE, 1 - _EDGE)).requires_grad_(True)
    optimizer = torch.optim.Adam([choice], lr=rate, fused=True)
    wanted = rows.activation(rows.wanted + rows.bias)
    # Of the results, so that the push to either side weighs the same in every layer.
    power = float(wanted.var(dim=1, correction=0).mean()) or 1.0
    count = rows.data.shape[1]
    size = min(_ROWS_A_STEP, count)
    for step in range(steps):
        taken = torch.randint(0, count, (size,), generator=generator)
        data = rows.data[:, taken]
        with torch.no_grad():
            soft = torch.sigmoid(choice)
            up = (soft * _STRETCH + _BELOW).clamp_(0.0, 1.0)
            now = torch.bmm(data, ((low + up) * scale).transpose(1, 2))
        by_result = _slope(rows, now, wanted[:, taken]) / (size * power)
        with torch.no_grad():
            # By hand: automatic differentiation takes three times as long for so many weights.
            slope = torch.bmm(by_result.transpose(1, 2), data).mul_(scale)
            progress = (step / steps - _WARM_UP) / (1 - _WARM_UP)
            if progress > 0:
                exponent = _SHARPEST + (_BLUNTEST - _SHARPEST) * (1 - progress)
                side = 2 * up - 1
                slope -= side.abs().pow_(exponent - 1).copysign_(side).mul_(2 * _PUSH * exponent)
            choice.grad = slope.mul_(soft * (1 - soft)).mul_((up > 0) & (up < 1)).mul_(_STRETCH)
        optimizer.step()
    # The rectified sigmoid is a half where the sigmoid is.
    learned, plain = low + (choice.detach() >= 0).to(weight.dtype), nearest(weight / scale, levels)
    better = error_of(rows, scale * learned) < error_of(rows, scale * plain)
    return (learned, True) if better else (plain, False)


def _slope(rows: Rows, now: Any, wanted: Any) -> Any:
    """How the summed squared error after the activation function grows with each result before it."""
    torch = require("torch", TORCH_EXTRA, "learned rounding")
    now.requires_grad_(True)
    error = ((rows.activation(now + rows.bias) - wanted) ** 2).sum()
    (found,) = torch.autograd.grad(error, now)
    return found


def error_of(rows: Rows, weight: Any) -> float:
    """Mean squared error of a layer's results after the activation function, over all rows."""
    torch = require("torch", TORCH_EXTRA, "learned rounding")
    with torch.no_grad():
        now = rows.activation(torch.bmm(rows.data, weight.transpose(1, 2)) + rows.bias)
        return float(((now - rows.activation(rows.wanted + rows.bias)) ** 2).mean())


def bias_shift(rows: Rows, weight: Any) -> Any:
    """What the bias has to gain for each output channel's mean to stay, shape (output channels,)."""
    return (rows.wanted.mean(dim=1) - (rows.data.mean(dim=1, keepdim=True) @ weight.transpose(1, 2))[:, 0]).flatten()
