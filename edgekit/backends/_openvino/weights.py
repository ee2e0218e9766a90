"""Weights of layers on the grids of their schemes, and models whose activations stay float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.choice import closest, split_examples
from edgekit.backends._openvino.correction import Corrections, corrected, linear_sources, some_of
from edgekit.backends._openvino.grids import palette, trained, uniform
from edgekit.backends._openvino.layers import Layer, layers_of
from edgekit.backends._openvino.observation import observe
from edgekit.backends._openvino.plan import LOW_BITS, Key, Plan
from edgekit.backends._openvino.runtime import EXTRA, WHY
from edgekit.backends._openvino.storage import Stored, half
from edgekit.backends._quantize.rounding import pruned
from edgekit.backends.base import CompileRequest
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.backends._openvino.runtime import Example

_DYNAMIC = ("runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE")


def stored(layer: Layer, plan: Plan, block: int | None) -> Stored | None:
    """A layer's weights on the grid of its scheme; None where they stay float."""
    key = layer.key
    bits = plan.bits.get(key, 32)
    if bits > 8:
        return None
    scheme, rows = plan.schemes[key], layer.rows()
    fixed = plan.fixed.get(key)
    is_palette = scheme.startswith("palette") and bits < 8
    if fixed is not None:
        found = trained(rows, fixed.module, fixed.grid, bits, as_table=is_palette)
        if found is not None:
            return found
    if is_palette:
        return palette(rows, bits)
    return uniform(rows, bits, block if bits < 8 else None)


def store_half(model: Any, plan: Plan) -> int:
    """Store the weights of layers that shall have float16; how many there are."""
    found = [layer for layer in layers_of(model) if plan.bits.get(layer.key) == 16]
    for layer in found:
        half(layer)
    return len(found)


def set_activations(model: Any, *, dynamic: bool) -> None:
    """Say in the file whether the runtime may round the data of products whose weights are integers.

    Its own choice is to round them to 8 bits as they come: what the dynamic scheme means, and the others do not.
    """
    model.set_rt_info("32" if dynamic else "0", list(_DYNAMIC))


def weights_only(model: Any, plan: Plan, request: CompileRequest) -> tuple[Any, tuple[str, ...]]:
    """The model with its weights stored as the plan says, activations in float32.

    With calibration examples, weights are rounded anew and biases corrected, if that brings the outputs closer on
    examples that did not set them.
    """
    quantize = request.lowering.quantize
    block = quantize.block_size if quantize else None
    start = {layer.key: one for layer in layers_of(model) if (one := stored(layer, plan, block)) is not None}
    notes = _kept(plan, start)
    if not start:
        result = model.clone()
        store_half(result, plan)
        return result, notes
    candidates = {"the nearest weights": with_layers(model, plan, Corrections(start))}
    # NNCF's zero points differ by channel: of pruned weights no value would be left that most of them have.
    sparse = request.lowering.sparse != "off" and any(pruned(layer.rows()).any() for layer in layers_of(model))
    chosen = bool(request.lowering.overrides or plan.fixed or sparse)
    if quantize and quantize.scheme == "weight_only_wi8_afp32" and not chosen:
        candidates = {"NNCF's weights": _by_nncf(model)} | candidates
    judging: Sequence[Example] = ()
    if quantize and quantize.bias_correction and request.calibration is not None:
        fitting, judging = split_examples(request)
        fitting = some_of(fitting)
        observed = observe(model, fitting, means=linear_sources(model))
        better = corrected(model, model, start, observed, fitting)
        if better.biases:
            candidates["rounding by GPTQ and corrected biases"] = with_layers(model, plan, better)
    if not judging:
        return candidates["the nearest weights"], notes
    result, said = closest(candidates, model, judging, request.lowering.precision)
    return result, (*notes, said)


def with_layers(model: Any, plan: Plan, found: Corrections) -> Any:
    """A copy of the model whose layers are stored as the plan says and was found."""
    result = model.clone()
    store_half(result, plan)
    found.put(result)
    return result


def _by_nncf(model: Any) -> Any:
    nncf = require("nncf", EXTRA, WHY)
    return nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_ASYM)


def _kept(plan: Plan, start: dict[Key, Stored]) -> tuple[str, ...]:
    low = [key for key in start if plan.schemes[key] in LOW_BITS]
    if not low:
        return ()
    fewer = [start[key].bits for key in low if start[key].bits < 8]
    if len(fewer) == len(low):
        return ()
    bits = " and ".join(f"{one}-bit" for one in sorted(set(fewer)))
    return (f"{len(fewer)} of {len(low)} layers have {bits} weights, {len(low) - len(fewer)} keep 8 bits",)
