"""A float `.tflite` file in the precisions that a lowering asks for: ai-edge-quantizer's, and packed palettes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.backends._litert import flatbuffer, fourbits, sharing
from edgekit.backends._litert.conversion import EXTRA
from edgekit.backends._litert.grids import take_out_factors
from edgekit.backends._litert.layers import linear_layers
from edgekit.backends._litert.packing import pack
from edgekit.backends._litert.palettes import keep_small, palette_of
from edgekit.backends._litert.plan import EIGHT, FLOAT, FOUR, PALETTES, STATIC, Plan, plan_for
from edgekit.backends._litert.static import static_int8
from edgekit.backends._litert.unsigned import unsigned_edges
from edgekit.backends._litert.weights import weights_only
from edgekit.backends._quantize.modules import modules_of
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.grid import trained_in
from edgekit.core.lowering import Quantize, Scheme

_STORED: Mapping[str, str] = {
    "float16": "FLOAT16",
    EIGHT: "INT8",
    "dynamic_wi8_afp32": "INT8",
    FOUR: "INT4",
    STATIC: "INT8",
}
"""The schema's element type that a scheme's weights have."""
_BYTE = 8

SCHEMES: tuple[Scheme, ...] = (
    "float16",
    "weight_only_wi8_afp32",
    "dynamic_wi8_afp32",
    "weight_only_wi4_afp32",
    "static_wi8_ai8",
    "palette_4",
    "palette_2",
    "palette_1",
)


def quantized(content: bytes, request: CompileRequest, quantize: Quantize | None) -> tuple[bytes, tuple[str, ...]]:
    """The file in a scheme's precision, and what was decided on the way, each in a sentence.

    Args:
        content: The float32 file.
        request: The request, with calibration examples where the scheme is static.
        quantize: The options; None where only single layers are quantized.

    Raises:
        BackendError: The quantizer gave no model.
        ConfigError: An override fits no module.
        UnsupportedModelError: There are no calibration examples, or nothing to quantize.
    """
    content = _as_trained(content, request)
    plain = flatbuffer.read(content)
    plan = plan_for(plain, request)
    if quantize is not None and quantize.scheme == STATIC:
        plan = keep_small(fourbits.by_size(plan))
        result, notes = static_int8(content, request, quantize, plan)
    else:
        result, plan, notes = weights_only(content, request, quantize, plan)
    _require_change(result, plan, request)
    pack(result, _palettes(plain, plan), halves=plan.main in PALETTES)
    if quantize is not None and quantize.io == "uint8":
        unsigned_edges(result)
    flatbuffer.compact(result)
    content = sharing.write(result) if plan.packed else flatbuffer.write(result)
    return content, (*plan.notes, *notes)


def _as_trained(content: bytes, request: CompileRequest) -> bytes:
    """The float file with the weights of trained grids below 8 bits as they were trained, without others' factors.

    Full-integer files keep the factors in the weights: an operator more would round once more.
    """
    trained = {path for path, grid in trained_in(request.history).grids.items() if grid.bits < _BYTE}
    if not trained or request.lowering.precision == STATIC:
        return content
    torch = require("torch", EXTRA, "trained grids in the backend litert")
    modules = [module for module in modules_of(torch.export.load(request.program)) if module.path in trained]
    model = flatbuffer.read(content)
    if not take_out_factors(model, modules):
        return content
    flatbuffer.compact(model)
    return flatbuffer.write(model)


def _palettes(plain: Any, plan: Plan) -> dict[str, Any]:
    planned = plan.packed
    return {
        layer.result_name: palette_of(planned[layer.result_name], layer)
        for subgraph in plain.subgraphs
        for _, layer in linear_layers(plain, subgraph)
        if layer.result_name in planned
    }


def _require_change(model: Any, plan: Plan, request: CompileRequest) -> None:
    """Refuse a scheme that no layer has.

    Raises:
        UnsupportedModelError: The file has nothing in the scheme's type.
    """
    main = plan.main
    packed = any(layer.scheme == main for layer in plan.packed.values())
    changed = main == FLOAT or packed or (main not in PALETTES and _stores(model, _STORED[main]))
    if not changed:
        raise UnsupportedModelError(
            f"The scheme {main} changes nothing in {request.source}: it has no layer that LiteRT quantizes.",
            "Leave out `quantize` for this model.",
        )


def _stores(model: Any, kind: str) -> bool:
    wanted = getattr(flatbuffer.schema().TensorType, kind)
    return any(
        tensor.type == wanted and model.buffers[tensor.buffer].data is not None
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
    )
