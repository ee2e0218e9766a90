"""Which scheme each linear operator of a file gets: the recipe's, an override by torch module path, or a trained grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgekit.backends._litert.conversion import EXTRA
from edgekit.backends._litert.grids import StoredGrid, on_grid
from edgekit.backends._litert.layers import LinearLayer, linear_layers
from edgekit.backends._litert.origins import paths_of, trained_ranges
from edgekit.backends._quantize.modules import modules_of, schemes_by_module
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.grid import trained_in

FLOAT = "float32"
PALETTES: Mapping[str, int] = {"palette_4": 4, "palette_2": 2, "palette_1": 1}
"""Bits of a weight by scheme."""
EIGHT, FOUR, STATIC = "weight_only_wi8_afp32", "weight_only_wi4_afp32", "static_wi8_ai8"
_BITS = dict(PALETTES) | {FOUR: 4}
FOUR_BIT_KINDS = ("CONV_2D", "FULLY_CONNECTED")
"""Linear operators whose weights the quantizer stores in 4 bits; depthwise and transposed convolutions are not among
them."""


@dataclass(frozen=True)
class LayerPlan:
    """What one linear operator gets.

    Attributes:
        kind: The operator.
        weights: How many weights it has.
        channel: How many of them an output channel has.
        buffer: The number of their buffer: several operators may read one, in a loop or in several signatures.
        scheme: A scheme's name, or `float32`.
        path: The torch module that its weights come from; None where nobody had to know.
        is_fixed: Whether an override or a trained grid says so, and no budget may decide otherwise.
        grid: The trained grid of its weights.
        block: How many weights of one output channel share a scale, where it is not all of them.
        main: Whether it stands in a signature's own subgraph, and not inside a loop.
    """

    kind: str
    weights: int
    channel: int
    buffer: int
    scheme: str
    path: str | None = None
    is_fixed: bool = False
    grid: StoredGrid | None = None
    block: int | None = None
    main: bool = True


@dataclass(frozen=True)
class Plan:
    """What every linear operator gets, by the name of its result.

    Attributes:
        main: The recipe's scheme, or `float32`.
        layers: Linear operators with constant weights, in computed order.
        ranges: Trained ranges (least, largest) of activations by the name of the tensor.
        trained: Whether a pass has fixed any grid.
        notes: What was decided, in sentences.
    """

    main: str
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    trained: bool = False
    notes: tuple[str, ...] = ()

    def of_scheme(self, *schemes: str) -> dict[str, LayerPlan]:
        """The layers that get one of these schemes."""
        return {name: layer for name, layer in self.layers.items() if layer.scheme in schemes}

    def with_scheme(self, names: Iterable[str], scheme: str) -> Plan:
        """The plan with another scheme for some layers, by the names of their results, and those with the same weights."""
        buffers = {self.layers[name].buffer for name in names}
        layers = {
            name: replace(layer, scheme=scheme) if layer.buffer in buffers else layer
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)

    def apart(self, layers: Mapping[str, LayerPlan]) -> dict[str, LayerPlan]:
        """Layers without those whose weights an earlier one has: what the file's size is made of."""
        first: dict[int, str] = {}
        for name, layer in layers.items():
            first.setdefault(layer.buffer, name)
        return {name: layers[name] for name in first.values()}

    @property
    def packed(self) -> dict[str, LayerPlan]:
        """The layers whose weights are packed and unpacked by the file itself."""
        return {
            name: layer for name, layer in self.layers.items() if layer.scheme in PALETTES or layer.block is not None
        }

    @property
    def frozen(self) -> frozenset[str]:
        """Results of layers whose weights a pass has put on a grid: nothing may round them anew."""
        return frozenset(name for name, layer in self.layers.items() if layer.grid is not None)


def scope(name: str) -> str:
    """The quantizer's regular expression for the operator with this result."""
    return f"^{re.escape(name)};?$"


def plan_for(model: Any, request: CompileRequest) -> Plan:
    """The scheme of every linear operator of a float file.

    Args:
        model: The float file's model.
        request: Its lowering names the main scheme and the overrides, its history the trained grids.

    Raises:
        ConfigError: An override fits no module.
        UnsupportedModelError: An override names a module that is no linear operator in the file.
    """
    main = request.lowering.precision
    found = {name: (layer, place) for name, layer, place in _weighted(model)}
    signatures = {int(one.subgraphIndex) for one in model.signatureDefs}
    layers = {
        name: LayerPlan(
            layer.kind, layer.size, layer.size // layer.channels, layer.buffer, main, main=place in signatures
        )
        for name, (layer, place) in found.items()
    }
    trained = trained_in(request.history)
    overrides = request.lowering.overrides
    if not overrides and not trained.grids and not trained.ranges:
        return Plan(main, layers)
    torch = require("torch", EXTRA, "overrides of the backend litert")
    modules = {module.path: module for module in modules_of(torch.export.load(request.program))}
    paths = paths_of(model, list(modules.values()))
    wanted = schemes_by_module(list(modules), overrides, "")
    _require_found(wanted, set(paths.values()), main)
    for name, path in paths.items():
        one = replace(layers[name], path=path, scheme=wanted[path] or main, is_fixed=bool(wanted[path]))
        grid = trained.grids.get(path)
        if grid is not None:
            layer = found[name][0]
            one = _trained(one, on_grid(layer.weights(), layer.channel_axis, modules[path], grid))
        layers[name] = one
    lost = sorted(trained.grids.keys() - {layer.path for layer in layers.values() if layer.grid is not None})
    notes = (f"the trained grid of {', '.join(lost)} could not be found in the file's weights",) if lost else ()
    return Plan(main, layers, trained_ranges(model, trained, paths), bool(trained.grids), notes)


def _weighted(model: Any) -> Iterator[tuple[str, LinearLayer, int]]:
    for place, subgraph in enumerate(model.subgraphs):
        for _, layer in linear_layers(model, subgraph):
            if layer.has_weights:
                yield layer.result_name, layer, place


def _trained(layer: LayerPlan, grid: StoredGrid | None) -> LayerPlan:
    """The layer with its grid, and the scheme that stores it: a low-bit scheme leaves a finer grid at 8 bits."""
    if grid is None:
        return layer
    bits = _BITS.get(layer.scheme)
    finer = bits is not None and grid.bits > bits
    return replace(layer, grid=grid, scheme=EIGHT if finer else layer.scheme, is_fixed=True)


def _require_found(wanted: Mapping[str, str], paths: set[str], main: str) -> None:
    """Refuse overrides of modules that no linear operator comes from: they would be silently left out.

    Raises:
        UnsupportedModelError: There is one.
    """
    lost = [path for path, scheme in wanted.items() if scheme and scheme != main and path not in paths]
    if lost:
        raise UnsupportedModelError(
            f"The override for {', '.join(lost)} cannot be done for LiteRT: the converted file has no convolution or"
            " matrix product with its weights.",
            "Only convolutions and linear layers have a precision of their own; leave the others out of `overrides`.",
        )
