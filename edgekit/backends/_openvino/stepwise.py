"""A model run part by part, so that what follows can be changed by what came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.runtime import Example, openvino, opset, results

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

_ROWS = 512
"""How many places of one example are enough for second moments."""
_SOURCES = ("Constant", "Parameter", "Result")


class Stepwise:
    """A model on some examples, as far as its operators were run.

    What ran is cut off: later operators read its results from parameters, so that the model has to be a copy that
    nobody needs afterwards. Only results that later operators read are kept.

    Args:
        model: The copy; operators that have not run yet may be changed between two calls of `run_to`.
        examples: The model's inputs.
    """

    def __init__(self, model: Any, examples: Sequence[Example]) -> None:
        order = model.get_ordered_ops()
        self._model, self._order, self._done = model, order, 0
        self._places = {node.get_friendly_name(): place for place, node in enumerate(order)}
        self._values: dict[str, list[Array]] = {}
        self._parameters: dict[str, Any] = {}
        for port in model.inputs:
            name = port.get_node().get_friendly_name()
            self._parameters[name] = port.get_node()
            self._values[name] = [example[port.get_any_name()] for example in examples]
        self._count = len(examples)

    def run_to(self, node: Any) -> None:
        """Run the operators before this one that were not run yet."""
        end = self._places[node.get_friendly_name()]
        cut = [output for one in self._order[self._done : end] for output in self._read_later(one, end)]
        if cut:
            self._run(cut, end)
        self._done = end
        self._forget(end)

    def data(self, node: Any) -> list[Array]:
        """The first input of an operator that was run up to, for each example."""
        return self._values[node.input_value(0).get_node().get_friendly_name()]

    def knows(self, node: Any) -> bool:
        """Whether an operator's first input comes from the examples."""
        return node.input_value(0).get_node().get_friendly_name() in self._values

    def _read_later(self, node: Any, end: int) -> list[Any]:
        if node.get_type_name() in _SOURCES or not self._depends(node):
            return []
        return [
            output
            for output in node.outputs()
            if any(self._place(reader.get_node()) >= end for reader in output.get_target_inputs())
        ]

    def _place(self, node: Any) -> int:
        # What was added since then, a bias, stands behind its layer: before all that comes after.
        return self._places.get(node.get_friendly_name(), -1)

    def _depends(self, node: Any) -> bool:
        return bool(_parameters_of([node]))

    def _run(self, cut: Sequence[Any], end: int) -> None:
        ov, op = openvino(), opset()
        taken = _parameters_of([output.get_node() for output in cut])
        model = ov.Model([op.result(output) for output in cut], taken, "part")
        names = [parameter.get_friendly_name() for parameter in taken]
        made: list[list[Array]] = [[] for _ in cut]
        given = [{place: self._values[name][one] for place, name in enumerate(names)} for one in range(self._count)]
        for found in results(model, given):
            for values, value in zip(made, found, strict=True):
                values.append(value.copy())
        for output, values in zip(cut, made, strict=True):
            name = f"cut/{output.get_node().get_friendly_name()}/{output.get_index()}"
            parameter = op.parameter(list(values[0].shape), values[0].dtype.type)
            parameter.set_friendly_name(name)
            for reader in output.get_target_inputs():
                if self._place(reader.get_node()) >= end:
                    reader.replace_source_output(parameter.output(0))
            self._parameters[name], self._values[name] = parameter, values

    def _forget(self, end: int) -> None:
        for name, parameter in list(self._parameters.items()):
            readers = parameter.output(0).get_target_inputs()
            if not any(self._place(reader.get_node()) >= end for reader in readers):
                del self._parameters[name], self._values[name]


def _parameters_of(nodes: Sequence[Any]) -> list[Any]:
    """The parameters that operators depend on, in an order of their own that is always the same."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() == "Parameter":
            found[name] = node
        left += [port.get_source_output().get_node() for port in node.inputs()]
    return [found[name] for name in sorted(found)]


def mean_of(values: Sequence[Array]) -> Floats:
    """The mean over examples, in the shape of one."""
    import numpy as np

    total = np.zeros(values[0].shape)
    for value in values:
        total = total + value.astype(np.float64)
    return total / len(values)


def second_moment(values: Sequence[Array], axis: int) -> Floats:
    """The mean over examples and places of the products of every two entries along an axis."""
    import numpy as np

    total, count = np.zeros(()), 0
    for value in values:
        rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
        taken = rows[:: max(1, len(rows) // _ROWS)].astype(np.float32)
        total, count = total + (taken.T @ taken).astype(np.float64), count + len(taken)
    return np.asarray(total / count)
