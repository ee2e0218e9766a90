"""Quantization of OpenVINO models, layer by layer as a lowering says; each scheme refuses when it would change nothing."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Any

from edgekit.backends._openvino.plan import FLOAT, Plan, plan_of
from edgekit.backends._openvino.runtime import EXTRA, WHY
from edgekit.backends.base import CompileRequest, Issue
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.lowering import Lowering

SCHEMES = (
    "float16",
    "static_wi8_ai8",
    "weight_only_wi8_afp32",
    "dynamic_wi8_afp32",
    "weight_only_wi4_afp32",
    "palette_4",
    "palette_2",
    "palette_1",
)
_OVERRIDES = (FLOAT, *(scheme for scheme in SCHEMES if scheme != "dynamic_wi8_afp32"))
_INTEGERS = ("i8", "u8", "i4", "u4", "u2", "u1")
_FLOATS = ("f32", "f64")


@dataclass(frozen=True)
class Quantized:
    """What quantization made.

    Attributes:
        model: The model.
        notes: What was decided, in sentences.
        half: Whether what is still float32 in it is to be saved in float16.
    """

    model: Any
    notes: tuple[str, ...] = ()
    half: bool = False


def block_telemetry() -> None:
    """Keep OpenVINO and NNCF from looking for an analytics host and from writing an id into the home folder."""
    # An import that fails makes both of them take their own silent stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how an import is blocked


def override_issues(lowering: Lowering) -> list[Issue]:
    """Schemes of single layers that OpenVINO does not have."""
    return [
        Issue(
            f"scheme {scheme}",
            "OpenVINO has it for all layers at once" if scheme in SCHEMES else "OpenVINO does not have it",
            f"overrides: {path}",
            hint=f"Layers can have: {', '.join(_OVERRIDES)}.",
        )
        for path, scheme in lowering.overrides.items()
        if scheme not in _OVERRIDES
    ]


def quantized(model: Any, request: CompileRequest, device: str) -> Quantized:
    """The model under the request's scheme and overrides; inputs and outputs stay as they are.

    Raises:
        ConfigError: An override fits no layer.
        UnsupportedModelError: The scheme changes nothing in this model, or lacks calibration examples.
    """
    lowering = request.lowering
    scheme = lowering.precision
    if scheme == "float16" and not lowering.overrides:
        # save_model does the work; there has to be something to store in half.
        return Quantized(_changed(model, request, _constants(model, _FLOATS) > 0), half=True)
    plan = plan_of(model, request)
    if scheme == "dynamic_wi8_afp32" and not _has_product(plan, model):
        raise UnsupportedModelError(
            f"The scheme {scheme} changes nothing in {request.source}: OpenVINO quantizes the data of matrix products as"
            " they come, and this model has none with weights.",
            "Use static_wi8_ai8 or weight_only_wi8_afp32.",
        )
    before = _constants(model, _INTEGERS) + _constants(model, ("f16",))
    _quiet()
    result, notes = _by_plan(model, plan, request, device)
    after = _constants(result, _INTEGERS) + _constants(result, ("f16",))
    return Quantized(_changed(result, request, after > before or _fake_quantized(result)), notes)


def _by_plan(model: Any, plan: Plan, request: CompileRequest, device: str) -> tuple[Any, tuple[str, ...]]:
    from edgekit.backends._openvino.static import static_int8
    from edgekit.backends._openvino.weights import set_activations, weights_only

    scheme = request.lowering.precision
    is_static = scheme == "static_wi8_ai8" or bool(plan.with_scheme("static_wi8_ai8"))
    result, notes = static_int8(model, plan, request, device) if is_static else weights_only(model, plan, request)
    if any(one not in ("static_wi8_ai8", "float16", FLOAT) for one in plan.schemes.values()):
        set_activations(result, dynamic=scheme == "dynamic_wi8_afp32")
    return result, notes


def _has_product(plan: Plan, model: Any) -> bool:
    from edgekit.backends._openvino.layers import layers_of

    return any(layer.kind == "MatMul" and plan.bits.get(layer.key) == 8 for layer in layers_of(model))


def _quiet() -> None:
    block_telemetry()
    require("nncf", EXTRA, WHY)
    logging.getLogger("nncf").setLevel(logging.WARNING)


def _changed(model: Any, request: CompileRequest, changed: bool) -> Any:  # what was found, no option
    if not changed:
        raise UnsupportedModelError(
            f"The scheme {request.lowering.precision} changes nothing in {request.source}: it has no weights that"
            " OpenVINO quantizes.",
            "Leave out `quantize` for this model.",
        )
    return model


def _constants(model: Any, kinds: tuple[str, ...]) -> int:
    """How many weights, of one dimension or more, have one of these types."""
    return sum(
        1
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
        and op.get_element_type().get_type_name() in kinds
        and len(op.get_output_shape(0)) > 0
    )


def _fake_quantized(model: Any) -> bool:
    return any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
