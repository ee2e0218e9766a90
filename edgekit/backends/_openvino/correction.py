"""Layers of a quantized model corrected one after the other on calibration examples, and what was found for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.layers import Layer, layers_of
from edgekit.backends._openvino.observation import Observation, source_of
from edgekit.backends._openvino.runtime import Example, opset
from edgekit.backends._openvino.stepwise import Stepwise, mean_of, second_moment
from edgekit.backends._openvino.storage import Stored
from edgekit.backends._quantize.sequential import correct_layers

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats

_MOST = 32
"""Examples are kept as floats, for every tensor that is still to be read: more of them hardly move a mean."""

Key = tuple[str, int]


@dataclass
class Corrections:
    """What layers have, by key.

    Attributes:
        weights: Their weights.
        biases: Their biases, for those that were corrected.
    """

    weights: dict[Key, Stored]
    biases: dict[Key, Floats] = field(default_factory=dict)

    def put(self, model: Any) -> None:
        """Have the layers of a copy of the model take these."""
        for layer in list(layers_of(model)):
            if layer.key in self.weights:
                self.weights[layer.key].put(layer)
            if layer.key in self.biases:
                layer.set_bias(self.biases[layer.key])


def linear_sources(model: Any) -> set[tuple[str, int]]:
    """What makes the data of the layers that can be corrected."""
    return {source_of(layer.data) for layer in layers_of(model) if layer.is_linear}


def some_of(examples: Sequence[Example]) -> list[Example]:
    """As many as corrections need, from all over."""
    import numpy as np

    places = np.linspace(0, len(examples) - 1, min(_MOST, len(examples))).round().astype(int)
    return [examples[place] for place in places]


def corrected(
    model: Any, plain: Any, weights: Mapping[Key, Stored], observed: Observation, examples: Sequence[Example]
) -> Corrections:
    """Weights rounded anew for the data that they meet, and biases that keep every layer's mean.

    Args:
        model: The model with quantized activations, where it has any, and float weights; it stays as it is.
        plain: The float model, with the same layers by key.
        weights: The weights to begin with, by layer; others stay float.
        observed: Means of the data of the float model's layers on the same examples.
        examples: The examples.
    """
    copy, twins = model.clone(), {layer.key: layer for layer in layers_of(plain.clone())}
    found = Corrections(dict(weights))
    for layer in list(layers_of(copy)):
        if layer.key in weights and layer.is_linear:
            # An addition has to be there before the operators are put in order.
            layer.set_bias(layer.bias())
    layers = []
    steps = Stepwise(copy, examples)
    known: dict[tuple[str, bytes], Stored] = {}
    for layer in list(layers_of(copy)):
        if layer.key not in weights:
            continue
        values = layer.shaped(weights[layer.key].values()).astype("float32")
        layer.set_weights(opset().constant(values).output(0))
        twin = twins[layer.key]
        mean = observed.means.get(source_of(twin.data))
        if layer.is_linear and mean is not None:
            layers.append(_Step(layer, twin, mean, steps, found, known))
    correct_layers(_reached(layers, steps))
    return found


def _reached(layers: Sequence[_Step], steps: Stepwise) -> Iterator[_Step]:
    """Those whose data come from the examples."""
    for layer in layers:
        steps.run_to(layer.layer.node)
        if steps.knows(layer.layer.node):
            yield layer


@dataclass
class _Step:
    """A layer as `edgekit.backends._quantize.sequential` sees it."""

    layer: Layer
    twin: Layer
    mean: Floats
    steps: Stepwise
    found: Corrections
    known: dict[tuple[str, bytes], Stored]

    def arrive(self) -> None:
        self.steps.run_to(self.layer.node)

    def second_moment(self) -> Floats | None:
        if self.stored.fixed or not self.layer.is_product:
            return None
        return second_moment(self.steps.data(self.layer.node), self.layer.data_axis)

    @property
    def stored(self) -> Stored:
        return self.found.weights[self.layer.key]

    def round_weights(self, moment: Floats) -> None:
        # Layers that share their weights keep sharing them, as the first of them meets its data.
        share = (self.layer.constant.get_friendly_name(), self.stored.codes.tobytes())
        if share not in self.known:
            self.known[share] = self.stored.rounded_anew(self.layer.rows(), moment)
        self.found.weights[self.layer.key] = self.known[share]

    def expected(self) -> Floats:
        return self.twin.bias() + self.twin.mean_result(self.mean, self.twin.rows())

    def present(self) -> Floats:
        rows = self.stored.values()
        self.layer.set_weights(opset().constant(self.layer.shaped(rows).astype("float32")).output(0))
        # Run as its twin: the layer itself has to stay where it is.
        return self.twin.mean_result(mean_of(self.steps.data(self.layer.node)), rows)

    def set_bias(self, bias: Floats) -> None:
        self.layer.set_bias(bias)
        self.found.biases[self.layer.key] = bias
