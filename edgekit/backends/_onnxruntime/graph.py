"""What is done to an ONNX graph between the exporter and the file: names, shapes, dead text, equal weights, optimisation."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.model import TensorSpec
from edgekit.core.program import first_line

EXTRA = "onnx"
WHY = "the backend onnxruntime"
LEVELS = ("none", "basic", "extended", "all")
# A protocol buffer cannot be larger; weights in files beside it are not written here.
_MAX_BYTES = (1 << 31) - 1
_TENSOR_ATTRIBUTE = 4


def runtime() -> Any:
    """ONNX Runtime, told to send nothing before it is imported."""
    import os

    # From 1.30 on its Linux wheels send usage data and keep a device id in the home folder unless told not to.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return require("onnxruntime", EXTRA, WHY)


def graphs(model: Any) -> Iterator[Any]:
    """The main graph and every graph inside a node."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            waiting += [a.g for a in node.attribute if a.HasField("g")]
            waiting += [inner for a in node.attribute for inner in a.graphs]


def name_ports(model: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Give the graph's inputs and outputs our names and static shapes, in order.

    Raises:
        UnsupportedModelError: The graph has another number of them.
    """
    graph = model.graph
    initializers = {initializer.name for initializer in graph.initializer}
    # Weights listed as inputs, as files before IR 4 have them, could be replaced by a caller: nothing would be folded.
    kept = [value for value in graph.input if value.name not in initializers]
    del graph.input[:]
    graph.input.extend(kept)
    for kind, values, specs in (("inputs", graph.input, inputs), ("outputs", graph.output, outputs)):
        if len(values) != len(specs):
            raise UnsupportedModelError(
                f"The converted graph has {len(values)} {kind}, the model {len(specs)}: one of them is not used."
            )
        renames = {value.name: spec.name for value, spec in zip(values, specs, strict=True) if value.name != spec.name}
        rename(model, renames)
        for value, spec in zip(values, specs, strict=True):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in spec.shape:
                shape.dim.add().dim_value = size
    # What was inferred for shapes that are not pinned would contradict those that are.
    del graph.value_info[:]


def rename(model: Any, renames: dict[str, str]) -> None:
    """Give values other names; one that has such a name already gets another."""
    if not renames:
        return
    taken = {name for graph in graphs(model) for node in graph.node for name in (*node.input, *node.output)}
    taken |= {initializer.name for graph in graphs(model) for initializer in graph.initializer}
    full = dict(renames)
    for name in (set(renames.values()) & taken) - renames.keys():
        full[name] = f"{name}__inner"
    for graph in graphs(model):
        for node in graph.node:
            node.input[:] = [full.get(name, name) for name in node.input]
            node.output[:] = [full.get(name, name) for name in node.output]
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = full.get(value.name, value.name)


def strip(model: Any) -> None:
    """Remove what is not computed: stack traces, paths, doc strings, versions of tools, domains that no node uses.

    Equal models have to give equal bytes, and a file must not tell whose machine made it.
    """
    model.doc_string, model.producer_name, model.producer_version, model.domain = "", "edgekit", "", ""
    del model.metadata_props[:]
    used = {"ai.onnx" if not node.domain else node.domain for graph in graphs(model) for node in graph.node}
    used |= {"ai.onnx" if not node.domain else node.domain for function in model.functions for node in function.node}
    for graph in graphs(model):
        graph.doc_string = ""
        _forget(graph)
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.doc_string = ""
            _forget(item)
    model.graph.name = "main"
    kept = sorted(
        ((entry.domain, entry.version) for entry in model.opset_import if (entry.domain or "ai.onnx") in used),
    )
    del model.opset_import[:]
    for domain, version in kept or [("", 1)]:
        entry = model.opset_import.add()
        entry.domain, entry.version = domain, version


def _forget(item: Any) -> None:
    if hasattr(item, "metadata_props"):
        del item.metadata_props[:]


def merge_duplicates(model: Any) -> int:
    """Keep one of each set of equal weights; gives how many bytes that saves."""
    onnx = require("onnx", EXTRA, WHY)
    known: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    saved = 0
    outputs = {value.name for value in model.graph.output}
    for initializer in model.graph.initializer:
        array = onnx.numpy_helper.to_array(initializer)
        key = (initializer.data_type, tuple(initializer.dims), hashlib.sha256(array.tobytes()).hexdigest())
        first = known.setdefault(key, initializer.name)
        if first != initializer.name and initializer.name not in outputs:
            instead[initializer.name] = first
            saved += array.nbytes
    if not instead:
        return 0
    kept = [initializer for initializer in model.graph.initializer if initializer.name not in instead]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for graph in graphs(model):
        for node in graph.node:
            node.input[:] = [instead.get(name, name) for name in node.input]
    return saved


def constants_to_initializers(model: Any) -> None:
    """Weights that a file keeps as nodes become weights as all tools look for them."""
    kept = []
    for node in model.graph.node:
        value = next((a for a in node.attribute if a.name == "value" and a.type == _TENSOR_ATTRIBUTE), None)
        if node.op_type == "Constant" and not node.domain and value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def optimized(model: Any, level: str) -> Any:
    """The graph as ONNX Runtime's optimiser leaves it at `level`, one of `LEVELS`.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot load the graph.
    """
    onnx = require("onnx", EXTRA, WHY)
    if level == "none":
        return model
    with tempfile.TemporaryDirectory(prefix="edgekit-onnxruntime-") as work:
        _session(model, Path(work), level, "optimized.onnx", {})
        return onnx.load(str(Path(work) / "optimized.onnx"))


def ort_format(model: Any, level: str) -> bytes:
    """The graph in ONNX Runtime's own flat format, which its mobile builds read without protobuf."""
    with tempfile.TemporaryDirectory(prefix="edgekit-onnxruntime-") as work:
        _session(model, Path(work), level, "optimized.ort", {"session.save_model_format": "ORT"})
        return (Path(work) / "optimized.ort").read_bytes()


def _session(model: Any, work: Path, level: str, name: str, entries: dict[str, str]) -> None:
    ort = runtime()
    (work / "model.onnx").write_bytes(serialized(model))
    settings = ort.SessionOptions()
    settings.graph_optimization_level = {
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[level]
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(work / name)
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(str(work / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedModelError(
            f"ONNX Runtime cannot load the model: {first_line(error).replace(str(work), '')}",
            "Run with --verbose for its own words.",
        ) from error


def serialized(model: Any) -> bytes:
    """The model's bytes, equal for equal models.

    Raises:
        UnsupportedModelError: It is larger than the format can hold in one file.
    """
    if model.ByteSize() > _MAX_BYTES:
        raise UnsupportedModelError(
            f"The model is {model.ByteSize() / (1 << 20):.0f} MiB; an ONNX file holds at most 2047 MiB.",
            "Compress its weights first: a recipe with low_rank, or a scheme of 8 bits.",
        )
    return bytes(model.SerializeToString(deterministic=True))
