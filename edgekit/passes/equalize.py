"""Give the channels between two layers like ranges, so that one step size suits them all: cross-layer equalization.

A channel may be divided by any positive factor where it is made if the next layer multiplies by it, as long as what
lies between lets factors through. Both layers' ranges of a channel become their geometric mean: M. Nagel,
M. van Baalen, T. Blankevoort and M. Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.1::

    before   W1, b1 ──▶ relu ──▶ W2
    after    W1/s, b1/s ──▶ relu ──▶ W2·s        s = √(r1 / r2) for each channel

A depthwise convolution is in two such groups, which pull on each other: it goes round until all ranges rest. What the
model computes stays, but for rounding. ReLU6, hard-swish, GELU and their like let no factor through: layers around
them stay as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from edgekit.core.errors import PassError
from edgekit.core.extras import require
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Task
from edgekit.passes._equalizable import Group, groups_in
from edgekit.passes._graph import Layer, distance, shortened
from edgekit.passes.base import Pass, PassContext, PassResult

_SHOWN = 3
_TOLERANCE = 1e-3
"""Of the largest output: far above what rounding in another order does, far below a wrong factor."""
_AT_REST = 1e-3
"""A factor this near to 1 changes nothing any more."""
_OFF = 1e-5
"""A range this small beside the layer's largest is a channel that training has switched off: a factor for it would
make its bias, and with it the range of the activations, as large as the factor."""
_LARGEST = 100.0
"""The largest factor of a channel, for the same reason."""


@dataclass(frozen=True)
class EqualizeOptions:
    """Options of `equalize`.

    Attributes:
        iterations: The largest number of rounds over all groups of layers; it ends sooner where nothing moves any more.

    Raises:
        ValueError: Fewer than one; a recipe's error says the line.
    """

    iterations: int = 50

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is at least 1, not {self.iterations}")


class Equalize(Pass):
    """Equalizes the ranges of the channels between layers; what the model computes stays."""

    summary: ClassVar[str] = "give the channels between layers like ranges (cross-layer equalization)"
    Options: ClassVar[type[Any]] = EqualizeOptions
    after: ClassVar[tuple[str, ...]] = ("fold_batch_norm",)
    before: ClassVar[tuple[str, ...]] = ("quantize_aware", "learned_rounding")

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`."""
        program = model.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        groups = groups_in(program)
        able = [group for group in groups if not group.reason]
        left = [f"'{group.producers[0].path}' stays: {group.reason}" for group in groups if group.reason]
        if not able:
            return PassResult(
                model, False, ("there are no layers to equalize", *shortened(left, _SHOWN, "stay for like reasons"))
            )
        ranges = _Ranges(program, able)
        before = ranges.unevenness()
        rounds = ranges.equalize(self.options.iterations)
        module = copy.deepcopy(program.module)
        ranges.store(module)
        equalized = program.with_module(module.eval())
        count = len({layer.path for group in able for layer in _members(group)})
        uneven = f"{before:.3g} before, {ranges.unevenness():.3g} after"
        notes = (
            f"{len(able)} groups of {count} layers equalized in {rounds} rounds",
            f"largest over smallest range of a layer's channels, on average: {uneven}",
            f"the outputs for the example inputs moved by {distance(program, equalized)[1]:.1e} of the largest",
            *shortened(left, _SHOWN, "stay for like reasons"),
        )
        return PassResult(replace(model, program=equalized, digest=equalized.digest()), True, notes)

    def ensures(self, before: Model, after: Model) -> None:
        """See `Pass.ensures`; equalizing must not change what the model computes, for noise either."""
        super().ensures(before, after)
        for inputs in (None, _noise(before)):
            name, apart = distance(before.program, after.program, inputs)
            if not apart <= _TOLERANCE:
                raise PassError(
                    f"Equalizing changed the output '{name}' by {apart:.3g} of its largest value.",
                    "Leave out equalize for this model.",
                )

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`; only values change."""
        return module


def _members(group: Group) -> list[Layer]:
    return [*group.producers, *(layer for layer, _ in group.consumers)]


def _noise(model: Model) -> dict[str, Any]:
    """Example inputs with noise in the place of real numbers: examples of zeros would show little."""
    import numpy as np

    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(value.shape).astype(value.dtype) if value.dtype.kind == "f" else value
        for name, value in model.example_inputs.items()
    }


class _Ranges:
    """Weights and biases while they are equalized, in double precision.

    Args:
        program: The program that they are of; it stays.
        groups: The layers that share factors.
    """

    def __init__(self, program: TorchProgram, groups: Sequence[Group]) -> None:
        self._torch = require("torch", TORCH_EXTRA, "the pass equalize")
        self._groups = groups
        parameters = dict(program.module.named_parameters())
        names = {name for group in groups for layer in _members(group) for name in (layer.weight, layer.bias) if name}
        self._values = {name: parameters[name].detach().double() for name in sorted(names)}
        self._factors = [self._torch.ones_like(self._made(group.producers[0])) for group in groups]

    def equalize(self, iterations: int) -> int:
        """Go round until nothing moves any more; how often."""
        for turn in range(1, iterations + 1):
            moved = max(self._level(place) for place in range(len(self._groups)))
            if moved < _AT_REST:
                return turn
        return iterations

    def unevenness(self) -> float:
        """The largest range of a layer's channels over the smallest, on (geometric) average over the layers."""
        spans = [span for group in self._groups for span in (*map(self._made, group.producers), *self._taken(group))]
        logs = [float((span.max() / alive.min()).log()) for span in spans if len(alive := span[_alive(span)])]
        return math.exp(sum(logs) / len(logs)) if logs else 1.0

    def store(self, module: Any) -> None:
        """Put the values into a module of the same structure."""
        with self._torch.no_grad():
            for name, value in self._values.items():
                module.get_parameter(name).copy_(value)

    def _level(self, place: int) -> float:
        """Move one group's factors to where both sides' ranges are the same; the largest step, as a logarithm."""
        torch, group, factors = self._torch, self._groups[place], self._factors[place]
        made = torch.stack([self._made(layer) for layer in group.producers]).amax(dim=0)
        taken = torch.stack(self._taken(group)).amax(dim=0)
        able = _alive(made) & _alive(taken)
        wished = torch.where(able, (made / torch.where(able, taken, 1.0)).sqrt(), 1.0)
        step = torch.where(able, (factors * wished).clamp(1 / _LARGEST, _LARGEST) / factors, 1.0)
        self._factors[place] = factors * step
        for layer in group.producers:
            shape = [1] * self._values[layer.weight].dim()
            shape[layer.axis] = -1
            self._values[layer.weight] = self._values[layer.weight] / step.reshape(shape)
            if layer.bias is not None:
                self._values[layer.bias] = self._values[layer.bias] / step
        for layer, repeat in group.consumers:
            self._multiply(layer, step.repeat_interleave(repeat))
        return float(step.log().abs().max())

    def _made(self, layer: Layer) -> Any:
        """The range of each output channel's weights."""
        weight = self._values[layer.weight].abs().transpose(0, layer.axis)
        return weight.reshape(weight.shape[0], -1).amax(dim=1)

    def _taken(self, group: Group) -> list[Any]:
        """The range of the weights of each input channel, for each consumer."""
        found = []
        for layer, repeat in group.consumers:
            weight = self._values[layer.weight].abs()
            if layer.kind == "transposed":
                span = weight.reshape(weight.shape[0], -1).amax(dim=1)
            else:
                parts = weight.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
                span = parts.amax(dim=(1, 3)).flatten()
            found.append(span.reshape(-1, repeat).amax(dim=1))
        return found

    def _multiply(self, layer: Layer, factors: Any) -> None:
        """Multiply the weights of each input channel."""
        weight = self._values[layer.weight]
        if layer.kind == "transposed":
            spread = factors.reshape(-1, *[1] * (weight.dim() - 1))
        else:
            spread = factors.reshape(layer.groups, -1).repeat_interleave(weight.shape[0] // layer.groups, dim=0)
            spread = spread.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
        self._values[layer.weight] = weight * spread


def _alive(span: Any) -> Any:
    """Which channels training has not switched off."""
    return span > _OFF * span.max()
