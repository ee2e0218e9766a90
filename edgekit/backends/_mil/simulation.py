"""A quantized ML Program computed part by part, so that later layers can be changed by what earlier ones gave.

It is the evaluator on the converter's side: the program is the float one with `quantize` and `dequantize` in it, and
its weights are those that will be stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.backends._mil.program import Operation, Reference
from edgekit.backends._quantize.ranges import Histogram
from edgekit.core.extras import require

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

Example = Mapping[str, "Array"]
"""One call's inputs by name, as the package takes them."""

_ROWS = 1024
"""How many places of one example are enough for second moments."""


def observed(
    evaluator: ReferenceEvaluator, examples: Sequence[Example], ranged: Collection[str], averaged: Collection[str]
) -> tuple[dict[str, Histogram], dict[str, Floats]]:
    """Histograms and means over examples of values of the float program: one pass.

    Args:
        evaluator: The float program.
        examples: The examples.
        ranged: Values whose histograms are wanted, inputs among them.
        averaged: Values whose means, in their own shape, are wanted.
    """
    import numpy as np

    histograms = {name: Histogram() for name in ranged}
    means: dict[str, Any] = dict.fromkeys(averaged, np.zeros(()))
    wanted = {*ranged, *averaged}
    for example in examples:
        evaluator.run(example, keep=wanted)
        values = evaluator.intermediates(wanted)
        for name, histogram in histograms.items():
            histogram.add(values[name])
        for name, mean in means.items():
            means[name] = mean + values[name].astype(np.float64) / len(examples)
    return histograms, means


class Stepwise:
    """The main block on some examples, as far as its operations were run.

    Args:
        evaluator: The program; its constants may be changed between two calls of `run_to`.
        examples: Inputs, as the package takes them.
    """

    def __init__(self, evaluator: ReferenceEvaluator, examples: Sequence[Example]) -> None:
        self._torch = require("torch", "coreml", "quantizing for the backend coreml")
        self._evaluator = evaluator
        self._done = 0
        self._scopes: list[dict[str, Any]] = [evaluator.bound(example) for example in examples]

    def run_to(self, end: int) -> None:
        """Run the operations before the place `end` that were not run yet."""
        with self._torch.no_grad():
            for place, packed in enumerate(self._scopes if end > self._done else ()):
                scope = {name: self._unpacked(value) for name, value in packed.items()}
                for index in range(self._done, end):
                    self._evaluator.step(index, scope)
                self._scopes[place] = {name: self._packed(value) for name, value in scope.items()}
        self._done = max(self._done, end)

    def _packed(self, value: Any) -> Any:
        """A value in half the space where that holds it exactly, as it does in float16 programs."""
        torch = self._torch
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        half = value.half()
        return half if torch.equal(half.float(), value) else value

    def _unpacked(self, value: Any) -> Any:
        is_half = isinstance(value, self._torch.Tensor) and value.dtype == self._torch.float16
        return value.float() if is_half else value

    def values(self, name: str) -> Iterator[Any]:
        """A value for each example, float32."""
        return (scope[name].float() for scope in self._scopes)

    def mean(self, name: str) -> Any:
        """The mean over the examples of a value, float32, in its shape."""
        total = sum(value.double() for value in self.values(name))
        return (total / len(self._scopes)).float()

    def second_moment(self, name: str, axis: int) -> Floats:
        """The mean over examples and places of the products of every two channels, shape (channels, channels)."""
        import numpy as np

        total, count = np.zeros(()), 0
        for value in self.values(name):
            rows = value.movedim(axis, -1).reshape(-1, value.shape[axis])
            taken = rows[:: max(1, len(rows) // _ROWS)]
            total, count = total + (taken.T @ taken).double().numpy(), count + len(taken)
        return np.asarray(total / count)


def source_of(operation: Operation, parameter: str) -> str:
    """The name of what an operation reads as a parameter; empty where that is no other operation's result."""
    items = operation.inputs.get(parameter, ())
    return items[0].name if len(items) == 1 and isinstance(items[0], Reference) else ""
