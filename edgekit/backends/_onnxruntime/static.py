"""8-bit weights and activations: ranges and biases from calibration examples, and never worse than the library's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.biases import Bias, Weights
from edgekit.backends._onnxruntime.graph import EXTRA, WHY
from edgekit.backends._onnxruntime.layers import LINEAR
from edgekit.backends._onnxruntime.qdq import INT8, QdqLayer, qdq_layers
from edgekit.backends._onnxruntime.stepwise import Observation, Stepwise, observe, outputs
from edgekit.backends._quantize.judging import best_of, decibels
from edgekit.backends._quantize.sequential import correct_layers
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.backends._onnxruntime.layers import Layer
    from edgekit.backends._onnxruntime.packing import Fixed
    from edgekit.backends._onnxruntime.stepwise import Example
    from edgekit.core.lowering import Quantize

    Range = tuple[float, float]

SCHEME = "static_wi8_ai8"
_DEFAULT = "the library's default ranges"
_LINEAR_ONLY = "layers with weights alone"
_TRANSFORMER = ("LayerNormalization", "RMSNormalization", "Attention", "MultiHeadAttention")
_REMOVED = ("Relu", "Clip")
_STEPS = 255
_NARROWEST = 1e-6
"""A range of a tensor that is always zero."""


@dataclass(frozen=True)
class Static:
    """What is to be quantized, and how.

    Attributes:
        quantize: The options.
        layers: Layers with weights that are to compute in 8 bits.
        others: Nodes, by name, that stay as they are: layers under another scheme.
        everything: Whether what stands between the layers computes in 8 bits too.
        unsigned: Whether activations are uint8, as x86 kernels take them, or int8, as those of Arm do.
        reduce_range: Whether weights keep one bit free.
        fixed: Weights that training has put on a grid.
        ranges: Ranges that training has fixed, by tensor.
    """

    quantize: Quantize
    layers: Sequence[Layer]
    others: Sequence[str]
    everything: bool
    unsigned: bool
    reduce_range: bool
    fixed: Fixed = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)


def static_int8(
    model: Any, plain: Any, how: Static, samples: tuple[Sequence[Example], Sequence[Example]]
) -> tuple[Any, str]:
    """The model in QDQ form, each device's runtime picks its own kernels, and which candidate was kept.

    The library's default, edgekit's ranges, and those with corrected layers are compared by the signal-to-noise ratio of
    the outputs on calibration examples that set nothing; the best is kept. In a transformer what stands between the
    layers with weights (attention, norms, residual sums) computes in float: its outliers cost most and it gains least.

    Args:
        model: The float model, its nodes in calling order; weights that have another scheme may be changed in it.
        plain: The float model as it came, with the same names.
        how: What is quantized.
        samples: Examples that set, and examples that judge.
    """
    fitting, judging = samples
    model = with_biases(model, how.layers)
    wanted = sorted(_tensors(model, how))
    observed = observe(plain, fitting, wanted, {layer.node.input[0] for layer in how.layers if layer.is_linear})
    candidates = dict(_candidates(model, plain, how, observed, fitting))
    reference = outputs(plain, judging)
    ratios = {name: decibels(outputs(one, judging), reference) for name, one in candidates.items()}
    best, said = best_of(ratios, SCHEME, len(judging))
    return candidates[best], said


def _candidates(
    model: Any, plain: Any, how: Static, observed: Observation, fitting: Sequence[Example]
) -> Iterator[tuple[str, Any]]:
    widest = {name: (found.low, found.high) for name, found in observed.histograms.items()}
    own = {name: found.range(how.quantize.ranges) for name, found in observed.histograms.items()} | dict(how.ranges)
    few = not how.everything or is_transformer(model)
    prefix = f"{_LINEAR_ONLY}, " if few and how.everything else ""
    name, result = _DEFAULT, None
    if how.everything:
        result = _quantized(model, how, widest, few=False)
        yield name, result
    if few:
        name, result = f"{prefix}minmax ranges", _quantized(model, how, widest, few=True)
        yield name, result
    if own != widest:
        name = f"{prefix}{how.quantize.ranges} ranges"
        result = _with_ranges(result, model, how, own)
        yield name, result
    if how.quantize.bias_correction and result is not None:
        onnx = require("onnx", EXTRA, WHY)
        changed = onnx.ModelProto()
        changed.CopyFrom(result)
        if correct_layers(_correctable(changed, plain, how, observed, fitting)):
            yield f"{name}, rounding by GPTQ and corrected biases", changed


def is_transformer(model: Any) -> bool:
    """Whether it has attention or norms over channels, whose values have outliers."""
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    attends = any(node.op_type == "MatMul" and made_by.get(node.input[0]) == "Softmax" for node in model.graph.node)
    return attends or any(node.op_type in _TRANSFORMER for node in model.graph.node)


def with_biases(model: Any, layers: Sequence[Layer]) -> Any:
    """A copy in which every linear layer has a bias, of zeros where it had none: a place for a correction."""
    import numpy as np

    onnx = require("onnx", EXTRA, WHY)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights = Weights(changed)
    by_name = {node.name: node for node in changed.graph.node}
    for layer in layers:
        if layer.is_linear and layer.node.op_type != "MatMul":
            bias = Bias(changed, weights, by_name[layer.node.name], layer)
            if bias.can_be_set and not np.any(bias.value()):
                bias.set(bias.value())
    return changed


def _kinds(few: bool) -> list[str]:
    registry = require("onnxruntime.quantization.registry", EXTRA, WHY)
    if few:
        return list(LINEAR)
    # Weights of these are stored in 8 bits per row by edgekit, and read as float.
    apart = ("Gather", "LSTM", "EmbedLayerNormalization", "Attention")
    return sorted((set(registry.QDQRegistry) | set(registry.QLinearOpsRegistry)) - set(apart))


def _tensors(model: Any, how: Static) -> set[str]:
    """Activations that may be quantized, by name; not those that a Relu or Clip alone reads, which it replaces."""
    kinds, chosen = _kinds(not how.everything), {layer.node.name for layer in how.layers}
    initializers = {one.name for one in model.graph.initializer}
    found: set[str] = set()
    for node in model.graph.node:
        if (node.op_type in kinds and node.name not in how.others) or node.name in chosen:
            found |= {name for name in (*node.input, *node.output) if name and name not in initializers}
    return found - _replaced(model).keys()


def _replaced(model: Any) -> dict[str, str]:
    """Results that a Relu or Clip alone reads, and its result."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    given = {value.name for value in model.graph.output}
    return {
        name: one[0].output[0]
        for name, one in readers.items()
        if len(one) == 1 and one[0].op_type in _REMOVED and name == one[0].input[0] and name not in given
    }


def _quantized(model: Any, how: Static, ranges: Mapping[str, Range], *, few: bool) -> Any:
    import numpy as np

    quantization = require("onnxruntime.quantization", EXTRA, WHY)
    calibrate = require("onnxruntime.quantization.calibrate", EXTRA, WHY)
    quantizers = require("onnxruntime.quantization.qdq_quantizer", EXTRA, WHY)
    utilities = require("onnxruntime.quantization.quant_utils", EXTRA, WHY)
    kinds = _kinds(few)
    ranges = dict(ranges) | {name: ranges[by] for name, by in _replaced(model).items() if by in ranges}
    # A transformer's layers give float values to float operators.
    options = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": kinds} if few else {}
    quantizer = quantizers.QDQQuantizer(
        utilities.save_and_reload_model_with_shape_infer(model),
        per_channel=True,
        reduce_range=how.reduce_range,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QUInt8 if how.unsigned else quantization.QuantType.QInt8,
        tensors_range=calibrate.TensorsData(
            quantization.CalibrationMethod.MinMax,
            {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()},
        ),
        nodes_to_quantize=[] if how.everything and not few else [layer.node.name for layer in how.layers],
        nodes_to_exclude=list(how.others),
        op_types_to_quantize=kinds,
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result = quantizer.model.model
    for layer in qdq_layers(result, how.layers):
        if layer.layer.weight in how.fixed:
            layer.fix(*how.fixed[layer.layer.weight])
    return result


def _with_ranges(quantized: Any, model: Any, how: Static, ranges: Mapping[str, Range]) -> Any:
    """The same graph with other ranges of activations; the quantizer itself takes most of the time of all of this."""
    import numpy as np

    onnx = require("onnx", EXTRA, WHY)
    changed = onnx.ModelProto()
    changed.CopyFrom(quantized)
    weights, theirs = Weights(changed), Weights(model)
    for node in changed.graph.node:
        tensor = node.input[0]
        own = tuple(node.input[1:]) == (f"{tensor}_scale", f"{tensor}_zero_point")
        if node.op_type == "QuantizeLinear" and own and tensor in ranges:
            low, high = ranges[tensor]
            scale = np.float32(max(high - low, _NARROWEST) / _STEPS)
            least = 0 if how.unsigned else -128
            zero = np.clip(np.round(least - low / scale), least, least + _STEPS)
            weights[node.input[1]] = np.full_like(weights[node.input[1]], scale)
            weights[node.input[2]] = np.full_like(weights[node.input[2]], zero)
    by_name = {node.name: node for node in model.graph.node}
    for one in qdq_layers(changed, how.layers):
        one.set_bias(Bias(model, theirs, by_name[one.layer.node.name], one.layer).value())
    return changed


def _correctable(
    changed: Any, plain: Any, how: Static, observed: Observation, fitting: Sequence[Example]
) -> Iterator[QdqLayer]:
    import numpy as np

    theirs = Weights(plain)
    by_name = {node.name: node for node in plain.graph.node}
    steps = Stepwise(changed, fitting)
    largest = INT8 // 2 if how.reduce_range else INT8
    for one in qdq_layers(changed, how.layers):
        layer = one.layer
        if not layer.is_linear:
            continue
        twin = by_name[layer.node.name]
        bias = Bias(plain, theirs, twin, layer).value()
        weight = theirs[layer.weight].astype(np.float64)
        one.watch(steps, weight, layer.mean_result(observed.means[twin.input[0]], weight) + bias)
        one.largest, one.is_fixed = largest, layer.weight in how.fixed
        yield one
