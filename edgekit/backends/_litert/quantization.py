"""8-bit weights and activations by ai-edge-quantizer, with ranges set by calibration examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.conversion import EXTRA, signatures
from edgekit.backends._litert.interface import as_file, moved_axes
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import BackendError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.lowering import Quantize

if TYPE_CHECKING:
    from edgekit.core.task import Array

_LOOPS = f"^{flatbuffer.ADDED}"


def static_int8(content: bytes, request: CompileRequest, quantize: Quantize) -> bytes:
    """8-bit weights per channel and 8-bit activations whose ranges the calibration examples set.

    A recurrence keeps a float state, whose errors would add up step by step: its weights are 8-bit, its activations
    are quantized by the runtime as they come.

    Raises:
        BackendError: The quantizer gave no model.
        UnsupportedModelError: There are no calibration examples, or nothing to quantize.
    """
    require("ai_edge_quantizer", EXTRA, "the scheme static_wi8_ai8 of the backend litert")
    model = flatbuffer.read(content)
    samples = {
        name: list(_calibration(request, quantize.calibration, batch)) for name, batch in signatures(request).items()
    }
    # The calibrator reads every tensor, and the runtime does not keep the results that nothing reads.
    ranges = _quantizer(_all_read(model), quantize).calibrate(samples, num_threads=1)
    quantized = _quantizer(content, quantize).quantize(ranges).quantized_model
    if quantized is None:
        raise BackendError("ai-edge-quantizer gave no model.")
    result = flatbuffer.read(bytes(quantized))
    if not _has_int8_weights(result):
        raise UnsupportedModelError(
            f"The scheme {quantize.scheme} changes nothing in {request.source}: it has no layer that LiteRT quantizes.",
            "Leave out `quantize` for this model.",
        )
    if quantize.io == "uint8":
        unsigned_edges(result)
    flatbuffer.compact(result)
    return flatbuffer.write(result)


def unsigned_edges(model: Any) -> None:
    """Make the 8-bit inputs and outputs of every signature unsigned, in place: the scheme itself is signed.

    int8 → graph → int8    becomes    uint8 → QUANTIZE → int8 → graph → int8 → QUANTIZE → uint8
    """
    for signature in model.signatureDefs:
        graph = flatbuffer.Graph(model, model.subgraphs[signature.subgraphIndex])
        subgraph = graph.subgraph
        before = {int(tensor): _unsigned(graph, int(tensor)) for tensor in subgraph.inputs}
        for inner, outer in before.items():
            if outer != inner:
                graph.op("QUANTIZE", [outer], [inner], flatbuffer.schema().QuantizeOptionsT())
        graph.operators += subgraph.operators
        after = {int(tensor): _unsigned(graph, int(tensor)) for tensor in subgraph.outputs}
        for inner, outer in after.items():
            if outer != inner:
                graph.op("QUANTIZE", [inner], [outer], flatbuffer.schema().QuantizeOptionsT())
        graph.close([before[int(tensor)] for tensor in subgraph.inputs], [after[int(t)] for t in subgraph.outputs])
        for side, places in ((signature.inputs, before), (signature.outputs, after)):
            for mapped in side:
                mapped.tensorIndex = places[int(mapped.tensorIndex)]


def _unsigned(graph: flatbuffer.Graph, tensor: int) -> int:
    """An unsigned tensor that stands for the same values; the tensor itself where it is no signed 8-bit one."""
    signed = graph.subgraph.tensors[tensor]
    scale = signed.quantization.scale if signed.quantization is not None else None
    if flatbuffer.type_name(signed.type) != "int8" or scale is None or len(scale) != 1:
        return tensor
    made = graph.tensor(graph.shape(tensor), "uint8")
    tflite = flatbuffer.schema()
    zero_point = int(signed.quantization.zeroPoint[0]) + 128
    graph.subgraph.tensors[made].quantization = tflite.QuantizationParametersT(
        scale=[float(scale[0])], zeroPoint=[zero_point]
    )
    return made


def _quantizer(content: bytes, quantize: Quantize) -> Any:
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    worker = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
    edges = (TFLOperationName.INPUT, TFLOperationName.OUTPUT)
    for operation in (TFLOperationName.ALL_SUPPORTED, *edges):
        worker.update_quantization_recipe(_LOOPS, operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    worker.add_dynamic_config(_LOOPS, TFLOperationName.FULLY_CONNECTED, num_bits=8)
    if quantize.io == "float32":
        # The scheme alone makes inputs and outputs int8, which no caller of the float model expects.
        for operation in edges:
            worker.update_quantization_recipe(".*", operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return worker


def _all_read(model: Any) -> bytes:
    main = {signature.subgraphIndex for signature in model.signatureDefs}
    for subgraph in (model.subgraphs[index] for index in sorted(main)):
        read = {int(tensor) for operator in subgraph.operators for tensor in operator.inputs}
        read |= {int(tensor) for tensor in subgraph.outputs}
        results = [int(tensor) for operator in subgraph.operators for tensor in operator.outputs]
        subgraph.outputs = [*map(int, subgraph.outputs), *(tensor for tensor in results if tensor not in read)]
    return flatbuffer.write(model)


def _has_int8_weights(model: Any) -> bool:
    tflite = flatbuffer.schema()
    return any(
        tensor.type == tflite.TensorType.INT8 and model.buffers[tensor.buffer].data is not None
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
    )


def _calibration(request: CompileRequest, count: int, batch: int) -> Iterator[Mapping[str, Array]]:
    """Examples in batches of that size, from the request's calibration folder."""
    import numpy as np

    if request.calibration is None:
        raise UnsupportedModelError(
            f"{request.lowering.precision} needs calibration examples, and there are none.",
            "Give a task whose examples('calibration') yields inputs: edgekit.yaml: task: task.py:NAME",
        )
    arrays = {spec.name: np.load(request.calibration / f"{spec.name}.npy", mmap_mode="r") for spec in request.inputs}
    axes = moved_axes(request.inputs, request.lowering)
    available = min(count, *(len(array) for array in arrays.values()))
    if available < batch:
        raise UnsupportedModelError(
            f"{request.lowering.precision} needs at least one whole batch of {batch} calibration examples; there are"
            f" {available}.",
            "Yield more in examples('calibration'), or raise quantize.calibration in the recipe.",
        )
    for start in range(0, available - batch + 1, batch):
        yield {
            spec.name: as_file(spec.name, arrays[spec.name][start : start + batch], axes, spec.dtype)
            for spec in request.inputs
        }
