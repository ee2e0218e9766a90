"""Quantization with ONNX Runtime's own tools; each refuses when it would change nothing."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime_graph import EXTRA, WHY, graphs, serialized
from edgekit.backends.base import CompileRequest, calibration_batches
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

UNPACKED = ("weight_only_wi8_afp32", "dynamic_wi8_afp32")
"""Schemes under which float32 weights are unpacked from 8-bit ones while the model loads."""
SCHEMES = ("float16", "static_wi8_ai8", "dynamic_wi8_afp32", "weight_only_wi8_afp32")
_INTEGER_WEIGHTS = ("INT8", "UINT8")
# Where a weight stands among an operator's inputs, and the axis of its output channels.
_WEIGHTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "Conv": ((1, 0),),
    "ConvTranspose": ((1, 1),),
    "MatMul": ((1, -1),),
    "Gather": ((0, 0),),
    "LSTM": ((1, 1), (2, 1)),
    "GRU": ((1, 1), (2, 1)),
}
_SMALLEST_WEIGHT = 256
_DQ_FIRST_PER_CHANNEL = 13


def quantized(model: Any, request: CompileRequest, reduce_range: bool) -> Any:
    """The model under the request's scheme.

    Raises:
        UnsupportedModelError: The scheme changes nothing in this model, or lacks calibration examples.
    """
    scheme = request.lowering.precision
    how: dict[str, Callable[[], Any]] = {
        "float16": lambda: _half(model),
        "static_wi8_ai8": lambda: _static(model, request, reduce_range),
        "dynamic_wi8_afp32": lambda: _dynamic(model, reduce_range),
        "weight_only_wi8_afp32": lambda: weights_only(model),
    }
    count = _count(model, ("FLOAT16",) if scheme == "float16" else _INTEGER_WEIGHTS)
    with _quiet():
        changed = how[scheme]()
    if _count(changed, ("FLOAT16",) if scheme == "float16" else _INTEGER_WEIGHTS) <= count:
        raise UnsupportedModelError(
            f"The scheme {scheme} changes nothing in {request.source}: it has no weights that ONNX Runtime quantizes.",
            "Leave out `quantize` for this model.",
        )
    return changed


def _count(model: Any, kinds: tuple[str, ...]) -> int:
    """How many weights, of one dimension or more, have one of these types."""
    onnx = require("onnx", EXTRA, WHY)
    wanted = {onnx.TensorProto.DataType.Value(kind) for kind in kinds}
    return sum(1 for graph in graphs(model) for i in graph.initializer if i.data_type in wanted and len(i.dims) > 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the quantizer says about its own pre-processing, which has been done, and of clamped values."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)


def _half(model: Any) -> Any:
    float16 = require("onnxruntime.transformers.float16", EXTRA, WHY)
    return float16.convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=False)


def _static(model: Any, request: CompileRequest, reduce_range: bool) -> Any:
    """8-bit weights per channel and 8-bit activations in QDQ form: each device's runtime picks its own kernels."""
    quantization = require("onnxruntime.quantization", EXTRA, WHY)
    examples = calibration_batches(request)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]  # onnxruntime is seen as Any
        def get_next(self) -> Mapping[str, Array] | None:
            return next(examples, None)

    def work(source: str, result: str) -> None:
        quantization.quantize_static(
            source,
            result,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibration_providers=["CPUExecutionProvider"],
        )

    return _through_files(model, work)


def _dynamic(model: Any, reduce_range: bool) -> Any:
    """8-bit weights; what multiplies matrices quantizes its activations while it runs, convolutions compute in float32.

    ONNX Runtime's own integer convolution ran eight times slower than float32, and less exactly.
    """
    quantization = require("onnxruntime.quantization", EXTRA, WHY)
    registry = require("onnxruntime.quantization.registry", EXTRA, WHY)
    # It takes the standard's Attention for its own operator of that name, and writes a graph that no session loads.
    kinds = [kind for kind in registry.IntegerOpsRegistry if kind not in ("Attention", "Conv")]

    def work(source: str, result: str) -> None:
        quantization.quantize_dynamic(
            source,
            result,
            op_types_to_quantize=kinds,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=quantization.QuantType.QInt8,
        )

    return weights_only(_through_files(model, work), ("Conv", "ConvTranspose"))


def _through_files(model: Any, work: Callable[[str, str], None]) -> Any:
    onnx = require("onnx", EXTRA, WHY)
    with tempfile.TemporaryDirectory(prefix="edgekit-onnxruntime-") as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        source.write_bytes(serialized(model))
        work(str(source), str(result))
        return onnx.load(str(result))


def weights_only(model: Any, kinds: Collection[str] = (*_WEIGHTS, "Gemm")) -> Any:
    """8-bit weights of the operators of some kinds, per output channel, that the runtime turns back into float32 once, while it loads.

    Conv(x, w: float32)   →   Conv(x, DequantizeLinear(w: int8, scale))
    """
    onnx = require("onnx", EXTRA, WHY)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    opset = next(entry.version for entry in changed.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _DQ_FIRST_PER_CHANNEL:
        return changed
    graph = changed.graph
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    done: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for place, axis in _weight_places(node) if node.op_type in kinds else ():
            name = node.input[place] if place < len(node.input) else ""
            if name in done:
                node.input[place] = done[name]
            elif name in initializers and _worth_it(onnx, initializers[name]):
                done[name] = f"{name}__float"
                nodes.append(_dequantize(onnx, graph, initializers[name], axis, done[name]))
                node.input[place] = done[name]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for inner in graphs(changed) for node in inner.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return changed


def _weight_places(node: Any) -> tuple[tuple[int, int], ...]:
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return ((1, 0 if transposed else 1),)
    return _WEIGHTS.get(node.op_type, ()) if not node.domain else ()


def _worth_it(onnx: Any, initializer: Any) -> bool:
    import math

    small = math.prod(initializer.dims) < _SMALLEST_WEIGHT
    return initializer.data_type == onnx.TensorProto.FLOAT and len(initializer.dims) > 1 and not small


def _dequantize(onnx: Any, graph: Any, initializer: Any, axis: int, result: str) -> Any:
    import numpy as np

    weight = onnx.numpy_helper.to_array(initializer)
    axis %= weight.ndim
    others = tuple(place for place in range(weight.ndim) if place != axis)
    scale = np.maximum(np.abs(weight).max(axis=others), np.finfo(np.float32).tiny) / 127
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    integers = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    name = initializer.name
    graph.initializer.append(onnx.numpy_helper.from_array(integers, f"{name}__int8"))
    graph.initializer.append(onnx.numpy_helper.from_array(scale.astype(np.float32), f"{name}__scale"))
    return onnx.helper.make_node(
        "DequantizeLinear", [f"{name}__int8", f"{name}__scale"], [result], f"{name}__dequantize", axis=axis
    )
