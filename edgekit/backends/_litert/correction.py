"""Layers of a quantized file corrected one after the other: `edgekit.backends._quantize.sequential` says how and why."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example
from edgekit.backends._litert.fourbits import least_error_steps
from edgekit.backends._litert.layers import LinearLayer, linear_layers
from edgekit.backends._litert.observation import Observation
from edgekit.backends._litert.stepwise import Stepwise
from edgekit.backends._quantize import sequential
from edgekit.backends._quantize.rounding import rounded

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

_FOUR = 4
_MORE_DAMPING = 0.2
"""On top of what `rounded` has: at 4 bits errors are large, and what it makes good for them fits few photos."""


def correct_layers(
    quantized: Any,
    plain: Any,
    observed: Observation,
    samples: Mapping[str, Sequence[Example]],
    frozen: Collection[str] = (),
) -> int:
    """Round the weights and correct the biases of all layers with quantized weights, in place; how many there are.

    What stands inside a loop stays as it is.

    Args:
        quantized: The quantized model.
        plain: The float model that it was made from.
        observed: Means of the float model's tensors on the same examples.
        samples: Examples by signature.
        frozen: Results of layers whose weights stay as they are; their biases do not.
    """
    known: dict[str, tuple[Array, Floats]] = {}

    def layers() -> Iterator[_Step]:
        for signature in quantized.signatureDefs:
            place = int(signature.subgraphIndex)
            steps = Stepwise(quantized, signature, samples[flatbuffer.text(signature.signatureKey)])
            twins = {twin.result_name: twin for _, twin in linear_layers(plain, plain.subgraphs[place])}
            for index, layer in linear_layers(quantized, quantized.subgraphs[place]):
                twin = twins.get(layer.result_name)
                if twin is None or not (layer.has_weights and twin.has_weights and (layer.is_8_bit or layer.is_float)):
                    continue
                if twin.data_name in observed.means:
                    fixed = layer.result_name in frozen
                    yield _Step(index, layer, twin, observed.means[twin.data_name], steps, fixed, known)

    return sequential.correct_layers(layers())


@dataclass
class _Step:
    """A layer as `sequential` sees it; `known` has the roundings of weights that signatures share."""

    index: int
    layer: LinearLayer
    twin: LinearLayer
    mean: Floats
    steps: Stepwise
    fixed: bool
    known: dict[str, tuple[Array, Floats]]

    @cached_property
    def weights(self) -> Floats:
        return self.twin.weights()

    @cached_property
    def key(self) -> str:
        # As the layer arrives: having its rounding changes its steps.
        return _digest(self.weights, self.layer.steps())

    def arrive(self) -> None:
        self.steps.run_to(self.index)
        if self.layer.is_8_bit:
            self.layer.coarsen(self.weights, self.twin.bias())

    def second_moment(self) -> Floats | None:
        if self.fixed or not self.layer.is_product:
            return None
        if self.key in self.known:
            # Those of the first signature are rounded, and the others have the same.
            self._have(self.known[self.key])
            return None
        return self.steps.second_moment(self.layer.data)

    def round_weights(self, moment: Floats) -> None:
        found = _rounded(self.layer, self.weights, moment)
        self.known[self.key] = found
        self._have(found)

    def _have(self, found: tuple[Array, Floats]) -> None:
        if self.layer.stored_bits == _FOUR:
            self.layer.put(*found)
        else:
            self.layer.store(found[0])

    def expected(self) -> Floats:
        return self.twin.bias() + self.twin.mean_result(self.mean, self.weights)

    def present(self) -> Floats:
        return self.twin.mean_result(self.steps.mean(self.layer.data), self.layer.weights())

    def set_bias(self, bias: Floats) -> None:
        self.layer.set_bias(bias)


def _rounded(layer: LinearLayer, weights: Floats, moment: Floats) -> tuple[Array, Floats]:
    """Whole numbers in the shape of the weights, and the step of each output channel."""
    import numpy as np

    products, steps = weights.reshape(len(weights), -1), layer.steps()
    if layer.stored_bits == _FOUR:
        power = np.diag(moment)
        steps = least_error_steps(products, power)
        moment = moment + np.eye(len(moment)) * (_MORE_DAMPING * float(power.mean()))
    found = rounded(products, steps, moment, layer.largest)
    return found.reshape(weights.shape).astype(np.int8), np.asarray(steps, np.float64)


def _digest(*arrays: Array) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()
