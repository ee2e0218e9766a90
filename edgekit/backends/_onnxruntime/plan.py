"""Which scheme each weight of a graph gets, by the torch module path that it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.biases import Weights
from edgekit.backends._onnxruntime.layers import LINEAR, Layer, layers
from edgekit.backends._onnxruntime.packing import FEW, keep_small
from edgekit.backends._quantize import levels
from edgekit.backends._quantize.modules import Finder, modules_of, schemes_by_module
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.grid import Trained, trained_in
from edgekit.core.layer_paths import fits_any

if TYPE_CHECKING:
    from edgekit.backends._onnxruntime.packing import Fixed
    from edgekit.backends._quantize.levels import Codebook, Codes
    from edgekit.backends._quantize.modules import ModuleWeights

    Range = tuple[float, float]

FLOAT, STATIC, DYNAMIC, EIGHT = "float32", "static_wi8_ai8", "dynamic_wi8_afp32", "weight_only_wi8_afp32"


@dataclass(frozen=True)
class Plan:
    """What becomes of each weight.

    Attributes:
        layers: All operators with weights, in the graph's order; a weight that several read comes several times.
        schemes: The scheme of each weight, by initializer.
        fixed: Weights that training has put on a grid that their scheme can hold.
        ranges: Ranges of activations that training has fixed, by tensor.
        notes: What was decided, in sentences.
    """

    layers: Sequence[Layer]
    schemes: Mapping[str, str]
    fixed: Fixed
    ranges: Mapping[str, Range]
    notes: tuple[str, ...]

    def under(self, scheme: str) -> list[Layer]:
        """The layers whose weights have a scheme."""
        return [layer for layer in self.layers if self.schemes[layer.weight] == scheme]


def planned(model: Any, request: CompileRequest, exported: Any | None) -> Plan:
    """The scheme of each weight: the recipe's, but for what an override, a grid or the kind of operator decides.

    Args:
        model: The float model.
        request: The request.
        exported: The torch program that it was made from; None for an ONNX file, where the graph's names are paths.

    Raises:
        ConfigError: An override fits no layer.
        UnsupportedModelError: The scheme finds no weight.
    """
    modules = modules_of(exported) if exported is not None else []
    finder = Finder(modules)
    weights = Weights(model)
    bare = list(layers(model, {}))
    paths = {layer.weight: finder.path_of(weights[layer.weight], layer.axis) for layer in bare} if modules else {}
    found = list(layers(model, {name: path for name, path in paths.items() if path}))
    first = {layer.weight: layer for layer in reversed(found)}
    by_path = schemes_by_module([layer.path for layer in found], request.lowering.overrides, request.lowering.precision)
    named = frozenset(layer.weight for layer in found if _is_named(layer, request))
    schemes = {name: _possible(layer, by_path[layer.path]) for name, layer in first.items()}
    trained = trained_in(request.history)
    fixed = dict(_on_grids(first, schemes, weights, modules, trained))
    kept = keep_small(first, schemes, fixed, named)
    schemes |= dict.fromkeys(kept, EIGHT)
    if all(scheme == FLOAT for scheme in schemes.values()):
        raise UnsupportedModelError(
            f"The scheme {request.lowering.precision} changes nothing in {request.source}: it has no weights that ONNX"
            " Runtime quantizes.",
            "Leave out `quantize` for this model.",
        )
    return Plan(found, schemes, fixed, _ranges(found, trained, fixed), _notes(first, schemes, kept, fixed, trained))


def _on_grids(
    first: Mapping[str, Layer],
    schemes: Mapping[str, str],
    weights: Weights,
    modules: Sequence[ModuleWeights],
    trained: Trained,
) -> Iterator[tuple[str, tuple[Codebook, Codes]]]:
    """Weights that lie on a grid that their scheme can hold, with the levels and the codes."""
    import numpy as np

    own = {module.path: module for module in modules}
    for name, layer in first.items():
        grid, module, scheme = trained.grids.get(layer.path), own.get(layer.path), schemes[name]
        if grid is None or module is None or grid.bits > _bits(scheme):
            continue
        rows = np.moveaxis(np.asarray(module.weight, np.float64), module.axis, 0)
        lying = levels.trained(layer.rows(weights[name]), rows.reshape(len(rows), -1), grid)
        if lying is not None and (scheme not in (STATIC, DYNAMIC) or _whole(grid.levels)):
            yield name, lying


def _is_named(layer: Layer, request: CompileRequest) -> bool:
    """Whether an override names the layer."""
    return fits_any(layer.path, request.lowering.overrides)


def _possible(layer: Layer, scheme: str) -> str:
    """8-bit activations are for operators that multiply matrices; the weights of others are 8-bit, read as float.

    ONNX Runtime's own dynamic integer convolution ran eight times slower than float32, and less exactly.
    """
    kind = layer.node.op_type
    if scheme == STATIC:
        return STATIC if kind in LINEAR else EIGHT
    if scheme == DYNAMIC:
        return DYNAMIC if kind in ("MatMul", "Gemm", "LSTM") else EIGHT
    return scheme


def _bits(scheme: str) -> int:
    return FEW.get(scheme, 8 if scheme not in (FLOAT, "float16") else 0)


def _whole(values: Sequence[float]) -> bool:
    return all(value == int(value) and abs(value) <= 127 for value in values)


def _ranges(found: Sequence[Layer], trained: Trained, fixed: Fixed) -> dict[str, Range]:
    """Ranges of tensors that training has fixed: a layer's data, and its results where no batch norm followed."""
    ranges: dict[str, Range] = {}
    for layer in found:
        given = trained.ranges.get(layer.path, {})
        grid = trained.grids.get(layer.path)
        if "output" in given and grid is not None and layer.weight in fixed:
            scale = fixed[layer.weight][0].scale[:, 0]
            if all(abs(new - old) <= 1e-4 * abs(old) for new, old in zip(scale, grid.scale * len(scale), strict=False)):
                ranges[layer.node.output[0]] = _with_zero(given["output"])
        if "input" in given:
            ranges[layer.node.input[0]] = _with_zero(given["input"])
    return ranges


def _with_zero(given: tuple[float, float]) -> Range:
    return min(float(given[0]), 0.0), max(float(given[1]), 0.0)


def _notes(
    first: Mapping[str, Layer], schemes: Mapping[str, str], kept: set[str], fixed: Fixed, trained: Trained
) -> tuple[str, ...]:
    notes = []
    if kept:
        share = sum(math.prod(first[name].shape) for name in kept) / sum(math.prod(one.shape) for one in first.values())
        notes.append(
            f"{len(kept)} of {len(first)} layers, with {share:.0%} of the weights, keep 8 bits: they would lose most"
        )
    if trained.grids:
        lost = sorted(
            layer.path
            for name, layer in first.items()
            if layer.path in trained.grids and name not in fixed and schemes[name] not in (FLOAT, "float16")
        )
        notes.append(f"{len(fixed)} layers have exactly the weights that they were trained with")
        if lost:
            notes.append(f"these layers do not, the scheme has too few levels for them: {', '.join(lost)}")
    return tuple(notes)
