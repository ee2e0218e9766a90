"""ONNX Runtime: PCs, servers and boards run its `.onnx` files; its mobile builds run the `.ort` form."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.backends import _graph
from edgekit.backends._onnxruntime import graph as onnx_graph
from edgekit.backends._onnxruntime.export import newest_opset, quiet, to_onnx
from edgekit.backends._onnxruntime.format import in_order
from edgekit.backends._onnxruntime.packing import FEW
from edgekit.backends._onnxruntime.plan import STATIC
from edgekit.backends._onnxruntime.quantize import SCHEMES, quantized
from edgekit.backends._onnxruntime.sparse import with_sparse_weights
from edgekit.backends.base import Backend, CompileRequest, Converted, Issue
from edgekit.core.artifact import Manifest
from edgekit.core.errors import ConfigError, nearest
from edgekit.core.extras import require
from edgekit.core.files import write_atomic
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec
from edgekit.core.target import Target
from edgekit.core.workload import RunPlan, Workload

_MAINS: Mapping[str, str] = {"onnx": "model.onnx", "ort": "model.ort"}
_FOR_DRIVER = ("optimization", "providers")
_FLOAT, _BLOCKS = "float32", "weight_only_wi4_afp32"
_SAME_MACHINE: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Options:
    """What a target file may set under `options: {onnxruntime: …}`.

    Attributes:
        format: `onnx`, or `ort` for the mobile builds of the runtime.
        offline: How far the graph is optimised before it is written: `none`, `basic` (nothing but standard operators),
            `extended` (operators fused for the CPU, the same on every processor) or `all` (laid out for this host's
            processor: only for targets of the same architecture).
        optimization: What the runtime does itself while it loads: `all`, `extended`, `basic` or `none`.
        reduce_range: Whether 8-bit weights keep one bit free: x86 processors without VNNI saturate otherwise.
        providers: Execution providers, the preferred first.
    """

    format: str = "onnx"
    offline: str = "extended"
    optimization: str = "all"
    reduce_range: bool = False
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


class OnnxRuntime(Backend):
    """Exports with torch.onnx, optimises and quantizes with onnxruntime."""

    summary: ClassVar[str] = "ONNX Runtime: Linux, Raspberry Pi, Windows, macOS, mobile"
    extra: ClassVar[str] = onnx_graph.EXTRA
    runtime_extra: ClassVar[str] = onnx_graph.EXTRA
    reads: ClassVar[tuple[str, ...]] = ("pt2", "onnx")
    schemes: ClassVar[tuple[str, ...]] = SCHEMES
    converter_modules: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript")
    toolchain: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
    runtime_package: ClassVar[str] = "onnxruntime"
    runtime_module: ClassVar[str] = "onnxruntime"
    # Read and written by its Python tools for converting models; a session imports none of them.
    runtime_exclude: ClassVar[tuple[str, ...]] = ("flatbuffers", "protobuf", "sympy", "mpmath", "packaging")
    driver: ClassVar[str] = "device_onnxruntime.py"

    def unsupported(
        self, program_format: str, outputs: Sequence[TensorSpec], lowering: Lowering, target: Target
    ) -> list[Issue]:
        """See `Backend.unsupported`."""
        issues = super().unsupported(program_format, outputs, lowering, target)
        chosen = options_of(target)
        newest_opset(self.runtime_version(target))
        few = sorted({lowering.precision, *lowering.overrides.values()} & FEW.keys())
        if chosen.format == "ort" and few:
            hint = "Use format: onnx, or a scheme of 8 bits."
            reason = "the runtime folds nothing when it loads a file in ORT format: it would unpack weights at each run"
            issues.append(Issue(f"scheme {', '.join(few)}", reason, hint=hint))
        if lowering.quantize and lowering.quantize.io != "float32":
            hint = "Leave out io, or use io: float32."
            issues.append(Issue(f"io: {lowering.quantize.io}", "inputs and outputs stay float32 here", hint=hint))
        for path, scheme in lowering.overrides.items():
            if scheme not in (_FLOAT, *SCHEMES):
                hint = f"Schemes of single layers: {', '.join((_FLOAT, *SCHEMES))}."
                issues.append(Issue(f"scheme {scheme}", "the backend 'onnxruntime' cannot do it", path, hint))
        issues += _of_sparse(lowering, chosen)
        block = lowering.quantize.block_size if lowering.quantize else None
        blocks = {lowering.precision, *lowering.overrides.values()} & {_BLOCKS}
        if block is not None and (not blocks or block < 1):
            hint = f"Leave out block_size, or use the scheme {_BLOCKS} with block_size: 32."
            issues.append(Issue(f"block_size: {block}", f"only {_BLOCKS} has blocks, of one weight or more", hint=hint))
        return issues

    def unsupported_operators(self, exported: Any, lowering: Lowering) -> list[Issue]:
        """See `Backend.unsupported_operators`: what torch.onnx has no function for once it has taken a program apart.

        Shapes that depend on the data, values that are read and control flow are no hindrance here.
        """
        dispatching = require("torch.onnx._internal.exporter._dispatching", "torch", onnx_graph.WHY)
        decompositions = require("torch.onnx._internal.exporter._decomp", "torch", onnx_graph.WHY)
        known = _registry()
        table = decompositions.create_onnx_friendly_decomposition_table(
            set(decompositions.get_onnx_implemented_overloads(known))
        )
        return _graph.refused(
            exported,
            lambda node: dispatching.dispatch(node, known)[0] is not None,
            table,
            "torch.onnx has no function for it, or none for its types",
        )

    def convert(self, request: CompileRequest, out: Path) -> Converted:
        """See `Backend.convert`."""
        # Whatever the exporter prints must not end up in what our caller prints.
        with contextlib.redirect_stdout(sys.stderr):
            exported = self._loaded(request) if request.program.suffix == ".pt2" else None
            return self._convert(request, exported, out)

    def _loaded(self, request: CompileRequest) -> Any:
        torch = require("torch", "torch", onnx_graph.WHY)
        with quiet():
            exported = torch.export.load(request.program)
            self.refuse_operators(exported, request)
        return exported

    def _convert(self, request: CompileRequest, exported: Any | None, out: Path) -> Converted:
        options = options_of(request.target)
        model = to_onnx(request, self.runtime_version(request.target), exported)
        changed: list[str] = []
        if request.lowering.quantize is None and not request.lowering.overrides:
            model = onnx_graph.optimized(model, options.offline)
        else:
            # Batch norms have to be folded; fused operators are unknown to the quantizer, and what is optimised after it
            # follows this host's processor.
            model, changed = quantized(onnx_graph.optimized(model, "basic"), request, exported, options.reduce_range)
        onnx_graph.merge_duplicates(model)
        onnx_graph.strip(model)
        if not _unfolded(options):
            model, said = with_sparse_weights(model, request.lowering.sparse)
            changed += said
        main = _MAINS[options.format]
        if options.format == "ort":
            write_atomic(out / main, in_order(onnx_graph.ort_format(model, _ort_level(request))))
        else:
            write_atomic(out / main, onnx_graph.serialized(model))
        inputs = tuple(_as_converted(spec, port) for spec, port in zip(request.inputs, model.graph.input, strict=True))
        outputs = tuple(
            _as_converted(spec, port) for spec, port in zip(request.outputs, model.graph.output, strict=True)
        )
        changed += [
            f"'{now.name}' is {now.dtype} in the artifact; it was {was.dtype}"
            for was, now in zip(request.inputs + request.outputs, inputs + outputs, strict=True)
            if was.dtype != now.dtype
        ]
        return Converted(main, inputs, outputs, changed=tuple(changed))

    def run_plan(
        self,
        manifest: Manifest,
        target: Target,
        workloads: Sequence[Workload],
        options: Mapping[str, Any] | None = None,
    ) -> RunPlan:
        """See `Backend.run_plan`."""
        plan = super().run_plan(manifest, target, workloads, options)
        settings = {key: value for key, value in plan.options.items() if key in _FOR_DRIVER}
        return replace(plan, options=settings)


def _unfolded(options: Options) -> str:
    """Why the runtime would not fold constants as it loads the file; empty where it does."""
    if options.format == "ort":
        return "the runtime folds nothing when it loads a file in ORT format"
    return "the runtime folds nothing with optimization: none" if options.optimization == "none" else ""


def _of_sparse(lowering: Lowering, options: Options) -> list[Issue]:
    if lowering.sparse == "speed":
        hint = "Use sparse: size, which makes the file smaller, or sparse: auto."
        return [Issue("sparse: speed", "ONNX Runtime has no operators that compute with sparse weights", hint=hint)]
    if lowering.sparse == "size" and _unfolded(options):
        hint = "Use format: onnx with optimization: all, or leave out sparse."
        return [Issue("sparse: size", f"{_unfolded(options)}: it would unpack weights at each run", hint=hint)]
    return []


def _ort_level(request: CompileRequest) -> str:
    """How far an ORT-format file is optimised while it is written; nothing is when it is loaded.

    Integer kernels have to be put in here, or 8-bit layers run slower than float32. They differ between Arm and x86.
    Weights that a file unpacks would be folded as well.
    """
    static = request.lowering.precision == STATIC and not request.lowering.overrides
    return "extended" if static and request.target.cpu.arch == _this_machine() else "none"


def _this_machine() -> str:
    machine = platform.machine().lower()
    return _SAME_MACHINE.get(machine, machine)


def options_of(target: Target) -> Options:
    """The target's options for this backend, checked.

    Raises:
        ConfigError: An option is unknown or has a value that it cannot have.
    """
    given = dict(target.options.get("onnxruntime", {}))
    defaults = vars(Options())
    for name, value in given.items():
        if name not in defaults:
            guess = nearest(name, defaults)
            raise ConfigError(
                f"The target '{target.name}' sets the unknown option onnxruntime.{name}."
                f"{f' Did you mean {guess!r}?' if guess else ''}",
                f"Known: {', '.join(defaults)}.",
            )
        wanted = list if name == "providers" else type(defaults[name])
        if not isinstance(value, (wanted, tuple) if wanted is list else wanted):
            raise ConfigError(f"The option onnxruntime.{name} of the target '{target.name}' cannot be {value!r}.")
    if "providers" in given:
        given["providers"] = tuple(given["providers"])
    options = Options(**given)
    choices = {"format": tuple(_MAINS), "offline": onnx_graph.LEVELS, "optimization": onnx_graph.LEVELS}
    for name, known in choices.items():
        if getattr(options, name) not in known:
            raise ConfigError(
                f"The option onnxruntime.{name} of the target '{target.name}' cannot be '{getattr(options, name)}'.",
                f"Known: {', '.join(known)}.",
            )
    if options.offline == "all" and target.cpu.arch != _this_machine():
        raise ConfigError(
            f"The target '{target.name}' is {target.cpu.arch} and sets onnxruntime.offline: all, which lays the graph out"
            f" for the processor of this machine ({_this_machine()}).",
            "Use offline: extended; the runtime on the device does the rest while it loads.",
        )
    return options


def _registry() -> Any:
    """torch.onnx's functions by operator, as its exporter looks them up."""
    require("onnxscript", onnx_graph.EXTRA, onnx_graph.WHY)
    registration = require("torch.onnx._internal.exporter._registration", "torch", onnx_graph.WHY)
    with quiet():
        return registration.ONNXRegistry.from_torchlib()


def _as_converted(spec: TensorSpec, port: Any) -> TensorSpec:
    onnx = require("onnx", onnx_graph.EXTRA, onnx_graph.WHY)
    dtype: Any = str(onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type))
    return replace(spec, dtype=dtype)
