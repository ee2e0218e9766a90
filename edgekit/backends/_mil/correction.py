"""Layers of a simulated ML Program as the sequential correction sees them (`_quantize.sequential`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil.compressed import Compressed, Palette, fitted
from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.backends._mil.program import Block, Operation, Reference
from edgekit.backends._mil.simulation import Stepwise, source_of

if TYPE_CHECKING:
    from edgekit.backends._mil.weights import Weight
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

KINDS = ("conv", "conv_transpose", "linear")
"""Operators that add a bias to something linear in their data."""
_WIDEST = 4096
_BIAS = "_corrected_bias"


def corrected_operations(block: Block, stored: Mapping[str, Compressed]) -> list[Operation]:
    """The operations of a block whose weights are stored in fewer bits and whose bias can make good for it."""
    return [
        operation
        for operation in block.operations
        if operation.kind in KINDS and source_of(operation, "weight") in stored and source_of(operation, "x")
    ]


class Correction:
    """The correction of one simulated program.

    Args:
        plain: The float program.
        simulated: The block with pairs in it.
        weights: The weights by name.
        stored: How they are stored, by name.
        fixed: Names of weights whose rounding is not to be changed.
        means: Means of what the float program's layers take, by value.
    """

    def __init__(
        self,
        plain: ReferenceEvaluator,
        simulated: Block,
        weights: Mapping[str, Weight],
        stored: Mapping[str, Compressed],
        fixed: set[str],
        means: Mapping[str, Floats],
    ) -> None:
        self.plain, self.weights, self.means = plain, weights, means
        self.stored = dict(stored)
        self.fixed = set(fixed)
        self.biases: dict[str, Array] = {}
        self.originals = {
            one.outputs[0].name: one for one in corrected_operations(plain.package.function.block, stored)
        }
        named = (
            replace(one, inputs={**one.inputs, "bias": (Reference(one.outputs[0].name + _BIAS),)})
            if one.outputs and one.outputs[0].name in self.originals
            else one
            for one in simulated.operations
        )
        self.evaluator = plain.with_block(replace(simulated, operations=tuple(named)))
        for name, original in self.originals.items():
            self.evaluator.set_constant(name + _BIAS, self.bias_of(original))
        for name, form in stored.items():
            self.evaluator.set_constant(name, form.dense())

    def layers(self, steps: Stepwise) -> Iterator[Layer]:
        """The layers in the order in which they are computed."""
        for place, operation in enumerate(self.evaluator.package.function.block.operations):
            if operation.outputs and operation.outputs[0].name in self.originals:
                yield Layer(self, steps, place, operation)

    def bias_of(self, original: Operation) -> Array:
        """A layer's bias in the float program; zeros where it has none."""
        import numpy as np

        weight = self.weights[source_of(original, "weight")]
        if "bias" in original.inputs:
            found: Array = self.plain.constant_of(original, "bias").numpy()
            return found.astype(weight.value.dtype)
        channels = _channels(original)
        return np.zeros(int(original.outputs[0].type.shape[channels] or 0), weight.value.dtype)


class Layer:
    """One layer; see `edgekit.backends._quantize.sequential.Layer`."""

    def __init__(self, whole: Correction, steps: Stepwise, place: int, operation: Operation) -> None:
        self._whole, self._steps, self._place, self._operation = whole, steps, place, operation
        self._original = whole.originals[operation.outputs[0].name]
        self._name = source_of(operation, "weight")
        self._data = source_of(operation, "x")

    def arrive(self) -> None:
        """See `sequential.Layer`."""
        self._steps.run_to(self._place)

    def second_moment(self) -> Floats | None:
        """See `sequential.Layer`."""
        stored, value = self._whole.stored[self._name], self._whole.weights[self._name].value
        is_product = self._operation.kind == "linear" or (
            self._operation.kind == "conv" and self._grouped() == 1 and value[0, 0].size == 1
        )
        has_scales = isinstance(stored, Palette) and stored.scale is not None
        if not is_product or has_scales or self._name in self._whole.fixed or value[0].size > _WIDEST:
            return None
        return self._steps.second_moment(self._data, _channels(self._operation))

    def round_weights(self, moment: Floats) -> None:
        """See `sequential.Layer`."""
        value = self._whole.weights[self._name].value
        self._whole.stored[self._name] = fitted(self._whole.stored[self._name], value, moment)
        self._whole.evaluator.set_constant(self._name, self._whole.stored[self._name].dense())
        # A second layer that shares the weights takes them as they are now.
        self._whole.fixed.add(self._name)

    def expected(self) -> Floats:
        """See `sequential.Layer`."""
        import numpy as np

        mean = np.asarray(self._whole.means[source_of(self._original, "x")], np.float32)
        return self._mean_result(self._whole.plain, self._original, {"x": mean})

    def present(self) -> Floats:
        """See `sequential.Layer`."""
        return self._mean_result(
            self._whole.evaluator, self._operation, {"x": self._steps.mean(self._data), "bias": None}
        )

    def set_bias(self, bias: Floats) -> None:
        """See `sequential.Layer`."""
        name = self._operation.outputs[0].name
        stored = bias.astype(self._whole.weights[self._name].value.dtype)
        self._whole.biases[name] = stored
        self._whole.evaluator.set_constant(name + _BIAS, stored)

    def _mean_result(self, evaluator: ReferenceEvaluator, operation: Operation, given: dict[str, Any]) -> Floats:
        import numpy as np

        result = evaluator.compute(operation, given)
        channels = _channels(operation) % result.dim()
        rest = [axis for axis in range(result.dim()) if axis != channels]
        mean = result.double().mean(dim=rest) if rest else result.double()
        return np.asarray(mean.numpy())

    def _grouped(self) -> int:
        return int(self._whole.plain.constant_of(self._original, "groups", 1))


def _channels(operation: Operation) -> int:
    """The axis of channels of an operation's data and result."""
    return -1 if operation.kind == "linear" else 1
