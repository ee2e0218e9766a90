"""OpenVINO: Intel CPUs, GPUs and NPUs, and Arm CPUs, run its intermediate representation (`.xml` + `.bin`)."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.backends import _graph
from edgekit.backends import _openvino_recurrent as recurrent
from edgekit.backends._openvino.slim import slim_file, slim_model
from edgekit.backends._openvino.sparse import RATE, SPEED_SCHEME, with_sparse_weights
from edgekit.backends._openvino_pooling import drop_added_axes
from edgekit.backends._openvino_quantize import SCHEMES, block_telemetry, override_issues, quantized
from edgekit.backends.base import Backend, CompileRequest, Converted, Issue
from edgekit.core.artifact import Manifest
from edgekit.core.errors import ConfigError, UnsupportedModelError, nearest
from edgekit.core.extras import require
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec
from edgekit.core.program import first_line
from edgekit.core.target import Target
from edgekit.core.workload import RunPlan, Workload

MAIN = "model.xml"
_EXTRA = "openvino"
_DEVICES = ("CPU", "GPU", "NPU", "AUTO")
_HINTS = ("f32", "f16", "bf16", "auto")
_COUNTED = re.compile(r"(?P<kind>[A-Z]\w*?)_\d+")
_NO_RULE = re.compile(r"No conversion rule found for operations: (?P<operators>[^\n]+)")
_PRECISIONS = ("float32", "float16")
_SPARSE_RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
_SPEED = (
    f"sparse: speed sets the runtime's property {_SPARSE_RATE} to {RATE}: processors with AMX keep 8-bit weights of matrix"
    " products packed in memory; others, and other layers, compute as before"
)


@dataclass(frozen=True)
class Options:
    """What a target file may set under `options: {openvino: …}`.

    Attributes:
        precision: How weights are stored: `float32`, or `float16` for half the size; they are computed with as the
            hint says.
        device: Where the model runs: `CPU`, `GPU`, `NPU` or `AUTO`.
        precision_hint: What the device computes in: `f32`, `f16`, `bf16`, or `auto`, the device's own choice.
        properties: Any other property of the runtime.
    """

    precision: str = "float32"
    device: str = "CPU"
    precision_hint: str = "f32"
    properties: Mapping[str, Any] = field(default_factory=dict)


class OpenVino(Backend):
    """Converts with openvino.convert_model, shapes pinned; quantizes with NNCF."""

    summary: ClassVar[str] = "OpenVINO: Intel CPU, GPU and NPU; Arm CPU"
    extra: ClassVar[str] = _EXTRA
    runtime_extra: ClassVar[str] = _EXTRA
    reads: ClassVar[tuple[str, ...]] = ("pt2", "onnx")
    schemes: ClassVar[tuple[str, ...]] = SCHEMES
    converter_modules: ClassVar[tuple[str, ...]] = ("openvino",)
    toolchain: ClassVar[tuple[str, ...]] = ("torch", "openvino", "nncf")
    runtime_package: ClassVar[str] = "openvino"
    runtime_module: ClassVar[str] = "openvino"
    runtime_exclude: ClassVar[tuple[str, ...]] = ("openvino-telemetry",)
    driver: ClassVar[str] = "device_openvino.py"

    def unsupported(
        self, program_format: str, outputs: Sequence[TensorSpec], lowering: Lowering, target: Target
    ) -> list[Issue]:
        """See `Backend.unsupported`."""
        issues = super().unsupported(program_format, outputs, lowering, target)
        options_of(target)
        if lowering.quantize and lowering.quantize.io != "float32":
            issues.append(
                Issue(f"io: {lowering.quantize.io}", "OpenVINO keeps the model's types", hint="Leave out io.")
            )
        return issues + override_issues(lowering) + _of_sparse(lowering, target)

    def unsupported_operators(self, exported: Any, lowering: Lowering) -> list[Issue]:
        """See `Backend.unsupported_operators`: what OpenVINO's reader of torch programs says it has no rule for.

        It lists its rules nowhere, so that it is given each kind of operator alone. Shapes that depend on the data,
        values that are read and control flow are no hindrance here.
        """
        block_telemetry()
        torch = require("torch", "torch", recurrent.WHY)
        export = require("openvino.frontend.pytorch.torchdynamo.export_decompositions", _EXTRA, recurrent.WHY)
        kept = frozenset((*export.ops_to_not_decompose(), torch.ops.aten.lstm.input, torch.ops.aten.gru.input))
        table = {op: apart for op, apart in torch.export.default_decompositions().items() if op not in kept}
        return _graph.refused(exported, _has_rule(torch), table, "OpenVINO has no rule for it", kept)

    def convert(self, request: CompileRequest, out: Path) -> Converted:
        """See `Backend.convert`."""
        block_telemetry()
        # Progress bars of the converter and of NNCF must not end up in what our caller prints.
        with contextlib.redirect_stdout(sys.stderr):
            return _convert(request, out, self.refuse_operators)

    def run_plan(
        self,
        manifest: Manifest,
        target: Target,
        workloads: Sequence[Workload],
        options: Mapping[str, Any] | None = None,
    ) -> RunPlan:
        """See `Backend.run_plan`."""
        chosen = options_of(target)
        settings: dict[str, Any] = {"device": chosen.device, "precision": chosen.precision_hint}
        properties = {_SPARSE_RATE: RATE} if manifest.lowering.sparse == "speed" else {}
        if chosen.properties or properties:
            settings["properties"] = properties | dict(chosen.properties)
        plan = super().run_plan(manifest, target, workloads, options)
        return replace(plan, options=settings | dict(options or {}))


def _of_sparse(lowering: Lowering, target: Target) -> list[Issue]:
    if lowering.sparse != "speed":
        return []
    hint = f"Use sparse: size, or the scheme {SPEED_SCHEME} for an x86_64 processor."
    device = options_of(target).device
    if device != "CPU" or target.cpu.arch != "x86_64":
        where = f"the device {device} of an {target.cpu.arch} target"
        return [
            Issue("sparse: speed", f"OpenVINO unpacks sparse weights on x86_64 CPUs alone, not on {where}", hint=hint)
        ]
    if SPEED_SCHEME not in (lowering.precision, *lowering.overrides.values()):
        reason = f"OpenVINO unpacks sparse weights of {SPEED_SCHEME} alone, not of {lowering.precision}"
        return [Issue("sparse: speed", reason, hint=hint)]
    return []


def options_of(target: Target) -> Options:
    """The target's options for this backend, checked.

    Raises:
        ConfigError: An option is unknown or has a value that it cannot have.
    """
    given = dict(target.options.get("openvino", {}))
    defaults = vars(Options())
    choices = {"precision": _PRECISIONS, "device": _DEVICES, "precision_hint": _HINTS}
    for name, value in given.items():
        if name not in defaults:
            guess = nearest(name, defaults)
            raise ConfigError(
                f"The target '{target.name}' sets the unknown option openvino.{name}."
                f"{f' Did you mean {guess!r}?' if guess else ''}",
                f"Known: {', '.join(defaults)}.",
            )
        if name in choices and value not in choices[name]:
            raise ConfigError(
                f"The option openvino.{name} of the target '{target.name}' cannot be {value!r}.",
                f"Known: {', '.join(choices[name])}.",
            )
        if name == "properties" and not isinstance(value, Mapping):
            raise ConfigError(f"The option openvino.properties of the target '{target.name}' is a mapping.")
    return Options(**given)


def _has_rule(torch: Any) -> Callable[[Any], bool]:
    """Whether the reader has a rule for a node's operator; asked once for each."""
    managers = require("openvino.frontend", _EXTRA, recurrent.WHY)
    decoders = require("openvino.frontend.pytorch.fx_decoder", _EXTRA, recurrent.WHY)
    reader = managers.FrontEndManager().load_by_framework("pytorch")
    known: dict[str, bool] = {}

    def ask(node: Any) -> bool:
        # Held by a name: the reader does not keep the decoder alive.
        decoder = decoders.TorchFXPythonDecoder(_alone(torch, node), dynamic_shapes=True)
        try:
            reader.convert(reader.load(decoder))
        except Exception as error:  # noqa: BLE001  # any other complaint may be of its having been alone
            match = _NO_RULE.search(str(error))
            return match is None or str(node.target) not in re.split(r"[,\s]+", match["operators"])
        return True

    def has_rule(node: Any) -> bool:
        name = str(node.target)
        if name not in known:
            known[name] = ask(node)
        return known[name]

    return has_rule


def _alone(torch: Any, node: Any) -> Any:
    """A graph module with a copy of one node, everything that it takes an input."""
    graph = torch.fx.Graph()
    given = {}
    for one in node.all_input_nodes:
        given[one] = graph.placeholder(one.name)
        given[one].meta = dict(one.meta)
    graph.output((graph.node_copy(node, given.__getitem__),))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def _convert(request: CompileRequest, out: Path, refuse: Callable[[Any, CompileRequest], None]) -> Converted:
    ov = require("openvino", _EXTRA, recurrent.WHY)
    options = options_of(request.target)
    model = _read(ov, request, refuse)
    drop_added_axes(model)
    _pin(ov, model, request)
    # Before NNCF as well, which derives names of its own from these.
    _name_by_place(model)
    notes: tuple[str, ...] = ()
    half = options.precision == "float16"
    if request.lowering.quantize is not None or request.lowering.overrides:
        made = quantized(model, request, options.device)
        model, notes, half = made.model, made.notes, half or made.half
    _name_by_place(model)
    model, said = with_sparse_weights(model, request.lowering.sparse, options.device, half=half)
    notes = (*notes, *said)
    if request.lowering.sparse == "speed":
        notes = (*notes, _SPEED)
    slim_model(model)
    ov.save_model(model, str(out / MAIN), compress_to_fp16=half)
    slim_file(out / MAIN)
    inputs = tuple(_as_converted(spec, port) for spec, port in zip(request.inputs, model.inputs, strict=True))
    outputs = tuple(_as_converted(spec, port) for spec, port in zip(request.outputs, model.outputs, strict=True))
    changed = tuple(
        f"'{now.name}' is {now.dtype} in the artifact; it was {was.dtype}"
        for was, now in zip(request.inputs + request.outputs, inputs + outputs, strict=True)
        if was.dtype != now.dtype
    )
    return Converted(MAIN, inputs, outputs, changed=(*changed, *notes))


def _read(ov: Any, request: CompileRequest, refuse: Callable[[Any, CompileRequest], None]) -> Any:
    """The program as an OpenVINO model."""
    try:
        if request.program.suffix != ".pt2":
            return ov.convert_model(str(request.program))
        torch = require("torch", "torch", recurrent.WHY)
        with warnings.catch_warnings():
            # torch warns of its own internals while it loads and decomposes a program.
            warnings.simplefilter("ignore")
            exported = torch.export.load(request.program)
            refuse(exported, request)
            if not recurrent.has_recurrent(exported):
                return ov.convert_model(exported)
            decoder, extensions = recurrent.decoded(exported)
            # A copy of its own: outputs that nothing uses still hang on to the translated one, and NNCF finds them.
            return ov.convert_model(decoder, extension=extensions).clone()
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"OpenVINO cannot convert {request.source}: {first_line(error)}",
            "Run with --verbose for its own words.",
        ) from error


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


def _name_by_place(model: Any) -> None:
    """Number what OpenVINO numbered by a counter of the whole process: equal input has to give equal bytes."""
    model.set_friendly_name("model")
    for place, op in enumerate(model.get_ordered_ops()):
        match = _COUNTED.fullmatch(op.get_friendly_name())
        if match:
            op.set_friendly_name(f"{match['kind']}_{place}")


def _numpy_dtype(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def _as_converted(spec: TensorSpec, port: Any) -> TensorSpec:
    dtype: Any = str(port.get_element_type().to_dtype())
    return replace(spec, dtype=dtype)
