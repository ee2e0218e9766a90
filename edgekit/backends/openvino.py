"""OpenVINO: Intel CPUs, GPUs and NPUs, and Arm CPUs, run its intermediate representation (`.xml` + `.bin`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.backends.base import Backend, CompileRequest, Converted, Issue
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.files import write_atomic
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec
from edgekit.core.program import first_line
from edgekit.core.target import Target

MAIN = "model.xml"
_EXTRA = "openvino"


class OpenVino(Backend):
    """Converts with openvino.convert_model, shapes pinned."""

    summary: ClassVar[str] = "OpenVINO: Intel CPU, GPU and NPU; Arm CPU"
    extra: ClassVar[str] = _EXTRA
    runtime_extra: ClassVar[str] = _EXTRA
    reads: ClassVar[tuple[str, ...]] = ("pt2", "onnx")
    schemes: ClassVar[tuple[str, ...]] = ("float16",)
    converter_modules: ClassVar[tuple[str, ...]] = ("openvino",)
    toolchain: ClassVar[tuple[str, ...]] = ("torch", "openvino")
    runtime_package: ClassVar[str] = "openvino"
    runtime_module: ClassVar[str] = "openvino"
    runtime_exclude: ClassVar[tuple[str, ...]] = ("openvino-telemetry",)
    driver: ClassVar[str] = "device_openvino.py"

    def unsupported(
        self, program_format: str, outputs: Sequence[TensorSpec], lowering: Lowering, target: Target
    ) -> list[Issue]:
        """See `Backend.unsupported`."""
        issues = super().unsupported(program_format, outputs, lowering, target)
        if lowering.quantize and lowering.quantize.io != "float32":
            issues.append(
                Issue(f"io: {lowering.quantize.io}", "OpenVINO keeps the model's types", hint="Leave out io.")
            )
        if lowering.overrides:
            layers = ", ".join(sorted(lowering.overrides))
            issues.append(Issue("overrides", "edgekit lowers all layers alike for OpenVINO", layers))
        return issues

    def convert(self, request: CompileRequest, out: Path) -> Converted:
        """See `Backend.convert`."""
        ov = require("openvino", _EXTRA, "the backend openvino")
        source: Any = str(request.program)
        if request.program.suffix == ".pt2":
            torch = require("torch", "torch", "the backend openvino")
            source = torch.export.load(request.program)
        try:
            model = ov.convert_model(source)
        except Exception as error:
            raise UnsupportedModelError(
                f"OpenVINO cannot convert {request.source}: {first_line(error)}",
                "Run with --verbose for its own words.",
            ) from error
        _pin(ov, model, request)
        half = request.lowering.precision == "float16"
        ov.save_model(model, str(out / MAIN), compress_to_fp16=half)
        _drop_paths(out / MAIN)
        inputs = tuple(_as_converted(spec, port) for spec, port in zip(request.inputs, model.inputs, strict=True))
        outputs = tuple(_as_converted(spec, port) for spec, port in zip(request.outputs, model.outputs, strict=True))
        changed = tuple(
            f"'{now.name}' is {now.dtype} in the artifact; it was {was.dtype}"
            for was, now in zip(request.inputs + request.outputs, inputs + outputs, strict=True)
            if was.dtype != now.dtype
        )
        return Converted(MAIN, inputs, outputs, changed=changed)


def _pin(ov: Any, model: Any, request: CompileRequest) -> None:
    """Give ports our names and static shapes: convert_model drops both."""
    ports = {name: port for port in model.inputs for name in port.get_names()}
    ordered = [ports.get(spec.name, model.inputs[index]) for index, spec in enumerate(request.inputs)]
    model.reshape({port: ov.PartialShape(list(spec.shape)) for port, spec in zip(ordered, request.inputs, strict=True)})
    for port, spec in zip(ordered, request.inputs, strict=True):
        port.get_tensor().set_names({spec.name})
        # A port whose element type is left open becomes f32 by chance of the first operator: say what it is.
        if port.get_element_type().is_dynamic():
            port.get_node().set_element_type(ov.Type(_numpy_dtype(spec.dtype)))
    model.validate_nodes_and_infer_types()
    for port, spec in zip(model.outputs, request.outputs, strict=True):
        port.get_tensor().set_names({spec.name})


def _numpy_dtype(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def _as_converted(spec: TensorSpec, port: Any) -> TensorSpec:
    dtype: Any = str(port.get_element_type().to_dtype())
    return replace(spec, dtype=dtype)


def _drop_paths(xml: Path) -> None:
    """Remove the conversion's temporary paths from the file: equal input has to give equal bytes."""
    text = xml.read_text(encoding="utf-8")
    write_atomic(xml, re.sub(r"\s*<input_model value=\"[^\"]*\" ?/>", "", text))
