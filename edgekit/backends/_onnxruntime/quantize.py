"""Quantization: layers under a static scheme first, dynamic ones next, weights alone last; none that changes nothing."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.biases import Weights
from edgekit.backends._onnxruntime.graph import EXTRA, WHY, merge_duplicates, rename, serialized
from edgekit.backends._onnxruntime.packing import FEW, apply, corrected, stored_as
from edgekit.backends._onnxruntime.plan import DYNAMIC, FLOAT, STATIC, Plan, planned
from edgekit.backends._onnxruntime.products import with_gemms
from edgekit.backends._onnxruntime.static import Static, static_int8
from edgekit.backends._onnxruntime.stepwise import examples
from edgekit.backends._onnxruntime.storage import Stored, pack
from edgekit.backends._quantize.judging import held_out
from edgekit.backends.base import CompileRequest
from edgekit.core.extras import require
from edgekit.core.lowering import Quantize

if TYPE_CHECKING:
    from edgekit.backends._onnxruntime.stepwise import Example

SCHEMES = (
    "float16",
    "static_wi8_ai8",
    "dynamic_wi8_afp32",
    "weight_only_wi8_afp32",
    "weight_only_wi4_afp32",
    "palette_4",
    "palette_2",
    "palette_1",
)
_FUSED = "gemm_"
_ARM = ("aarch64", "armv7l", "arm64")


def quantized(model: Any, request: CompileRequest, exported: Any | None, reduce_range: bool) -> tuple[Any, list[str]]:
    """The model under the request's schemes, and what was decided, in sentences.

    Args:
        model: The float model, batch norms folded.
        request: The request.
        exported: The torch program that it was made from; None for an ONNX file.
        reduce_range: Whether static weights keep one bit free.

    Raises:
        ConfigError: An override fits no layer.
        UnsupportedModelError: A scheme changes nothing in this model, or lacks calibration examples.
    """
    with _quiet():
        model = _in_order(model)
        if STATIC in (request.lowering.precision, *request.lowering.overrides.values()):
            model = with_gemms(model)
        elif not request.lowering.overrides:
            # Rounded for the data of each of their layers, equal weights would be equal no more.
            merge_duplicates(model)
        plan = planned(model, request, exported)
        quantize = request.lowering.quantize or Quantize("static_wi8_ai8")
        samples = _samples(request, quantize, plan)
        notes = list(plan.notes)
        now, stored, said = _weights(model, request, quantize, plan, samples)
        notes += said
        static = plan.under(STATIC)
        everything = request.lowering.precision == STATIC
        if static and samples is not None:
            others = [one.node.name for one in plan.layers if plan.schemes[one.weight] != STATIC]
            unsigned = request.target.cpu.arch not in _ARM
            how = Static(quantize, static, others, everything, unsigned, reduce_range, plan.fixed, plan.ranges)
            now, sentence = static_int8(now, model, how, samples)
            notes.append(sentence)
        dynamic = {name: one for name, one in stored.items() if plan.schemes[name] == DYNAMIC}
        if dynamic:
            now = _dynamic(now, [one.node.name for one in plan.under(DYNAMIC)], dynamic, reduce_range)
        pack(now, {name: one for name, one in stored.items() if name not in dynamic}, request.source)
    return now, notes


def _samples(request: CompileRequest, quantize: Quantize, plan: Plan) -> tuple[list[Example], list[Example]] | None:
    """Examples that set and those that judge; None where there are none and none are needed."""
    needed = bool(plan.under(STATIC))
    if not needed and (request.calibration is None or not quantize.bias_correction):
        return None
    asked = replace(request, lowering=replace(request.lowering, quantize=quantize))
    return held_out(list(examples(asked)))


def _weights(
    model: Any,
    request: CompileRequest,
    quantize: Quantize,
    plan: Plan,
    samples: tuple[list[Example], list[Example]] | None,
) -> tuple[Any, Mapping[str, Stored], list[str]]:
    """The model with weights that are stored in few bits, still as real numbers, and their codes."""
    onnx = require("onnx", EXTRA, WHY)
    plain = Weights(model)
    stored: dict[str, Stored] = {}
    for layer in plan.layers:
        scheme = plan.schemes[layer.weight]
        if scheme not in (FLOAT, STATIC) and layer.weight not in stored:
            stored[layer.weight] = stored_as(layer, plain[layer.weight], scheme, quantize.block_size, plan.fixed)
    if not stored:
        return model, stored, []
    integers = any(one.book is not None and one.layer.is_linear for one in stored.values())
    if samples is not None and quantize.bias_correction and integers:
        named = request.lowering.precision if request.lowering.precision in (*FEW, DYNAMIC) else "weights alone"
        now, changed, said = corrected(model, plan.layers, stored, samples, named)
        return now, changed, [said]
    now = onnx.ModelProto()
    now.CopyFrom(model)
    apply(now, stored, model)
    return now, stored, []


def _in_order(model: Any) -> Any:
    """A copy with a name for every node, and nodes in the order in which they can be computed."""
    onnx = require("onnx", EXTRA, WHY)
    wrapper = require("onnxruntime.quantization.onnx_model", EXTRA, WHY)
    found = onnx.ModelProto()
    found.CopyFrom(model)
    taken: set[str] = set()
    for place, node in enumerate(found.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}_{node.output[0]}"
        taken.add(node.name)
    wrapper.ONNXModel(found).topological_sort()
    # The runtime gives these names anew when it fuses more of a quantized graph while it loads it, and then fails.
    names = {name for node in found.graph.node for name in (*node.input, *node.output) if name.startswith(_FUSED)}
    rename(found, {name: f"early__{name}" for name in names})
    return found


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


def _dynamic(model: Any, nodes: Sequence[str], stored: Mapping[str, Stored], reduce_range: bool) -> Any:
    """8-bit weights; what multiplies matrices quantizes its activations while it runs."""
    import numpy as np

    quantization = require("onnxruntime.quantization", EXTRA, WHY)

    def work(source: str, result: str) -> None:
        quantization.quantize_dynamic(
            source,
            result,
            op_types_to_quantize=["MatMul", "LSTM"],
            # It makes matrix products of Gemm first, under new names.
            nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=quantization.QuantType.QInt8,
        )

    changed = _through_files(model, work)
    weights = Weights(changed)
    for name, one in stored.items():
        # The codes found for data, or trained, in place of the nearest; where the quantizer has turned a weight, its own.
        integers, scale = f"{name}_quantized", f"{name}_scale"
        if one.book is None or one.codes is None or integers not in weights or reduce_range:
            continue
        levels = one.layer.from_rows(one.book.levels[one.codes])
        if weights[integers].shape == levels.shape and weights[scale].size == len(one.book.scale):
            signs = np.sign(one.book.scale[:, 0])
            along = [-1 if place == one.layer.axis else 1 for place in range(levels.ndim)]
            weights[integers] = (levels * signs.reshape(along)).astype(np.int8)
            weights[scale] = np.abs(one.book.scale[:, 0]).astype(np.float32).reshape(weights[scale].shape)
    return changed


def _through_files(model: Any, work: Callable[[str, str], None]) -> Any:
    onnx = require("onnx", EXTRA, WHY)
    with tempfile.TemporaryDirectory(prefix="edgekit-onnxruntime-") as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        source.write_bytes(serialized(model))
        work(str(source), str(result))
        return onnx.load(str(result))
