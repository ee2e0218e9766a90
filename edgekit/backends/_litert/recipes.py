"""A plan in the words of ai-edge-quantizer, and the file that it makes of it."""

from __future__ import annotations

from typing import Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.layers import linear_layers
from edgekit.backends._litert.palettes import palette_of
from edgekit.backends._litert.plan import EIGHT, FLOAT, FOUR, FOUR_BIT_KINDS, PALETTES, LayerPlan, Plan, scope
from edgekit.core.errors import BackendError

_CAST = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "EMBEDDING_LOOKUP")
_OTHER_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
"""Where the quantizer calls an operator otherwise than the schema does."""
_DYNAMIC = "dynamic_wi8_afp32"


def everywhere(worker: Any, scheme: str) -> None:
    """Have the quantizer store all operators' weights as a scheme that keeps activations in float says."""
    from ai_edge_quantizer import recipe

    if scheme == "float16":
        for name in _CAST:
            _cast(worker, ".*", name)
    elif scheme in (FOUR, *PALETTES):
        # What is no linear layer, and what keeps 8 bits.
        worker.load_quantization_recipe(recipe.weight_only_wi8_afp32())
    elif scheme != FLOAT:
        worker.load_quantization_recipe(getattr(recipe, scheme)())


def layer_by_layer(worker: Any, plan: Plan) -> None:
    """Have the quantizer take the layers that get something else than all others do."""
    for name, layer in plan.layers.items():
        if layer.scheme != plan.main or layer.scheme in (FOUR, *PALETTES):
            _one(worker, name, layer)


def _one(worker: Any, name: str, layer: LayerPlan) -> None:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    where, kind = scope(name), _OTHER_NAMES.get(layer.kind, layer.kind)
    operation = TFLOperationName[kind]
    if layer.scheme == FLOAT or layer.scheme in PALETTES or layer.block is not None:
        worker.update_quantization_recipe(where, operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    elif layer.scheme == "float16":
        _cast(worker, where, kind)
    elif layer.scheme == _DYNAMIC:
        worker.add_dynamic_config(where, operation, num_bits=8)
    elif layer.scheme == FOUR and layer.kind in FOUR_BIT_KINDS:
        worker.add_weight_only_config(where, operation, num_bits=4, algorithm_key=AlgorithmName.OCTAV)
    elif layer.scheme in (EIGHT, FOUR):
        worker.add_weight_only_config(where, operation, num_bits=8)


def _cast(worker: Any, where: str, kind: str) -> None:
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    operation = qtyping.TFLOperationName[kind]
    worker.update_quantization_recipe(where, operation, config, algorithm_key=AlgorithmName.FLOAT_CASTING)


def made(worker: Any, content: bytes, plan: Plan, ranges: Any = None) -> Any:
    """The model that the quantizer makes, with trained weights as the levels that they are.

    Args:
        worker: The quantizer, with its recipe.
        content: The file that it was given.
        plan: What each layer gets.
        ranges: Its calibration result, for static schemes.

    Raises:
        BackendError: It gave no model.
    """
    if worker.get_quantization_recipe():
        result = worker.quantize(ranges, enable_progress_report=False).quantized_model
        if result is None:
            raise BackendError("ai-edge-quantizer gave no model.")
        model = flatbuffer.read(bytes(result))
    else:
        model = flatbuffer.read(content)
    _put_own_weights(model, flatbuffer.read(content), plan)
    return model


def _put_own_weights(model: Any, plain: Any, plan: Plan) -> None:
    """Trained weights as their levels; weights of palettes as float32 until they are packed."""
    packed = plan.packed
    if not plan.frozen and not packed:
        return
    for place, subgraph in enumerate(model.subgraphs):
        twins = {twin.result_name: twin for _, twin in linear_layers(plain, plain.subgraphs[place])}
        for _, layer in linear_layers(model, subgraph):
            planned, twin = plan.layers.get(layer.result_name), twins.get(layer.result_name)
            if planned is None or twin is None or not layer.has_weights:
                continue
            bits = layer.stored_bits
            if layer.result_name in packed:
                layer.put_floats(palette_of(planned, twin).values())
            elif planned.grid is not None and bits is not None:
                _put_levels(layer, twin, planned, bits)


def _put_levels(layer: Any, twin: Any, planned: LayerPlan, bits: int) -> None:
    found = planned.grid.integers(bits) if planned.grid is not None else None
    if found is None:
        return
    bias = twin.bias()
    layer.put(*found)
    if layer.is_8_bit:
        layer.coarsen(twin.weights(), bias)
        layer.set_bias(bias)
