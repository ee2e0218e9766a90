"""Quantization with NNCF, and storage in float16; each refuses when it would change nothing."""

from __future__ import annotations

import logging
import sys
from typing import Any

from edgekit.backends.base import CompileRequest, calibration_batches
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

EXTRA = "openvino"
WHY = "the backend openvino"
SCHEMES = ("float16", "static_wi8_ai8", "weight_only_wi8_afp32")
_INTEGERS = ("i8", "u8")
_FLOATS = ("f32", "f64")


def block_telemetry() -> None:
    """Keep OpenVINO and NNCF from looking for an analytics host and from writing an id into the home folder."""
    # An import that fails makes both of them take their own silent stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how an import is blocked


def quantized(model: Any, request: CompileRequest, device: str) -> Any:
    """The model under the request's scheme; inputs and outputs stay as they are.

    Raises:
        UnsupportedModelError: The scheme changes nothing in this model, or lacks calibration examples.
    """
    scheme = request.lowering.precision
    if scheme == "float16":
        # save_model does the work; there has to be something to store in half.
        changed, result = _constants(model, _FLOATS) > 0, model
    else:
        before = _constants(model, _INTEGERS)
        result = _static(model, request, device) if scheme == "static_wi8_ai8" else _weights(model)
        changed = _constants(result, _INTEGERS) > before or _fake_quantized(result)
    if not changed:
        raise UnsupportedModelError(
            f"The scheme {scheme} changes nothing in {request.source}: it has no weights that OpenVINO quantizes.",
            "Leave out `quantize` for this model.",
        )
    return result


def _nncf() -> Any:
    block_telemetry()
    nncf = require("nncf", EXTRA, WHY)
    logging.getLogger("nncf").setLevel(logging.WARNING)
    return nncf


def _static(model: Any, request: CompileRequest, device: str) -> Any:
    nncf = _nncf()
    examples = list(calibration_batches(request))
    transformer = any(op.get_type_name() == "ScaledDotProductAttention" for op in model.get_ops())
    devices = {"CPU": nncf.TargetDevice.CPU, "GPU": nncf.TargetDevice.GPU, "NPU": nncf.TargetDevice.NPU}
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(examples),
            subset_size=len(examples),
            target_device=devices.get(device, nncf.TargetDevice.ANY),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
    except nncf.ValidationError as error:
        raise UnsupportedModelError(f"NNCF cannot quantize {request.source}: {error}") from error


def _weights(model: Any) -> Any:
    nncf = _nncf()
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


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
