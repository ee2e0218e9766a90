"""A float `.tflite` file quantized by ai-edge-quantizer, whatever the scheme."""

from __future__ import annotations

from typing import Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.static import static_int8
from edgekit.backends._litert.unsigned import unsigned_edges
from edgekit.backends._litert.weights import weights_only
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Quantize, Scheme

_STORED: dict[Scheme, str] = {
    "float16": "FLOAT16",
    "weight_only_wi8_afp32": "INT8",
    "dynamic_wi8_afp32": "INT8",
    "weight_only_wi4_afp32": "INT4",
    "static_wi8_ai8": "INT8",
}
"""The schema's element type that a scheme's weights have."""

SCHEMES = tuple(_STORED)


def quantized(content: bytes, request: CompileRequest, quantize: Quantize) -> tuple[bytes, tuple[str, ...]]:
    """The file in a scheme's precision, and what was decided on the way, each in a sentence.

    Args:
        content: The float32 file.
        request: The request, with calibration examples where the scheme is static.
        quantize: The options.

    Raises:
        BackendError: The quantizer gave no model.
        UnsupportedModelError: There are no calibration examples, or nothing to quantize.
    """
    if quantize.scheme == "static_wi8_ai8":
        result, notes = static_int8(content, request, quantize)
    else:
        result, notes = weights_only(content, request, quantize)
    if not _stores(result, _STORED[quantize.scheme]):
        raise UnsupportedModelError(
            f"The scheme {quantize.scheme} changes nothing in {request.source}: it has no layer that LiteRT quantizes.",
            "Leave out `quantize` for this model.",
        )
    if quantize.io == "uint8":
        unsigned_edges(result)
    flatbuffer.compact(result)
    return flatbuffer.write(result), notes


def _stores(model: Any, kind: str) -> bool:
    wanted = getattr(flatbuffer.schema().TensorType, kind)
    return any(
        tensor.type == wanted and model.buffers[tensor.buffer].data is not None
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
    )
