"""The FakeQuantize operators that NNCF puts on activations: where they stand, and which range they get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.layers import layers_of
from edgekit.backends._openvino.observation import Observation, Source, source_of
from edgekit.backends._openvino.runtime import opset

if TYPE_CHECKING:
    from edgekit.backends._openvino.plan import Key
    from edgekit.core.lowering import Ranges

KIND = "FakeQuantize"
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
"""Operators that hand values on as they are."""
_SYMMETRIC = 1e-3


def quantizers(model: Any) -> Iterator[Any]:
    """Those whose input is computed, not a constant."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == KIND and not _is_constant(node.input_value(0).get_node()):
            yield node


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "Reshape", "Transpose", KIND):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def bypassed(model: Any) -> Any:
    """A copy of the model without any of them, and so in float."""
    copy = model.clone()
    for node in copy.get_ordered_ops():
        if node.get_type_name() == KIND:
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(node.input_value(0))
    return copy


def sources(model: Any) -> set[Source]:
    """What they quantize."""
    return {_origin(node) for node in quantizers(model)}


def _origin(node: Any) -> Source:
    """What makes its input; the source in the model without them."""
    output = node.input_value(0)
    while output.get_node().get_type_name() == KIND:
        output = output.get_node().input_value(0)
    return source_of(output)


def set_ranges(
    model: Any, observed: Observation, how: Ranges, fixed: Mapping[Key, Mapping[str, tuple[float, float]]]
) -> None:
    """Give all of them the ranges that were observed, or that training has fixed.

    Those that are concatenated keep one range in common, or the runtime would have to compute the join in float. What
    NNCF gives a range for each channel, the data of depthwise convolutions, gets one for all: a channel that is silent
    on the calibration examples would be cut off on others.

    Args:
        model: The model, changed in place.
        observed: Statistics of what they quantize.
        how: How a range is chosen.
        fixed: Ranges by layer, of its data and of its result.
    """
    chosen: dict[str, tuple[float, float]] = {}
    nodes = {node.get_friendly_name(): node for node in quantizers(model)}
    for name, node in nodes.items():
        origin = _origin(node)
        if origin in observed.histograms:
            chosen[name] = observed.histograms[origin].range(how)
    chosen |= _trained(model, nodes, fixed)
    for group in _joined(nodes):
        known = [chosen[name] for name in group if name in chosen]
        if len(known) == len(group):
            chosen.update(dict.fromkeys(group, (min(low for low, _ in known), max(high for _, high in known))))
    for name, (low, high) in chosen.items():
        _set(nodes[name], low, high)


def _trained(
    model: Any, nodes: Mapping[str, Any], fixed: Mapping[Key, Mapping[str, tuple[float, float]]]
) -> dict[str, tuple[float, float]]:

    found = {}
    for layer in layers_of(model):
        ranges = fixed.get(layer.key, {})
        before = layer.data.get_node().get_friendly_name()
        if "input" in ranges and before in nodes:
            found[before] = ranges["input"]
        for reader in _readers(layer.node):
            name = reader.get_friendly_name()
            if "output" in ranges and name in nodes:
                found[name] = ranges["output"]
    return found


def _readers(node: Any) -> list[Any]:
    """What reads a layer's result, behind its bias."""
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        readers = [reader.get_node() for reader in readers[0].output(0).get_target_inputs()]
    return readers


def _joined(nodes: Mapping[str, Any]) -> list[Sequence[str]]:
    """Names of those that meet in one Concat; groups that share one are one group."""
    groups: dict[str, set[str]] = {}
    for name, node in nodes.items():
        for meeting in _concats(node):
            groups.setdefault(meeting, set()).add(name)
    merged: list[set[str]] = []
    for group in groups.values():
        apart = [one for one in merged if not one & group]
        merged = [*apart, group.union(*(one for one in merged if one & group))]
    return [sorted(one) for one in merged if len(one) > 1]


def _concats(node: Any) -> list[str]:
    found, left = [], [node]
    while left:
        for reader in left.pop().output(0).get_target_inputs():
            kind = reader.get_node().get_type_name()
            if kind == "Concat":
                found.append(reader.get_node().get_friendly_name())
            elif kind in _MOVES:
                left.append(reader.get_node())
    return found


def _set(node: Any, low: float, high: float) -> None:
    """Write a range into an operator, with zero on a step, and symmetric where NNCF had it so."""
    import numpy as np

    low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        # An empty range would make NaN: what is always zero keeps what NNCF gave it.
        return
    steps = node.get_attributes()["levels"] - 1
    half = (steps + 1) // 2
    was = [np.asarray(node.input_value(port).get_node().get_data(), np.float64) for port in (1, 2)]
    symmetric = bool(np.all(np.abs(was[0] + was[1] * half / (half - 1)) <= _SYMMETRIC * np.abs(was[1])))
    if symmetric and low < 0:
        high = max(high, -low * (half - 1) / half)
        low = -high * half / (half - 1)
    else:
        step = (high - low) / steps
        zero = round(-low / step)
        low, high = -zero * step, (steps - zero) * step
    for ports, value in (((1, 3), low), ((2, 4), high)):
        for port in ports:
            constant = opset().constant(np.full(node.get_input_shape(port), value, np.float32))
            constant.set_friendly_name(node.input_value(port).get_node().get_friendly_name())
            node.input(port).replace_source_output(constant.output(0))
