"""LiteRT (formerly TensorFlow Lite): Android, Raspberry Pi, Linux and browsers run its `.tflite` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.backends._litert import flatbuffer, operators, requests, sharing
from edgekit.backends._litert.batches import require_equal
from edgekit.backends._litert.conversion import EXTRA, SIGNATURE, signatures, to_flatbuffer
from edgekit.backends._litert.interface import artifact_specs, shown_axes
from edgekit.backends._litert.loadable import require_loadable
from edgekit.backends._litert.metadata import with_metadata, worth_writing
from edgekit.backends._litert.older import older_runtimes
from edgekit.backends._litert.quantization import SCHEMES, quantized
from edgekit.backends._litert.sparse import WITHOUT_XNNPACK, store_sparse
from edgekit.backends.base import Backend, CompileRequest, Converted, Issue
from edgekit.core.artifact import Artifact, Manifest
from edgekit.core.files import write_atomic
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec
from edgekit.core.target import Target
from edgekit.core.workload import OlderRuntime, RunPlan, Workload

MAIN = "model.tflite"


class LiteRt(Backend):
    """Converts with litert-torch, quantizes with ai-edge-quantizer."""

    summary: ClassVar[str] = "LiteRT / TFLite: Android, Raspberry Pi, Linux, browsers"
    extra: ClassVar[str] = EXTRA
    runtime_extra: ClassVar[str] = "litert"
    reads: ClassVar[tuple[str, ...]] = ("pt2",)
    schemes: ClassVar[tuple[str, ...]] = SCHEMES
    lays_out: ClassVar[bool] = True
    batches: ClassVar[bool] = True
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
        return [*issues, *requests.unsupported_options(lowering, outputs)]

    def computed_precision(self, lowering: Lowering, target: Target) -> str:
        """See `Backend.computed_precision`: the coarsest of all layers'."""
        return requests.coarsest(lowering)

    def unsupported_operators(self, exported: Any, lowering: Lowering) -> list[Issue]:
        """See `Backend.unsupported_operators`."""
        return operators.unsupported_operators(exported)

    def convert(self, request: CompileRequest, out: Path) -> Converted:
        """See `Backend.convert`."""
        content = to_flatbuffer(request)
        require_loadable(content, request.source)
        require_equal(content, signatures(request))
        notes: tuple[str, ...] = ()
        if request.lowering.quantize is not None or request.lowering.overrides:
            content, notes = quantized(content, request, request.lowering.quantize)
        pruned = any(record.name == "prune_magnitude" and record.kept for record in request.history)
        dense = content
        content, stored = store_sparse(dense, request.lowering.sparse, pruned=pruned)
        model = flatbuffer.read(content)
        inputs, outputs, changed = artifact_specs(request, flatbuffer.signature_types(model, SIGNATURE))
        if worth_writing((*inputs, *outputs)):
            shared = content is not dense or requests.is_packed(request.lowering)
            write = sharing.write if shared else flatbuffer.write
            content = with_metadata(content, request.name, inputs, outputs, SIGNATURE, write=write)
        write_atomic(out / MAIN, content)
        return Converted(MAIN, inputs, outputs, changed=(*changed, *notes, *stored))

    def run_plan(
        self,
        manifest: Manifest,
        target: Target,
        workloads: Sequence[Workload],
        options: Mapping[str, Any] | None = None,
    ) -> RunPlan:
        """See `Backend.run_plan`: the driver takes data in the model's layout, and floats."""
        own: dict[str, Any] = {}
        axes = shown_axes(manifest.lowering, manifest.inputs, manifest.changed)
        if axes:
            own["permute"] = axes
        if requests.has_integer_io(manifest.lowering):
            own["float_io"] = True
        if len(manifest.lowering.batch_sizes) > 1:
            own["signature"] = SIGNATURE
        if WITHOUT_XNNPACK in manifest.changed:
            own["xnnpack"] = False
        return super().run_plan(manifest, target, workloads, own | dict(options or {}))

    def older_runtimes(self, artifact: Artifact) -> tuple[OlderRuntime, ...]:
        """See `Backend.older_runtimes`: tflite-runtime, with what the file's operators ask of it."""
        return older_runtimes(artifact.main)

    def driven(self, artifact: Artifact) -> Artifact:
        """See `Backend.driven`."""
        manifest = artifact.manifest
        if not requests.has_integer_io(manifest.lowering):
            return artifact
        floats = tuple(
            replace(spec, dtype="float32") if spec.dtype in ("int8", "uint8") else spec for spec in manifest.outputs
        )
        return replace(artifact, manifest=replace(manifest, outputs=floats))
