"""LiteRT (formerly TensorFlow Lite): Android, Raspberry Pi, Linux and browsers run its `.tflite` files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.backends.base import Backend, CompileRequest, Converted, Issue
from edgekit.core.errors import BackendError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.files import write_atomic
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import TensorSpec
from edgekit.core.program import first_line
from edgekit.core.target import Target

if TYPE_CHECKING:
    from edgekit.core.task import Array

MAIN = "model.tflite"
_CONVERT_EXTRA = "litert-convert"
_SIGNATURE = "serving_default"
_NARROWED = {"int64": "int32", "float64": "float32"}


class LiteRt(Backend):
    """Converts with litert-torch, quantizes with ai-edge-quantizer."""

    summary: ClassVar[str] = "LiteRT / TFLite: Android, Raspberry Pi, Linux, browsers"
    extra: ClassVar[str] = _CONVERT_EXTRA
    runtime_extra: ClassVar[str] = "litert"
    reads: ClassVar[tuple[str, ...]] = ("pt2",)
    schemes: ClassVar[tuple[str, ...]] = ("static_wi8_ai8",)
    converter_modules: ClassVar[tuple[str, ...]] = ("litert_torch", "torch")
    toolchain: ClassVar[tuple[str, ...]] = (
        "torch",
        "litert-torch",
        "litert-converter",
        "ai-edge-litert",
        "ai-edge-quantizer",
    )
    runtime_package: ClassVar[str] = "ai-edge-litert"
    runtime_module: ClassVar[str] = "ai_edge_litert"
    runtime_exclude: ClassVar[tuple[str, ...]] = (
        "backports-strenum",
        "flatbuffers",
        "ml-dtypes",
        "protobuf",
        "tqdm",
        "typing-extensions",
    )
    min_glibc: ClassVar[str | None] = "2.34"
    driver: ClassVar[str] = "device_litert.py"

    def unsupported(
        self, program_format: str, outputs: Sequence[TensorSpec], lowering: Lowering, target: Target
    ) -> list[Issue]:
        """See `Backend.unsupported`."""
        issues = super().unsupported(program_format, outputs, lowering, target)
        if lowering.quantize and lowering.quantize.io == "uint8":
            issues.append(Issue("io: uint8", "LiteRT's 8-bit scheme is signed", hint="Use io: int8 or io: float32."))
        if lowering.overrides:
            layers = ", ".join(sorted(lowering.overrides))
            issues.append(Issue("overrides", "edgekit quantizes all layers alike for LiteRT", layers))
        return issues

    def convert(self, request: CompileRequest, out: Path) -> Converted:
        """See `Backend.convert`."""
        flatbuffer = _to_flatbuffer(request)
        inputs, outputs, changed = _narrowed(request)
        quantize = request.lowering.quantize
        if quantize is not None:
            flatbuffer = _static_int8(flatbuffer, request, quantize)
            if quantize.io == "int8":
                inputs = tuple(replace(s, dtype="int8") if s.dtype == "float32" else s for s in inputs)
                outputs = tuple(replace(s, dtype="int8") if s.dtype == "float32" else s for s in outputs)
        write_atomic(out / MAIN, flatbuffer)
        return Converted(MAIN, inputs, outputs, changed=changed)


def _to_flatbuffer(request: CompileRequest) -> bytes:
    torch = require("torch", _CONVERT_EXTRA, "the backend litert")
    litert_torch = require("litert_torch", _CONVERT_EXTRA, "the backend litert")
    exported = torch.export.load(request.program)
    inner = exported.module()
    output_names = [spec.name for spec in request.outputs]

    class Named(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        """Keyword inputs and a dict of outputs: the names that litert-torch writes into the file's signature."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **tensors: Any) -> dict[str, Any]:
            results = self.inner(*tensors.values())
            return dict(zip(output_names, results if isinstance(results, tuple | list) else (results,), strict=True))

    examples = {spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in request.inputs}
    module = Named()
    # An exported program cannot be put into evaluation mode, and was exported in it; the converter only looks at this.
    module.training = False
    try:
        converted = litert_torch.signature(_SIGNATURE, module, sample_kwargs=examples).convert()
    except Exception as error:
        raise UnsupportedModelError(
            f"litert-torch cannot convert {request.source}: {first_line(error)}",
            "Run with --verbose for its own words.",
        ) from error
    return bytes(converted.model_content())


def _narrowed(request: CompileRequest) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...]]:
    """Specs as litert-torch leaves them: 64-bit types become 32-bit ones, which it does without a word."""
    changed = []

    def narrow(spec: TensorSpec, kind: str) -> TensorSpec:
        if spec.dtype not in _NARROWED:
            return spec
        changed.append(f"the {kind} '{spec.name}' is {_NARROWED[spec.dtype]} in the artifact; it was {spec.dtype}")
        return replace(spec, dtype=_NARROWED[spec.dtype])  # type: ignore[arg-type]  # the values of a constant table

    inputs = tuple(narrow(spec, "input") for spec in request.inputs)
    outputs = tuple(narrow(spec, "output") for spec in request.outputs)
    return inputs, outputs, tuple(changed)


def _static_int8(flatbuffer: bytes, request: CompileRequest, quantize: Quantize) -> bytes:
    """8-bit weights per channel and 8-bit activations whose ranges the calibration examples set."""
    require("ai_edge_quantizer", _CONVERT_EXTRA, "the scheme static_wi8_ai8 of the backend litert")
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    worker = quantizer.Quantizer(bytearray(flatbuffer), recipe.static_wi8_ai8())
    if quantize.io == "float32":
        # The scheme alone makes inputs and outputs int8, which no caller of the float model expects.
        for operation in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            worker.update_quantization_recipe(".*", operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    samples = list(_calibration(request, quantize.calibration))
    ranges = worker.calibrate({_SIGNATURE: samples}, num_threads=1)
    quantized = worker.quantize(ranges).quantized_model
    if quantized is None:
        raise BackendError("ai-edge-quantizer gave no model.")
    if not _has_int8_weights(bytes(quantized)):
        raise UnsupportedModelError(
            f"The scheme {quantize.scheme} changes nothing in {request.source}: it has no layer that LiteRT quantizes.",
            "Leave out `quantize` for this model.",
        )
    return bytes(quantized)


def _has_int8_weights(flatbuffer: bytes) -> bool:
    from ai_edge_litert import schema_py_generated as tflite

    model = tflite.ModelT.InitFromPackedBuf(flatbuffer, 0)
    return any(
        tensor.type == tflite.TensorType.INT8 and model.buffers[tensor.buffer].data is not None
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
    )


def _calibration(request: CompileRequest, count: int) -> Iterator[Mapping[str, Array]]:
    """Examples in the program's own batch size, from the request's calibration folder."""
    import numpy as np

    if request.calibration is None:
        raise UnsupportedModelError(
            f"{request.lowering.precision} needs calibration examples, and there are none.",
            "Give a task whose examples('calibration') yields inputs: edgekit.yaml: task: task.py:NAME",
        )
    arrays = {spec.name: np.load(request.calibration / f"{spec.name}.npy", mmap_mode="r") for spec in request.inputs}
    batch = request.inputs[0].batch_size
    available = min(count, *(len(array) for array in arrays.values()))
    if available < batch:
        raise UnsupportedModelError(
            f"{request.lowering.precision} needs at least one whole batch of {batch} calibration examples; there are"
            f" {available}.",
            "Yield more in examples('calibration'), or raise quantize.calibration in the recipe.",
        )
    for start in range(0, available - batch + 1, batch):
        yield {
            spec.name: np.ascontiguousarray(arrays[spec.name][start : start + batch]).astype(
                _NARROWED.get(spec.dtype, spec.dtype)
            )
            for spec in request.inputs
        }
