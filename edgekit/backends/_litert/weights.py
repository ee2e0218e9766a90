"""Schemes that store weights in fewer bits and leave activations in float; calibration examples help, where given."""

from __future__ import annotations

import math
import re
from typing import Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.choice import closest, split_examples
from edgekit.backends._litert.conversion import EXTRA
from edgekit.backends._litert.correction import correct_layers
from edgekit.backends._litert.observation import observe
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import BackendError
from edgekit.core.extras import require
from edgekit.core.lowering import Quantize, Scheme

_FOUR_BIT = ("CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
"""Operators whose weights the quantizer stores in 4 bits; depthwise and transposed convolutions are not among them."""
_CAST = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "EMBEDDING_LOOKUP")
_FOUR: Scheme = "weight_only_wi4_afp32"
_CORRECTED = ("weight_only_wi8_afp32", _FOUR, "dynamic_wi8_afp32")
_KEPT = 0.1
"""Small layers, together at most this share of the weights, keep 8 bits: the stem and the first blocks are among them,
lose most at 4 bits and save least."""


def weights_only(content: bytes, request: CompileRequest, quantize: Quantize) -> tuple[Any, tuple[str, ...]]:
    """The model with its weights stored as a scheme says, inputs and outputs in float32.

    Where the request has calibration examples, integer weights get a better rounding, and biases that keep every layer's
    mean, if that brings the outputs closer on examples that did not set them.

    Returns:
        The model, and what was decided, in sentences.

    Raises:
        BackendError: The quantizer gave no model.
    """
    require("ai_edge_quantizer", EXTRA, f"the scheme {quantize.scheme} of the backend litert")
    rounded, notes = _rounded(content, quantize.scheme)
    if request.calibration is None or not quantize.bias_correction or quantize.scheme not in _CORRECTED:
        return rounded, notes
    fitting, judging = split_examples(request, quantize)
    corrected, _ = _rounded(content, quantize.scheme)
    observed = observe(content, fitting, ranges=False)
    if not correct_layers(corrected, flatbuffer.read(content), observed, fitting):
        return rounded, notes
    candidates = {"the nearest weights": rounded, "rounding by GPTQ and corrected biases": corrected}
    model, said = closest(candidates, content, judging, quantize.scheme)
    return model, (*notes, said)


def _rounded(content: bytes, scheme: Scheme) -> tuple[Any, tuple[str, ...]]:
    from ai_edge_quantizer import quantizer, recipe

    worker = quantizer.Quantizer(bytearray(content))
    notes: tuple[str, ...] = ()
    if scheme == _FOUR:
        notes = _four_bits(worker, flatbuffer.read(content))
    elif scheme == "float16":
        _half(worker)
    else:
        worker.load_quantization_recipe(getattr(recipe, scheme)())
    if not worker.get_quantization_recipe():
        return flatbuffer.read(content), ()
    result = worker.quantize(enable_progress_report=False).quantized_model
    if result is None:
        raise BackendError("ai-edge-quantizer gave no model.")
    return flatbuffer.read(bytes(result)), notes


def _half(worker: Any) -> None:
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    for name in _CAST:
        worker.update_quantization_recipe(
            ".*", qtyping.TFLOperationName[name], config, algorithm_key=AlgorithmName.FLOAT_CASTING
        )


def _four_bits(worker: Any, model: Any) -> tuple[str, ...]:
    """4 bits per channel for large layers, clipped where that loses least; 8 bits for small ones and other operators.

    The clipping is OCTAV's: C. Sakr et al., "Optimal Clipping and Magnitude-aware Differentiation for Improved
    Quantization-aware Training", ICML 2022.
    """
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    sizes = _weights(model)
    small = _small(sizes)
    large = [name for name, (_, kind) in sizes.items() if kind in _FOUR_BIT and name not in small]
    if not large:
        return ()
    worker.add_weight_only_config(".*", TFLOperationName.ALL_SUPPORTED, num_bits=8)
    for name in large:
        worker.add_weight_only_config(
            f"^{re.escape(name)};?$",
            TFLOperationName[sizes[name][1]],
            num_bits=4,
            algorithm_key=AlgorithmName.OCTAV,
        )
    kept = len(sizes) - len(large)
    return (f"{len(large)} of {len(sizes)} layers have 4-bit weights, {kept} keep 8 bits",) if kept else ()


def _weights(model: Any) -> dict[str, tuple[int, str]]:
    """How many constant weights each linear operator has, and its kind, by the name of its result."""
    names = flatbuffer.builtin_names()
    found = {}
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            kind = flatbuffer.operator_name(model, operator, names)
            if kind not in (*_FOUR_BIT, "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"):
                continue
            tensor = subgraph.tensors[int(operator.inputs[1])]
            if model.buffers[tensor.buffer].data is not None:
                result = flatbuffer.text(subgraph.tensors[int(operator.outputs[0])].name)
                found[result] = (math.prod(int(size) for size in tensor.shape), kind)
    return found


def _small(sizes: dict[str, tuple[int, str]]) -> set[str]:
    total = sum(size for size, _ in sizes.values())
    found, taken = set(), 0
    for name, (size, _) in sorted(sizes.items(), key=lambda item: (item[1][0], item[0])):
        taken += size
        if taken > _KEPT * total:
            break
        found.add(name)
    return found
