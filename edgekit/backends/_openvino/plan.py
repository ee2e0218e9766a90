"""Which scheme each layer of a converted model gets: overrides by torch module path, and grids that training has fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.layers import Layer, layers_of
from edgekit.backends._quantize.modules import Finder, ModuleWeights, modules_of, schemes_by_module
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.grid import Grid, trained_in

if TYPE_CHECKING:
    from edgekit.core.task import Array

Key = tuple[str, int]

FLOAT = "float32"
_SMALL = 0.1
"""Small layers, together at most this share of the weights, keep 8 bits under schemes of fewer: the stem and the first
blocks are among them, lose most and save least."""
LOW_BITS = {"weight_only_wi4_afp32": 4, "palette_4": 4, "palette_2": 2, "palette_1": 1}
_EIGHT = ("weight_only_wi8_afp32", "dynamic_wi8_afp32")


@dataclass(frozen=True)
class Fixed:
    """What training has fixed for a layer.

    Attributes:
        grid: The grid of its weights.
        module: The weights in the torch program.
    """

    grid: Grid
    module: Array


@dataclass
class Plan:
    """Schemes and grids by layer.

    Attributes:
        schemes: The scheme of each layer.
        bits: How many bits its weights have, where that is less than 32; 16 for float16.
        fixed: Grids that training has fixed.
        ranges: Ranges of activations that it has fixed: `input` and `output` of a layer.
    """

    schemes: dict[Key, str]
    bits: dict[Key, int] = field(default_factory=dict)
    fixed: dict[Key, Fixed] = field(default_factory=dict)
    ranges: dict[Key, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def with_scheme(self, scheme: str) -> list[Key]:
        """The layers that have a scheme."""
        return [key for key, one in self.schemes.items() if one == scheme]


def plan_of(model: Any, request: CompileRequest) -> Plan:
    """What is to be done to each layer of the float model.

    Raises:
        ConfigError: An override fits no layer.
        UnsupportedModelError: An override fits a torch module of which the converted model has no layer.
    """
    layers = list(layers_of(model))
    default, overrides = request.lowering.precision, dict(request.lowering.overrides)
    trained = trained_in(request.history)
    plan = Plan({layer.key: default for layer in layers})
    named: set[Key] = set()
    if request.program.suffix != ".pt2":
        if overrides:
            named = _by_name(plan, layers, overrides, default)
    elif overrides or trained.grids or trained.ranges:
        modules = _modules(request)
        paths = _paths(layers, modules)
        if overrides:
            named = _by_path(plan, paths, modules, overrides, default)
        weights = {module.path: module.weight for module in modules}
        for key, path in paths.items():
            if path in trained.grids:
                plan.fixed[key] = Fixed(trained.grids[path], weights[path])
            if path in trained.ranges:
                plan.ranges[key] = trained.ranges[path]
    _set_bits(plan, layers, named)
    return plan


def _modules(request: CompileRequest) -> list[ModuleWeights]:
    import warnings

    torch = require("torch", "torch", "the backend openvino")
    with warnings.catch_warnings():
        # torch warns of its own internals while it loads a program.
        warnings.simplefilter("ignore")
        return modules_of(torch.export.load(request.program))


def _paths(layers: Sequence[Layer], modules: Sequence[ModuleWeights]) -> dict[Key, str]:
    finder = Finder(modules)
    found = {layer.key: finder.path_of(layer.rows(), 0) for layer in layers}
    return {key: path for key, path in found.items() if path is not None}


def _by_path(
    plan: Plan,
    paths: Mapping[Key, str],
    modules: Sequence[ModuleWeights],
    overrides: Mapping[str, str],
    default: str,
) -> set[Key]:
    """Set the schemes of layers by the module that each is of; which layers an override fits."""
    chosen = schemes_by_module([module.path for module in modules], overrides, default)
    fitted = {path for path in chosen if _fits(path, overrides)}
    lost = sorted(fitted - set(paths.values()))
    if lost:
        raise UnsupportedModelError(
            f"OpenVINO has no layer of its own for {', '.join(lost)}, which overrides name.",
            "Name layers whose weights are used as they are: convolutions, linear layers and embeddings.",
        )
    plan.schemes.update({key: chosen[path] for key, path in paths.items()})
    return {key for key, path in paths.items() if path in fitted}


def _fits(path: str, overrides: Mapping[str, str]) -> bool:
    for pattern in overrides:
        try:
            schemes_by_module([path], {pattern: "fits"}, "")
        except ConfigError:
            continue
        return True
    return False


def _by_name(plan: Plan, layers: Sequence[Layer], overrides: Mapping[str, str], default: str) -> set[Key]:
    """Set the schemes of an ONNX file's layers by the names that its nodes have."""
    names = {layer.key: layer.key[0] for layer in layers}
    chosen = schemes_by_module(list(dict.fromkeys(names.values())), overrides, default)
    plan.schemes.update({key: chosen[name] for key, name in names.items()})
    return {key for key, name in names.items() if _fits(name, overrides)}


def _set_bits(plan: Plan, layers: Sequence[Layer], named: set[Key]) -> None:
    small = _small(layers)
    for layer in layers:
        key, scheme = layer.key, plan.schemes[layer.key]
        if scheme in LOW_BITS:
            # What an override names, or training has fixed, is as it says; else only what pays gets fewer than 8.
            wanted = key in plan.fixed if plan.fixed and key not in named else key in named or _pays(layer, small)
            plan.bits[key] = LOW_BITS[scheme] if wanted else 8
        elif scheme in _EIGHT or scheme == "static_wi8_ai8":
            plan.bits[key] = 8
        elif scheme == "float16":
            plan.bits[key] = 16


def _pays(layer: Layer, small: set[Key]) -> bool:
    return (layer.kind in ("Convolution", "MatMul")) and layer.key not in small


def _small(layers: Sequence[Layer]) -> set[Key]:
    total = sum(layer.size for layer in layers)
    found, taken = set(), 0
    for layer in sorted(layers, key=lambda one: (one.size, one.key)):
        taken += layer.size
        if taken > _SMALL * total:
            break
        found.add(layer.key)
    return found
