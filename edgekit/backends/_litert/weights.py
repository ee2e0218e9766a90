"""Schemes that store weights in fewer bits and leave activations in float; calibration examples help, where given."""

from __future__ import annotations

from typing import Any

from edgekit.backends._litert import flatbuffer, fourbits, palettes
from edgekit.backends._litert.choice import closest, split_examples
from edgekit.backends._litert.conversion import EXTRA
from edgekit.backends._litert.correction import correct_layers
from edgekit.backends._litert.observation import observe
from edgekit.backends._litert.palettes import keep_small
from edgekit.backends._litert.plan import EIGHT, FOUR, Plan
from edgekit.backends._litert.recipes import everywhere, layer_by_layer, made
from edgekit.backends.base import CompileRequest
from edgekit.core.extras import require
from edgekit.core.lowering import Quantize

CORRECTED = (EIGHT, FOUR, "dynamic_wi8_afp32", "palette_4", "palette_2", "palette_1")
"""Schemes under which examples make rounding and biases better."""
_BETTER = "rounding by GPTQ and corrected biases"


def weights_only(
    content: bytes, request: CompileRequest, quantize: Quantize | None, plan: Plan
) -> tuple[Any, Plan, tuple[str, ...]]:
    """The model with its weights stored as a plan says, inputs and outputs in float32.

    Where the request has calibration examples, integer weights get a better rounding, and biases that keep every layer's
    mean, if that brings the outputs closer on examples that did not set them.

    Returns:
        The model, the plan as it was settled, and what was decided, in sentences.

    Raises:
        BackendError: The quantizer gave no model.
    """
    require("ai_edge_quantizer", EXTRA, f"the scheme {request.lowering.precision} of the backend litert")
    if request.calibration is None or quantize is None or plan.main not in CORRECTED:
        settled = _settled(fourbits.by_size(plan), quantize)
        return _rounded(content, settled), settled, _said(settled)
    fitting, judging = split_examples(request, quantize)
    settled = _settled(fourbits.by_measure(plan, content, fitting), quantize)
    rounded, notes = _rounded(content, settled), _said(settled)
    if not quantize.bias_correction:
        return rounded, settled, notes
    corrected = _rounded(content, settled)
    observed = observe(content, fitting, ranges=False)
    if not correct_layers(corrected, flatbuffer.read(content), observed, fitting, settled.frozen):
        return rounded, settled, notes
    candidates = {"the nearest weights": rounded, _BETTER: corrected}
    model, said = closest(candidates, content, judging, plan.main)
    if model is corrected and settled.of_scheme(FOUR):
        # What was found good is done again with all examples: at 4 bits each of them counts.
        model = _rounded(content, settled)
        everything = {name: [*samples, *judging[name]] for name, samples in fitting.items()}
        observed = observe(content, everything, ranges=False)
        correct_layers(model, flatbuffer.read(content), observed, everything, settled.frozen)
    return model, settled, (*notes, said)


def _settled(plan: Plan, quantize: Quantize | None) -> Plan:
    return keep_small(fourbits.with_blocks(plan, quantize.block_size if quantize is not None else None))


def _said(plan: Plan) -> tuple[str, ...]:
    return (*fourbits.said(plan), *palettes.said(plan))


def _rounded(content: bytes, plan: Plan) -> Any:
    from ai_edge_quantizer import quantizer

    worker = quantizer.Quantizer(bytearray(content))
    everywhere(worker, plan.main)
    layer_by_layer(worker, plan)
    return made(worker, content, plan)
