"""8-bit weights and activations: ranges and biases from calibration examples, and never worse than the library's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import readable
from edgekit.backends._litert.choice import Samples, closest, split_examples
from edgekit.backends._litert.conversion import EXTRA
from edgekit.backends._litert.correction import correct_layers
from edgekit.backends._litert.observation import Observation, observe
from edgekit.backends._litert.plan import Plan
from edgekit.backends._litert.recipes import layer_by_layer, made
from edgekit.backends.base import CompileRequest
from edgekit.core.extras import require
from edgekit.core.lowering import Quantize

_LOOPS = f"^{flatbuffer.ADDED}"
_CORRECTED = "rounding by GPTQ and corrected biases"
_CORRECTED_TRAINED = "corrected biases"
_DEFAULT = "the library's default ranges"


def static_int8(content: bytes, request: CompileRequest, quantize: Quantize, plan: Plan) -> tuple[Any, tuple[str, ...]]:
    """8-bit weights per channel and 8-bit activations whose ranges the calibration examples set.

    The library's default, edgekit's ranges, and those with corrected layers are compared by the signal-to-noise ratio
    of the outputs on calibration examples that set nothing; the best is kept. A recurrence keeps a float state, whose
    errors would add up step by step: its weights are 8-bit, its activations are quantized by the runtime as they come.

    Returns:
        The quantized model, and which candidate was kept.

    Raises:
        BackendError: The quantizer gave no model.
        UnsupportedModelError: There are no calibration examples.
    """
    require("ai_edge_quantizer", EXTRA, "the scheme static_wi8_ai8 of the backend litert")
    fitting, judging = split_examples(request, quantize)
    candidates = _candidates(content, fitting, quantize, plan)
    model, said = closest(candidates, content, judging, quantize.scheme)
    return model, (said,)


def _candidates(content: bytes, samples: Samples, quantize: Quantize, plan: Plan) -> dict[str, Any]:
    plain = flatbuffer.read(content)
    # The calibrator reads every tensor, and the runtime does not keep the results that nothing reads.
    ranges = _quantizer(readable(flatbuffer.read(content)), quantize, plan).calibrate(samples, num_threads=1)
    found = {}
    if not plan.ranges:
        found[_DEFAULT] = _quantized(content, quantize, plan, ranges)
    observed = observe(content, samples)
    name = "trained ranges" if plan.ranges else f"{quantize.ranges} ranges"
    own = _with_ranges(ranges, observed, quantize, plan)
    found[name] = _quantized(content, quantize, plan, own)
    if quantize.bias_correction:
        corrected = _quantized(content, quantize, plan, own)
        if correct_layers(corrected, plain, observed, samples, plan.frozen):
            found[f"{name}, {_CORRECTED_TRAINED if plan.frozen else _CORRECTED}"] = corrected
    return found


def _with_ranges(ranges: Mapping[str, Any], observed: Observation, quantize: Quantize, plan: Plan) -> dict[str, Any]:
    """The calibrator's result with our ranges in it, trained ones where there are any; in its own shape and type."""
    import numpy as np

    own = {}
    for name, found in ranges.items():
        own[name] = found
        if name in observed.histograms and found and "min" in found:
            low, high = plan.ranges.get(name) or observed.histograms[name].range(quantize.ranges)
            own[name] = dict(found) | {"min": np.full_like(found["min"], low), "max": np.full_like(found["max"], high)}
    return own


def _quantized(content: bytes, quantize: Quantize, plan: Plan, ranges: Mapping[str, Any]) -> Any:
    return made(_quantizer(content, quantize, plan), content, plan, ranges)


def _quantizer(content: bytes, quantize: Quantize, plan: Plan) -> Any:
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
    layer_by_layer(worker, plan)
    return worker
