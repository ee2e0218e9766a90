"""Layers: what every operator of a model gives in its own framework, with the module that it belongs to."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.program import ONNX_EXTRA, TORCH_EXTRA, ExportedProgramOnly, OnnxProgram, Program, TorchProgram

if TYPE_CHECKING:
    from edgekit.core.task import Array

_FLAT_PREFIX = "inner"
_WHY = "looking into a model"


@dataclass(frozen=True)
class Layer:
    """One operator of the model, and what it gives.

    Attributes:
        key: Its name in the graph: unlike the path, no two have the same.
        path: The module that it stands in, as `named_modules()` has it; `@1` marks the second call of a shared one.
            Empty for the model's own forward. Of an ONNX graph without module paths: the node's name.
        operator: What it does: `conv2d`, `Gemm`.
        inputs: Keys of the layers that it reads.
        value: What it gives, shape (calls, …).
    """

    key: str
    path: str
    operator: str
    inputs: tuple[str, ...]
    value: Array

    @property
    def label(self) -> str:
        """What people read: the path and the operator."""
        return f"{self.path or '(the model itself)'} ({self.operator})"


def layers_of(program: Program, calls: Sequence[Mapping[str, Array]]) -> list[Layer]:
    """Every layer that gives floating-point values that follow from an input, each before the layers that read it.

    Args:
        program: The model's program.
        calls: Inputs of exactly the specs' shapes, by name; at least one.

    Raises:
        UnsupportedModelError: It is a kind of program that does not show its layers.
    """
    if isinstance(program, OnnxProgram):
        return _onnx_layers(program, calls)
    if isinstance(program, TorchProgram | ExportedProgramOnly):
        return _torch_layers(program, calls)
    raise UnsupportedModelError(f"A {type(program).__name__} does not show what its layers give.")


# --- torch ----------------------------------------------------------------------------------------------------------


def _torch_layers(program: TorchProgram | ExportedProgramOnly, calls: Sequence[Mapping[str, Array]]) -> list[Layer]:
    import numpy as np

    torch = require("torch", TORCH_EXTRA, _WHY)
    graph_module = program.exported.module()
    values: dict[str, list[Array]] = {}

    class Recorder(torch.fx.Interpreter):  # type: ignore[misc, name-defined]  # torch is seen as Any
        def run_node(self, node: Any) -> Any:
            result = super().run_node(node)
            if node.op == "call_function" and _is_float(torch, result):
                # A copy: an operator that works in place would change it afterwards.
                kept = result.detach().float() if result.dtype == torch.bfloat16 else result.detach()
                values.setdefault(node.name, []).append(np.array(kept.numpy()))
            return result

    recorder = Recorder(graph_module)
    with torch.no_grad():
        for arrays in calls:
            recorder.run(*(torch.from_numpy(np.array(arrays[name])) for name in program.input_names))
    prefix = _FLAT_PREFIX if isinstance(program, TorchProgram) else ""
    return list(_described(graph_module.graph.nodes, values, prefix))


def _is_float(torch: Any, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _described(nodes: Any, values: Mapping[str, list[Array]], prefix: str) -> Iterator[Layer]:
    import numpy as np

    reads: dict[Any, tuple[str, ...]] = {}
    computed: set[Any] = set()
    for node in nodes:
        sources = node.all_input_nodes
        inputs = tuple(dict.fromkeys(key for source in sources for key in reads.get(source, ())))
        if node.op == "placeholder" or computed.intersection(sources):
            computed.add(node)
        if node.name not in values or node not in computed:
            reads[node] = inputs
            continue
        reads[node] = (node.name,)
        if _in_place(node):
            # What reads the changed tensor from here on reads this layer.
            reads[sources[0]] = (node.name,)
        yield Layer(node.name, _module_path(node, prefix), _operator(node), inputs, np.stack(values[node.name]))


def _in_place(node: Any) -> bool:
    return bool(node.all_input_nodes) and str(getattr(node.target, "__name__", "")).partition(".")[0].endswith("_")


def _operator(node: Any) -> str:
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    if name == "getitem" and node.all_input_nodes:
        return f"{_operator(node.all_input_nodes[0])}[{node.args[1]}]"
    return name


def _module_path(node: Any, prefix: str) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    key, (path, _) = list(stack.items())[-1]
    call = str(key).rpartition("@")
    # The stack is keyed by call: a module's second call has the key `…@1`.
    again = f"@{call[2]}" if call[0] and call[2].isdigit() else ""
    return f"{_without(path, prefix)}{again}"


def _without(path: str, prefix: str) -> str:
    if path == prefix:
        return ""
    return path.removeprefix(f"{prefix}.") if prefix else path


# --- ONNX -----------------------------------------------------------------------------------------------------------


def _onnx_layers(program: OnnxProgram, calls: Sequence[Mapping[str, Array]]) -> list[Layer]:
    import numpy as np

    onnx = require("onnx", ONNX_EXTRA, _WHY)
    ort = require("onnxruntime", ONNX_EXTRA, _WHY)
    model = onnx.load(str(program.path))
    graph = model.graph
    known = {output.name for output in graph.output}
    names = [name for node in graph.node for name in node.output if name]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {port.name: port.type for port in session.get_outputs()}
    wanted = [name for name in names if kinds.get(name) in ("tensor(float)", "tensor(float16)", "tensor(double)")]
    runs = [session.run(wanted, {name: arrays[name] for name in program.input_names}) for arrays in calls]
    values = {name: np.stack([run[place] for run in runs]) for place, name in enumerate(wanted)}
    return list(_onnx_described(graph.node, values, program.input_names))


def _onnx_described(nodes: Any, values: Mapping[str, Array], inputs: Sequence[str]) -> Iterator[Layer]:
    reads: dict[str, tuple[str, ...]] = {}
    computed = set(inputs)
    for node in nodes:
        if not computed.intersection(node.input):
            continue
        sources = tuple(dict.fromkeys(key for name in node.input for key in reads.get(name, ())))
        for name in filter(None, node.output):
            computed.add(name)
            reads[name] = (name,) if name in values else sources
            if name in values:
                yield Layer(name, _node_path(node), node.op_type, sources, values[name])


def _node_path(node: Any) -> str:
    """The torch module that a node was exported from, where the exporter noted it; else the node's name."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return str(node.name)
