"""8-bit weights and activations: NNCF's places for them, edgekit's ranges, rounding and biases, and never worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.choice import closest, split_examples
from edgekit.backends._openvino.correction import Corrections, corrected, linear_sources, some_of
from edgekit.backends._openvino.layers import Layer, layers_of
from edgekit.backends._openvino.observation import observe
from edgekit.backends._openvino.plan import Plan
from edgekit.backends._openvino.ranges import KIND, bypassed, quantizers, set_ranges, sources
from edgekit.backends._openvino.runtime import EXTRA, WHY
from edgekit.backends._openvino.storage import Stored
from edgekit.backends._openvino.weights import store_half, stored, with_layers
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.lowering import Quantize

if TYPE_CHECKING:
    from edgekit.backends._openvino.plan import Key
    from edgekit.backends._openvino.runtime import Example

_DEFAULT = "NNCF's default"


def static_int8(model: Any, plan: Plan, request: CompileRequest, device: str) -> tuple[Any, tuple[str, ...]]:
    """The model with 8-bit weights and activations where the plan says so, its other layers as it says.

    NNCF says what is quantized. Its default, edgekit's ranges, and those with corrected layers are compared by the
    signal-to-noise ratio of the outputs on calibration examples that set nothing; the best is kept.

    Raises:
        UnsupportedModelError: NNCF cannot quantize it, or there are no calibration examples.
    """
    quantize = request.lowering.quantize or Quantize("static_wi8_ai8")
    fitting, judging = split_examples(request)
    default = _by_nncf(model, plan, request, device, fitting)
    if not any(True for _ in quantizers(default)):
        return default, ()
    candidates = {_DEFAULT: default.clone()}
    weights = _weights(default, plan, quantize.block_size)
    _put_others(candidates[_DEFAULT], plan, weights)
    plain = _plain(default, model)
    means = linear_sources(plain) if quantize.bias_correction else set()
    some = some_of(fitting)
    observed = observe(plain, some, histograms=sources(default), means=means)
    name = f"{quantize.ranges} ranges"
    ranged = _with_float_biases(default.clone(), model)
    set_ranges(ranged, observed, quantize.ranges, plan.ranges)
    candidates[name] = with_layers(ranged, plan, Corrections(weights))
    if quantize.bias_correction:
        found = corrected(ranged, plain, weights, observed, some)
        if found.biases:
            candidates[f"{name}, rounding by GPTQ and corrected biases"] = with_layers(ranged, plan, found)
    for candidate in candidates.values():
        _compress(candidate)
    if plan.fixed or plan.ranges:
        # NNCF's default has neither the grids nor the ranges that were trained.
        del candidates[_DEFAULT]
    result, said = closest(candidates, model, judging, "static_wi8_ai8")
    return result, (said,)


def _by_nncf(model: Any, plan: Plan, request: CompileRequest, device: str, examples: Sequence[Example]) -> Any:
    nncf = require("nncf", EXTRA, WHY)
    advanced = require("nncf.quantization.advanced_parameters", EXTRA, WHY)
    transformer = any(_is_attention(op) for op in model.get_ops())
    devices = {"CPU": nncf.TargetDevice.CPU, "GPU": nncf.TargetDevice.GPU, "NPU": nncf.TargetDevice.NPU}
    # NNCF trips over embeddings that are looked up by constants, as those of positions are; their tables need only be
    # stored in 8 bits.
    tables = {layer.key[0] for layer in layers_of(model) if layer.kind == "Gather"}
    others = sorted(tables | {key[0] for key, scheme in plan.schemes.items() if scheme != "static_wi8_ai8"})
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(list(examples)),
            subset_size=len(examples),
            target_device=devices.get(device, nncf.TargetDevice.ANY),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(names=others) if others else None,
            # The float weights are wanted once more; integers are made of them at the end.
            advanced_parameters=advanced.AdvancedQuantizationParameters(backend_params={"compress_weights": False}),
        )
    except nncf.ValidationError as error:
        raise UnsupportedModelError(f"NNCF cannot quantize {request.source}: {error}") from error


def _is_attention(node: Any) -> bool:
    kind = node.get_type_name()
    if kind != "Softmax":
        return bool(kind == "ScaledDotProductAttention")
    return any(reader.get_node().get_type_name() == "MatMul" for reader in node.output(0).get_target_inputs())


def _plain(default: Any, model: Any) -> Any:
    """The float model with the factors that NNCF may have moved from activations into weights, and its own biases."""
    return _with_float_biases(bypassed(default), model)


def _with_float_biases(quantized: Any, model: Any) -> Any:
    """Undo NNCF's correction of biases, in place."""
    biases = {layer.key: layer.bias() for layer in layers_of(model) if layer.is_linear}
    for layer in list(layers_of(quantized)):
        if layer.key in biases and (layer.bias() != biases[layer.key]).any():
            layer.set_bias(biases[layer.key])
    return quantized


def _weights(default: Any, plan: Plan, block: int | None) -> dict[Key, Stored]:
    """What every layer stores: in 8 bits where NNCF has quantized it, as the plan says elsewhere."""
    found = {}
    for layer in layers_of(default):
        if plan.schemes.get(layer.key) != "static_wi8_ai8":
            one = stored(layer, plan, block)
        elif layer.kind == "Gather" or (layer.is_linear and _is_quantized(layer)):
            one = stored(layer, plan, None)
        else:
            one = None
        if one is not None:
            found[layer.key] = one
    return found


def _is_quantized(layer: Layer) -> bool:
    return bool(layer.node.input_value(layer.port).get_node().get_type_name() == KIND)


def _put_others(model: Any, plan: Plan, weights: dict[Key, Stored]) -> None:
    """Give NNCF's default the layers that it was to leave alone."""
    left = {layer.key for layer in layers_of(model) if layer.kind == "Gather" or not _is_quantized(layer)}
    others = {key: one for key, one in weights.items() if key in left}
    store_half(model, plan)
    Corrections(others).put(model)


def _compress(model: Any) -> None:
    """Make integers of the weights that are still floats behind NNCF's operators."""
    require("openvino._offline_transformations", EXTRA, WHY).compress_quantize_weights_transformation(model)
