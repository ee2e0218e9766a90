"""Which torch module each linear operator of a file comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.layers import LinearLayer, linear_layers
from edgekit.backends._quantize.modules import Finder, ModuleWeights
from edgekit.core.grid import Trained

_MOVES = ("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS")
"""Operators that give the values that they take: a trained range holds before them as well."""
_INPUT, _OUTPUT = "input", "output"


def paths_of(model: Any, modules: Sequence[ModuleWeights]) -> dict[str, str]:
    """The module path of each linear operator with constant weights, by the name of its result.

    Modules that cannot be told apart by their weights, as those of one bit with equal shapes, are taken in the order of
    the program.

    Args:
        model: The float file's model.
        modules: The program's modules.
    """
    finders = [(module, Finder([module])) for module in modules]
    found: dict[str, str] = {}
    for subgraph in model.subgraphs:
        # A layer that is called twice has two operators: its path is free again once no other fits.
        taken: set[str] = set()
        for _, layer in linear_layers(model, subgraph):
            if not layer.has_weights:
                continue
            fits = _fitting(layer, finders)
            path = next((path for path in fits if path not in taken), fits[0] if fits else None)
            if path is not None:
                taken.add(path)
                found[layer.result_name] = path
    return found


def _fitting(layer: LinearLayer, finders: Sequence[tuple[ModuleWeights, Finder]]) -> list[str]:
    weights = layer.weights()
    return [
        module.path
        for module, finder in finders
        if module.weight.size == weights.size and finder.path_of(weights, layer.channel_axis) is not None
    ]


def trained_ranges(model: Any, trained: Trained, paths: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Trained ranges by the name of the tensor in the file; what a layer takes counts before what another gives.

    Args:
        model: The float file's model.
        trained: What passes have fixed.
        paths: Module paths by the name of the operator's result.
    """
    given: dict[str, tuple[float, float]] = {}
    taken: dict[str, tuple[float, float]] = {}
    for subgraph in model.subgraphs:
        makers = _movers(model, subgraph)
        for _, layer in linear_layers(model, subgraph):
            ranges = trained.ranges.get(paths.get(layer.result_name, ""), {})
            if _OUTPUT in ranges:
                given[layer.result_name] = layer.activated(*ranges[_OUTPUT])
            if _INPUT in ranges:
                tensor = layer.data
                taken[layer.data_name] = ranges[_INPUT]
                while tensor in makers:
                    tensor = makers[tensor]
                    taken[flatbuffer.text(subgraph.tensors[tensor].name)] = ranges[_INPUT]
    return given | taken


def _movers(model: Any, subgraph: Any) -> dict[int, int]:
    """What an operator that only moves values takes, by what it gives."""
    names = flatbuffer.builtin_names()
    return {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in subgraph.operators
        if flatbuffer.operator_name(model, operator, names) in _MOVES
    }
