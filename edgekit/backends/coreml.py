"""Core ML: iPhones, iPads and Macs run its `.mlpackage` (ML Program)."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.backends import _graph
from edgekit.backends._mil import calibration, conversion, packaging, quantization, refusals, rewriting, sparse
from edgekit.backends.base import Backend, CompileRequest, Converted, Issue
from edgekit.core import schema
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.extras import is_installed, require
from edgekit.core.grid import trained_in
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec
from edgekit.core.target import Target

MAIN = "model.mlpackage"
_WHY = "the backend coreml"
_EXTRA = "coreml"
_NARROWED: Mapping[str, str] = {
    "int64": "int32",
    "int16": "int32",
    "int8": "int32",
    "uint8": "int32",
    "bool": "int32",
    "float64": "float32",
}
_OLDEST_IOS = 15
_GRU_IOS = 18
_DEFAULT_IOS = 17
# A macOS release reads what the iOS release of the same year reads.
_IOS_OF_MACOS: Mapping[int, int] = {12: 15, 13: 16, 14: 17, 15: 18}
_ARITHMETIC = re.compile(r"aten\.(mul|exp)\.")
_LABEL = "classLabel"
# coremltools names the dictionary after the label, whatever the output was called.
_PROBABILITIES = f"{_LABEL}_probs"


@dataclass(frozen=True)
class Options:
    """What a target file may set under `options: {coreml: …}`.

    Attributes:
        precision: What it computes in: `float16` (Core ML's own default) or `float32`.
        image_input: Whether an input that is a normalized NCHW image is taken as an image with raw pixels.
        classifier: Whether an output that has labels becomes a class label and the probability of each label.
    """

    precision: str = "float16"
    image_input: bool = False
    classifier: bool = False


@dataclass
class _Interface:
    """The interface as it is put together: coremltools' types, our specs, names and notes."""

    types: list[Any] = field(default_factory=list)
    specs: list[TensorSpec] = field(default_factory=list)
    bindings: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)


class CoreMl(Backend):
    """Converts with coremltools, compresses weights with coremltools.optimize."""

    summary: ClassVar[str] = "Core ML: iPhone, iPad, Mac"
    extra: ClassVar[str] = _EXTRA
    runtime_extra: ClassVar[str] = _EXTRA
    reads: ClassVar[tuple[str, ...]] = ("pt2",)
    schemes: ClassVar[tuple[str, ...]] = ("float16", *refusals.OLDEST_IOS)
    converter_modules: ClassVar[tuple[str, ...]] = ("coremltools", "torch")
    toolchain: ClassVar[tuple[str, ...]] = ("torch", "coremltools")
    runtime_package: ClassVar[str] = "coremltools"
    runtime_module: ClassVar[str] = "coremltools"
    driver: ClassVar[str] = "device_coreml.py"
    reference_driver: ClassVar[str | None] = "edgekit.backends._mil.driver"

    def can_run(self) -> bool:
        """Only macOS runs Core ML; elsewhere a package is reference-evaluated."""
        return sys.platform == "darwin" and is_installed(self.runtime_module)

    def computed_precision(self, lowering: Lowering, target: Target) -> str:
        """See `Backend.computed_precision`: Core ML computes in float16 unless the target asks for more."""
        return options_of(target).precision if lowering.precision == "float32" else lowering.precision

    def unsupported(
        self, program_format: str, outputs: Sequence[TensorSpec], lowering: Lowering, target: Target
    ) -> list[Issue]:
        """See `Backend.unsupported`."""
        issues = super().unsupported(program_format, outputs, lowering, target)
        options_of(target)
        ios = _ios_release(target)
        if ios < _OLDEST_IOS:
            issues.append(Issue(f"min_version {target.os.min_version}", f"ML Programs need iOS {_OLDEST_IOS} or newer"))
        return [*issues, *refusals.of_quantization(lowering, ios)]

    def unsupported_operators(self, exported: Any, lowering: Lowering) -> list[Issue]:
        """See `Backend.unsupported_operators`: what coremltools' registry has under no name that a way of converting uses.

        Shapes that depend on the data and values that are read are no hindrance here.
        """
        torch = require("torch", _EXTRA, _WHY)
        registry = require("coremltools.converters.mil.frontend.torch.torch_op_registry", _EXTRA, _WHY)
        names = require("coremltools.converters.mil.frontend.torch.utils", _EXTRA, _WHY)
        # The module that fills the registry.
        require("coremltools.converters.mil.frontend.torch.ops", _EXTRA, _WHY)
        known = registry._TORCH_OPS_REGISTRY  # it has no public name

        def takes(node: Any) -> bool:
            full = node.target.name()
            # An exported program names the overload, TorchScript does not.
            return any(known.get_func(names.sanitize_op_kind(name)) for name in (full, full.partition(".")[0]))

        table = dict(torch.export.default_decompositions().items())
        # The last way takes these apart one by one, as it stumbles over them; but those that torch only gives the name
        # of a primitive stay what they are.
        spared = frozenset(
            op
            for op in torch._decomp.decomposition_table
            if op not in table and not hasattr(torch.ops.prims, op.name().rpartition("::")[2].partition(".")[0])
        )
        found = _graph.refused(exported, takes, table, "coremltools has no translation of it", spared)
        return _graph.once([*_of_control_flow(torch, exported), *_of_complex_numbers(exported), *found])

    def convert(self, request: CompileRequest, out: Path) -> Converted:
        """See `Backend.convert`."""
        # What coremltools prints must not end up in what our caller prints, and torch's notes on its own deprecations
        # concern nobody but coremltools.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _convert(request, out, self.refuse_operators)


def _of_control_flow(torch: Any, exported: Any) -> list[Issue]:
    return [
        Issue(
            str(node.target),
            "control flow that depends on the data",
            _graph.place_of(node),
            "Both branches must be computed: torch.where.",
        )
        for node in _graph.calls(exported.graph_module)
        if _graph.is_control_flow(torch, node.target)
    ]


def _of_complex_numbers(exported: Any) -> list[Issue]:
    """Arithmetic of complex numbers: Core ML only makes them and takes them apart."""
    return [
        Issue(str(node.target), "it is complex", _graph.place_of(node), "Compute real and imaginary parts apart.")
        for node in _graph.all_calls(exported.graph_module)
        if _ARITHMETIC.match(str(node.target)) and _graph.is_complex(node)
    ]


def options_of(target: Target) -> Options:
    """The target's options for this backend, checked.

    Raises:
        ConfigError: An option is unknown or has a value that it cannot have.
    """
    given = dict(target.options.get("coreml", {}))
    known = {name: type(value) for name, value in vars(Options()).items()}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"The target '{target.name}' sets the unknown option coreml.{name}.", f"Known: {', '.join(known)}."
            )
        if not isinstance(value, known[name]):
            raise ConfigError(f"The option coreml.{name} of the target '{target.name}' cannot be {value!r}.")
    options = Options(**given)
    if options.precision not in ("float16", "float32"):
        raise ConfigError(
            f"The option coreml.precision of the target '{target.name}' cannot be '{options.precision}'.",
            "Known: float16, float32.",
        )
    return options


def _convert(request: CompileRequest, out: Path, refuse: Callable[[Any, CompileRequest], None]) -> Converted:
    ct = require("coremltools", _EXTRA, _WHY)
    torch = require("torch", _EXTRA, _WHY)
    options, ios = options_of(request.target), _ios_release(request.target)
    original = exported = torch.export.load(request.program)
    refuse(exported, request)
    inputs, outputs = _Interface(), _Interface()
    affine = [_add_input(ct, spec, options, inputs) for spec in request.inputs]
    exported = _add_outputs(ct, torch, exported, request, outputs)
    if any(pair is not None for pair in affine):
        exported = rewriting.with_normalization(torch, exported, affine)
    scheme = request.lowering.quantize.scheme if request.lowering.quantize else None
    half = scheme == "float16" or options.precision == "float16"
    interface = conversion.Interface(
        inputs=inputs.types,
        outputs=outputs.types,
        classifier=_classifier(ct, request.outputs, options, outputs),
        target=ct.target[f"iOS{_known_release(ct, ios)}"],
        precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
    )
    model, notes = conversion.convert(exported, interface, has_gru=ios >= _GRU_IOS)
    sparse_asked = request.lowering.sparse in ("size", "speed")
    if (
        scheme not in (None, "float16")
        or request.lowering.overrides
        or sparse_asked
        or (request.lowering.sparse == "auto" and sparse.any_pruned(original))
    ):
        examples = tuple(calibration.examples(request, inputs.bindings, _pixels_of(request, inputs)))
        trained = trained_in(request.history)
        model, more = quantization.quantized(
            model, quantization.Wanted(request.lowering, original, trained, ios, examples)
        )
        notes = (*notes, *more)
    packaging.save(model, out / MAIN, _metadata(request))
    changed = [*inputs.changed, *outputs.changed, *notes]
    if half and scheme != "float16":
        changed.append("it computes in float16, Core ML's default; the target option precision: float32 changes that")
    return Converted(
        main=MAIN,
        inputs=tuple(inputs.specs),
        outputs=tuple(outputs.specs),
        bindings=inputs.bindings | outputs.bindings,
        changed=tuple(changed),
    )


def _pixels_of(request: CompileRequest, inputs: _Interface) -> dict[str, calibration.Affine]:
    """Scale and bias by channel of the inputs that became images of raw pixels, by name."""
    pairs = zip(request.inputs, inputs.specs, strict=True)
    return {ours.name: pixel_scale(ours) for ours, taken in pairs if ours.normalize is not None and not taken.normalize}


def _ios_release(target: Target) -> int:
    """The iOS release whose operators may be used.

    Raises:
        ConfigError: The target's min_version is no version.
    """
    version = target.os.min_version
    if version is None:
        return _DEFAULT_IOS
    match = re.match(r"\d+", version)
    if match is None:
        raise ConfigError(f"The target '{target.name}' has the os.min_version '{version}', which is no version.")
    release = int(match[0])
    return _IOS_OF_MACOS.get(release, release) if target.os.family == "macos" else release


def _known_release(ct: Any, ios: int) -> int:
    """The newest release that coremltools knows and the target has."""
    known = [int(item.name.removeprefix("iOS")) for item in ct.target]
    return max(release for release in known if release <= ios)


def _native_name(spec: TensorSpec, side: str, interface: _Interface) -> str:
    """Our name in letters that Core ML takes; where it differs, the binding is noted."""
    name = re.sub(r"\W", "_", spec.name, flags=re.ASCII)
    name = f"_{name}" if name[:1].isdigit() else name
    if name != spec.name:
        interface.bindings[f"{side}.{spec.name}"] = name
    return name


def _narrowed(spec: TensorSpec, side: str, interface: _Interface) -> TensorSpec:
    dtype = _NARROWED.get(spec.dtype, spec.dtype)
    if dtype != spec.dtype:
        interface.changed.append(f"the {side} '{spec.name}' is {dtype} in the artifact; it was {spec.dtype}")
    return replace(spec, dtype=dtype)  # type: ignore[arg-type]  # the values of a constant table


def _add_input(ct: Any, spec: TensorSpec, options: Options, interface: _Interface) -> Any:
    """Note an input; gives scale and bias by channel where the program itself has to normalize the pixels."""
    import numpy as np

    name = _native_name(spec, "inputs", interface)
    if options.image_input and spec.normalize is not None and spec.layout == "NCHW" and spec.shape[1] in (1, 3):
        scale, bias = pixel_scale(spec)
        same = len(set(scale)) == 1
        interface.types.append(_image_type(ct, name, spec, scale[0] if same else 1.0, bias if same else None))
        interface.specs.append(replace(spec, dtype="uint8", normalize=None, value_range=(0.0, 255.0)))
        interface.changed.append(f"the input '{spec.name}' is an image of raw pixels (0 to 255)")
        return None if same else (scale, bias)
    narrowed = _narrowed(spec, "input", interface)
    interface.types.append(ct.TensorType(name=name, shape=spec.shape, dtype=np.dtype(narrowed.dtype).type))
    interface.specs.append(narrowed)
    return None


def pixel_scale(spec: TensorSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and bias by channel that turn pixels (0 to 255) into what the model takes.

    Means and deviations that are all at most 1 were of pixels divided by 255, as torchvision has them.

    Raises:
        ConfigError: The input has no normalization, or one of another number of channels.
    """
    normalize, channels = spec.normalize, spec.shape[1]
    if normalize is None or {len(normalize.mean), len(normalize.std)} - {1, channels}:
        raise ConfigError(f"The input '{spec.name}' needs one mean and one std, or {channels} of each.")
    means = normalize.mean * (channels if len(normalize.mean) == 1 else 1)
    deviations = normalize.std * (channels if len(normalize.std) == 1 else 1)
    unit = 255.0 if max(map(abs, (*means, *deviations))) <= 1 else 1.0
    scale = tuple(1 / (deviation * unit) for deviation in deviations)
    return scale, tuple(-mean / deviation for mean, deviation in zip(means, deviations, strict=True))


def _image_type(ct: Any, name: str, spec: TensorSpec, scale: float, bias: Sequence[float] | None) -> Any:
    gray = spec.shape[1] == 1
    layout = ct.colorlayout.GRAYSCALE if gray else ct.colorlayout.RGB
    return ct.ImageType(
        name=name, shape=spec.shape, scale=scale, bias=list(bias) if bias else None, color_layout=layout
    )


def _add_outputs(ct: Any, torch: Any, exported: Any, request: CompileRequest, interface: _Interface) -> Any:
    """Note the outputs; gives the program without those that repeat another one.

    Raises:
        UnsupportedModelError: An output is an input unchanged.
    """
    import numpy as np

    for place in rewriting.passed_through(exported):
        raise UnsupportedModelError(
            f"The output '{request.outputs[place].name}' is an input unchanged; Core ML has no such output.",
            "Leave it out of what the model returns.",
        )
    firsts = rewriting.first_places(exported)
    for place, (first, spec) in enumerate(zip(firsts, request.outputs, strict=True)):
        narrowed = _narrowed(spec, "output", interface)
        interface.specs.append(narrowed)
        name = _native_name(request.outputs[first], "outputs", interface)
        if firsts.count(first) > 1:
            interface.bindings[f"outputs.{spec.name}"] = name
        if first == place:
            interface.types.append(ct.TensorType(name=name, dtype=np.dtype(narrowed.dtype).type))
    unique = sorted(set(firsts))
    return exported if len(unique) == len(firsts) else rewriting.only_outputs(torch, exported, unique)


def _classifier(ct: Any, outputs: Sequence[TensorSpec], options: Options, interface: _Interface) -> Any:
    if not options.classifier:
        return None
    labelled = [place for place, spec in enumerate(outputs) if spec.labels]
    if len(labelled) != 1:
        raise UnsupportedModelError(
            f"The target option classifier wants one output with labels; the model has {len(labelled)}.",
            "Name the labels of one output in edgekit.yaml, or leave the option out.",
        )
    spec = outputs[labelled[0]]
    native = _native_name(spec, "outputs", interface)
    interface.bindings[f"outputs.{spec.name}"] = _PROBABILITIES
    interface.changed.append(
        f"the output '{spec.name}' is a dictionary of label and value; '{_LABEL}' has the best label"
    )
    return ct.ClassifierConfig(list(spec.labels), _LABEL, predicted_probabilities_output=native)


def _metadata(request: CompileRequest) -> dict[str, str]:
    """What a person or a program can read in the file itself: the interface, with labels and normalization."""
    found = {"edgekit.name": request.name, "edgekit.source_digest": request.source_digest}
    described = [spec for spec in (*request.inputs, *request.outputs) if spec.normalize or spec.labels]
    for spec in described:
        found[f"edgekit.tensor.{spec.name}"] = json.dumps(schema.to_plain(spec), sort_keys=True)
    return found
