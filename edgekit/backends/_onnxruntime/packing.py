"""Which codes the weights of a float graph are stored as; calibration examples help, where given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.biases import Bias, Weights
from edgekit.backends._onnxruntime.graph import EXTRA, WHY
from edgekit.backends._onnxruntime.stepwise import Stepwise, observe, outputs
from edgekit.backends._onnxruntime.storage import Stored
from edgekit.backends._quantize import levels
from edgekit.backends._quantize.judging import best_of, decibels
from edgekit.backends._quantize.sequential import correct_layers
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.backends._onnxruntime.layers import Layer
    from edgekit.backends._onnxruntime.stepwise import Example
    from edgekit.backends._quantize.levels import Codebook, Codes
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

_EIGHT, _FOUR = 127, 7
FEW: Mapping[str, int] = {"weight_only_wi4_afp32": 4, "palette_4": 4, "palette_2": 2, "palette_1": 1}
"""Schemes of fewer than 8 bits, and how many they have."""
_KEPT = 0.1
"""Small layers, together at most this share of the weights, keep 8 bits: the stem and the first blocks are among them,
lose most at 4 bits and save least."""
Fixed = Mapping[str, "tuple[Codebook, Codes]"]
"""Weights that training has put on a grid, by initializer."""


def keep_small(found: Mapping[str, Layer], chosen: Mapping[str, str], fixed: Fixed, named: frozenset[str]) -> set[str]:
    """Weights that keep 8 bits though the scheme has fewer.

    Where training has put weights on a grid, those that it has left out; else the small ones and depthwise convolutions.

    Args:
        found: A layer of each weight.
        chosen: The scheme of each weight.
        fixed: Those on a grid.
        named: Those whose scheme an override names: they get what is asked for.
    """
    few = [name for name, scheme in chosen.items() if scheme in FEW and name not in fixed and name not in named]
    if any(scheme in FEW and name in fixed for name, scheme in chosen.items()):
        return set(few)
    depthwise = {name for name in few if found[name].node.op_type == "Conv" and found[name].shape[1] == 1}
    total = sum(math.prod(found[name].shape) for name in few)
    kept, taken = set(depthwise), 0
    for name in sorted(few, key=lambda one: (math.prod(found[one].shape), one)):
        taken += math.prod(found[name].shape)
        if taken > _KEPT * total:
            break
        kept.add(name)
    # Of a network with one layer that is the layer meant.
    return kept if len(kept) < len(few) else set()


def stored_as(layer: Layer, weight: Array, scheme: str, block: int | None, fixed: Fixed) -> Stored:
    """The nearest codes of a weight under a scheme."""
    rows = layer.rows(weight)
    if scheme == "float16":
        return Stored(layer, None, None)
    if layer.weight in fixed:
        book, codes = fixed[layer.weight]
        return Stored(layer, book, codes, fixed=True)
    if scheme.startswith("palette"):
        book = levels.palette(rows, FEW[scheme])
    elif scheme == "weight_only_wi4_afp32":
        book = levels.even(rows, _FOUR, block, clip=True)
    else:
        book = levels.even(rows, _EIGHT)
    return Stored(layer, book, book.codes(rows))


def apply(model: Any, stored: Mapping[str, Stored], plain: Any) -> None:
    """Give a float model the weights that are stored, as real numbers, in place."""
    mine, theirs = Weights(model), Weights(plain)
    for name, one in stored.items():
        mine[name] = one.weight(theirs[name])


def corrected(
    plain: Any,
    found: Sequence[Layer],
    nearest: Mapping[str, Stored],
    samples: tuple[Sequence[Example], Sequence[Example]],
    scheme: str,
) -> tuple[Any, Mapping[str, Stored], str]:
    """Weights rounded and biases set for data, if that brings the outputs closer on examples that did not set them.

    Args:
        plain: The float model.
        found: Its layers, in its order.
        nearest: The nearest codes by initializer.
        samples: Examples that set, and examples that judge.
        scheme: The scheme's name.

    Returns:
        A float model with the weights as real numbers and its biases, the codes, and which candidate it is.
    """
    onnx = require("onnx", EXTRA, WHY)
    fitting, judging = samples
    first, second = onnx.ModelProto(), onnx.ModelProto()
    first.CopyFrom(plain)
    second.CopyFrom(plain)
    apply(first, nearest, plain)
    apply(second, nearest, plain)
    changed = {name: Stored(one.layer, one.book, one.codes, one.fixed) for name, one in nearest.items()}
    linear = [layer for layer in found if layer.is_linear and layer.weight in changed]
    means = observe(plain, fitting, (), {layer.node.input[0] for layer in linear}).means
    correct_layers(_packed_layers(plain, second, linear, changed, means, fitting))
    candidates = {"the nearest weights": (first, nearest), "rounding by GPTQ and corrected biases": (second, changed)}
    wanted = outputs(plain, judging)
    ratios = {name: decibels(outputs(model, judging), wanted) for name, (model, _) in candidates.items()}
    best, said = best_of(ratios, scheme, len(judging))
    return *candidates[best], said


def _packed_layers(
    plain: Any,
    model: Any,
    linear: Sequence[Layer],
    stored: dict[str, Stored],
    means: Mapping[str, Floats],
    samples: Sequence[Example],
) -> Iterator[_PackedLayer]:
    steps = Stepwise(model, samples)
    own, theirs = Weights(model), Weights(plain)
    order = {node.output[0]: place for place, node in enumerate(model.graph.node)}
    rounded: set[str] = set()
    for layer in linear:
        place = order[layer.node.output[0]]
        bias = Bias(model, own, model.graph.node[place], layer)
        wanted = Bias(plain, theirs, layer.node, layer)
        if bias.can_be_set or layer.can_be_rounded:
            found = _PackedLayer(layer, steps, place, (bias, wanted), (own, theirs))
            found.stored, found.mean, found.rounded = stored, means[layer.node.input[0]], rounded
            yield found


class _PackedLayer:
    """A layer of a float graph with its stored weights as real numbers; see `sequential.Layer`.

    Attributes:
        stored: What is stored, by initializer.
        mean: The mean of the float layer's data.
        rounded: Weights that were rounded already.
    """

    stored: dict[str, Stored]
    mean: Floats
    rounded: set[str]

    def __init__(
        self, layer: Layer, steps: Stepwise, place: int, biases: tuple[Bias, Bias], weights: tuple[Weights, Weights]
    ) -> None:
        self._layer, self._steps, self._place = layer, steps, place
        self._bias, self._wanted = biases
        self._own, self._theirs = weights
        self._now: Floats | None = None

    def arrive(self) -> None:
        """See `sequential.Layer`."""
        self._steps.run_to(self._place)

    def second_moment(self) -> Floats | None:
        """See `sequential.Layer`; a weight that several layers share is rounded for the first of them."""
        one = self.stored[self._layer.weight]
        fresh = self._layer.weight not in self.rounded
        wanted = self._layer.can_be_rounded and one.book is not None and not one.fixed and fresh
        self._now, second = self._steps.moments(self._layer.node.input[0], self._layer.channel_axis, second=wanted)
        return second

    def round_weights(self, moment: Floats) -> None:
        """See `sequential.Layer`."""
        one = self.stored[self._layer.weight]
        if one.book is not None:
            plain = self._theirs[self._layer.weight]
            one.codes = levels.rounded_codes(self._layer.rows(plain), one.book, moment)
            self._own[self._layer.weight] = one.weight(plain)
            self.rounded.add(self._layer.weight)

    def expected(self) -> Floats:
        """See `sequential.Layer`."""
        if not self._bias.can_be_set:
            return self._wanted.value() * 0.0
        return self._layer.mean_result(self.mean, self._theirs[self._layer.weight].astype(float)) + self._wanted.value()

    def present(self) -> Floats:
        """See `sequential.Layer`."""
        if self._now is None or not self._bias.can_be_set:
            return self._wanted.value() * 0.0
        return self._layer.mean_result(self._now, self._own[self._layer.weight].astype(float))

    def set_bias(self, bias: Floats) -> None:
        """See `sequential.Layer`."""
        if self._bias.can_be_set:
            self._bias.set(bias)
