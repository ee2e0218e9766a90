"""An ONNX graph run on examples: all of it, or part by part, so that what follows can be changed by what came before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.graph import EXTRA, WHY, runtime, serialized
from edgekit.backends._quantize.ranges import Histogram
from edgekit.backends.base import CompileRequest, calibration_batches
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

    Example = Mapping[str, Array]

_ROWS = 1024
"""How many places of one example are enough for second moments."""


def examples(request: CompileRequest) -> Iterator[Example]:
    """Calibration examples in the program's own batch size.

    Raises:
        UnsupportedModelError: There are none, or one has a value that is not finite.
    """
    import numpy as np

    for place, example in enumerate(calibration_batches(request)):
        for name, value in example.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise UnsupportedModelError(
                    f"The input '{name}' of calibration example {place} has a value that is not finite.",
                    "Mend examples('calibration') of the task.",
                )
        yield example


def session(model: Any, *, plain: bool = False) -> Any:
    """The runtime with one thread; `plain` leaves the graph as it is."""
    ort = runtime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    if plain:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(serialized(model), settings, providers=["CPUExecutionProvider"])


def outputs(model: Any, samples: Sequence[Example]) -> dict[str, Floats]:
    """The model's float outputs by name, float64, the examples along a new first axis."""
    import numpy as np

    worker = session(model)
    names = [node.name for node in worker.get_outputs()]
    results = [worker.run(names, dict(sample)) for sample in samples]
    return {
        name: np.stack([one[place] for one in results]).astype(np.float64)
        for place, name in enumerate(names)
        if results[0][place].dtype.kind == "f"
    }


@dataclass
class Observation:
    """Statistics of a float graph's tensors by name.

    Attributes:
        histograms: Of those whose ranges are wanted.
        means: The mean over the examples, in the tensor's shape.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    means: dict[str, Floats] = field(default_factory=dict)


def observe(model: Any, samples: Sequence[Example], ranged: Collection[str], averaged: Collection[str]) -> Observation:
    """Run a float graph on examples and keep statistics of some tensors; memory of about one example's."""
    import numpy as np

    onnx = require("onnx", EXTRA, WHY)
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    made = {name for node in model.graph.node for name in node.output}
    known = {value.name for value in model.graph.output}
    wanted = sorted((set(ranged) | set(averaged)) & made)
    for name in wanted:
        if name not in known:
            widened.graph.output.add().name = name
    worker = session(widened)
    found = Observation({name: Histogram() for name in ranged}, {name: np.zeros(()) for name in averaged})
    for sample in samples:
        values = dict(zip(wanted, worker.run(wanted, dict(sample)), strict=True))
        values |= {name: sample[name] for name in inputs}
        for name in found.histograms:
            if name in values and values[name].dtype.kind == "f":
                found.histograms[name].add(values[name])
        for name in found.means:
            found.means[name] = found.means[name] + values[name]
    found.means = {name: total / len(samples) for name, total in found.means.items()}
    return found


class Stepwise:
    """A graph on some examples, as far as its operators were run; only what later ones read is kept.

    Operators that compute from constants alone, and those that make integers real numbers again, run together with what
    reads them.

    Args:
        model: The model; its weights may be changed between two calls of `run_to`. Nodes stand in calling order.
        samples: Its inputs.
    """

    def __init__(self, model: Any, samples: Sequence[Example]) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._outputs = {value.name for value in model.graph.output}
        self._done = 0
        self._count = len(samples)
        names = [value.name for value in model.graph.input]
        self._values: dict[str, list[Array]] = {name: [sample[name] for sample in samples] for name in names}
        constants = {one.name for one in model.graph.initializer}
        self._late: dict[str, Any] = {}
        for node in self._nodes:
            if node.op_type == "DequantizeLinear" or all(name in constants for name in node.input):
                self._late |= dict.fromkeys(node.output, node)
                constants |= set(node.output) if all(name in constants for name in node.input) else set()

    def run_to(self, end: int) -> None:
        """Run the operators before the place `end` that were not run yet."""
        part = [node for node in self._nodes[self._done : end] if node.output[0] not in self._late]
        needed = self._read_from(end)
        given = sorted({name for node in part for name in node.output if name and name in needed})
        if given:
            nodes = self._with_late(part)
            taken = sorted({name for node in nodes for name in _read(node)} & self._values.keys())
            worker = session(self._part(nodes, taken, given))
            made: dict[str, list[Array]] = {name: [] for name in given}
            for example in range(self._count):
                results = worker.run(given, {name: self._values[name][example] for name in taken})
                for name, value in zip(given, results, strict=True):
                    made[name].append(value)
            self._values |= made
        self._done = end
        self._values = {name: value for name, value in self._values.items() if name in needed}

    def each(self, name: str) -> Iterator[Array]:
        """A tensor's real values for every example; it was run to, or is one of the late ones."""
        if name in self._values:
            yield from self._values[name]
            return
        nodes = self._with_late([self._late[name]])
        taken = sorted({one for node in nodes for one in _read(node)} & self._values.keys())
        worker = session(self._part(nodes, taken, [name]), plain=True)
        for example in range(self._count):
            yield worker.run([name], {one: self._values[one][example] for one in taken})[0]

    def moments(self, name: str, axis: int, *, second: bool) -> tuple[Floats, Floats | None]:
        """The mean over the examples of a tensor, in its shape, and that of the products of every two of its channels."""
        import numpy as np

        mean: Any = np.zeros(())
        total, count = np.zeros(()), 0
        for value in self.each(name):
            mean = mean + value
            if second:
                # A view where the channels stand first of one example: no copy is made of what is not taken.
                rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
                taken = np.ascontiguousarray(rows[:, :: max(1, rows.shape[1] // _ROWS)], np.float32)
                total, count = total + taken @ taken.T, count + taken.shape[1]
        return mean / self._count, total / count if second else None

    def _with_late(self, part: Sequence[Any]) -> list[Any]:
        """These operators behind the late ones that they read."""
        found: dict[str, Any] = {}

        def visit(node: Any) -> None:
            for name in _read(node):
                if name in self._late and name not in self._values:
                    visit(self._late[name])
            found[node.output[0]] = node

        for node in part:
            visit(node)
        return list(found.values())

    def _read_from(self, place: int) -> set[str]:
        needed = {name for node in self._nodes[place:] for name in _read(node)} | self._outputs
        for node in reversed(self._nodes):
            if node.output[0] in self._late and node.output[0] in needed:
                needed |= set(node.input)
        return needed

    def _part(self, nodes: Sequence[Any], taken: Iterable[str], given: Iterable[str]) -> Any:
        onnx = require("onnx", EXTRA, WHY)
        read = {name for node in nodes for name in _read(node)}
        inputs = [
            onnx.helper.make_tensor_value_info(
                name,
                onnx.helper.np_dtype_to_tensor_dtype(self._values[name][0].dtype),
                self._values[name][0].shape,
            )
            for name in taken
        ]
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            inputs,
            [onnx.helper.make_empty_tensor_value_info(name) for name in given],
            [one for one in self._model.graph.initializer if one.name in read],
        )
        return onnx.helper.make_model(
            graph, opset_imports=list(self._model.opset_import), ir_version=self._model.ir_version
        )


def _read(node: Any) -> list[str]:
    """What an operator reads, the graphs inside it as well."""
    names = [name for name in node.input if name]
    for one in node.attribute:
        for inner in ([one.g] if one.HasField("g") else []) + list(one.graphs):
            names += [name for nested in inner.node for name in _read(nested)]
            names += [value.name for value in inner.output]
    return names
