"""Groups of layers whose channels can trade a factor: what lies between them carries any positive factor through.

A group's producers give the channels, its consumers multiply by them. Between may be operators f with f(s·x) = s·f(x)
for s > 0 that keep channels apart: ReLU, pooling, zero padding, flattening; and sums, which tie the channels of all
their terms together (the stream of a residual network is one group).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgekit.core.program import TorchProgram
from edgekit.passes._graph import Layer, layers_in

_ELEMENTWISE = {"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "dropout", "dropout_", "alias", "clone", "neg"}
_POOLING = {"max_pool", "avg_pool", "adaptive_avg_pool", "upsample_nearest", "upsample_bilinear"}
_RESHAPING = {"view", "reshape", "flatten"}
_SUMS = {"add", "add_"}


@dataclass(frozen=True)
class Place:
    """Where a value has its channels.

    Attributes:
        axis: The axis.
        repeat: How many neighbours along it are of one channel, as after flattening.
    """

    axis: int
    repeat: int = 1


@dataclass
class Group:
    """Layers that share the factors of their channels.

    Attributes:
        producers: Layers whose output channels they are.
        consumers: Layers that multiply by them, each with how many neighbouring inputs are of one channel.
        reason: Why the factors cannot be traded; empty where they can.
    """

    producers: list[Layer] = field(default_factory=list)
    consumers: list[tuple[Layer, int]] = field(default_factory=list)
    reason: str = ""


def groups_in(program: TorchProgram) -> list[Group]:
    """All groups, those too that have a reason why not, in calling order of their first producers."""
    layers = {layer.node: layer for layer in layers_in(program)}
    found: list[Group] = []
    seen: set[Any] = set()
    for node in layers:
        if node not in seen:
            walk = _Walk(layers)
            walk.take(node)
            seen |= walk.places.keys()
            found.append(walk.group)
    return found


class _Walk:
    """Follows one group through the graph, in both directions.

    Attributes:
        group: What was found.
        places: The values on the way.
    """

    def __init__(self, layers: dict[Any, Layer]) -> None:
        self._layers = layers
        self.group = Group()
        self.places: dict[Any, Place] = {}

    def take(self, producer: Any) -> None:
        """Find the group of a layer's output channels."""
        waiting = [(producer, _place_of(self._layers[producer]))]
        while waiting and not self.group.reason:
            node, place = waiting.pop()
            if node in self.places:
                if self.places[node] != place:
                    self.group.reason = f"'{node.name}' has its channels in two places"
                continue
            self.places[node] = place
            waiting += [*self._sources(node, place), *self._readers(node, place)]
        self.group.producers.sort(key=lambda layer: list(self._layers).index(layer.node))
        if not self.group.reason and not self.group.consumers:
            self.group.reason = "no layer multiplies by its results"

    def _refuse(self, reason: str) -> None:
        self.group.reason = self.group.reason or reason

    def _sources(self, node: Any, place: Place) -> Iterator[tuple[Any, Place]]:
        """What a value is made of: a layer, or other values of the group."""
        layer = self._layers.get(node)
        if layer is not None:
            if layer.shared:
                self._refuse(f"the weights of '{layer.path}' are used more than once")
            elif layer.kind == "transposed" and layer.groups > 1:
                self._refuse(f"'{layer.path}' is a grouped transposed convolution")
            elif place != _place_of(layer):
                self._refuse(f"'{node.name}' has its channels in two places")
            self.group.producers.append(layer)
        elif _operator(node) in _SUMS and _is_sum_of_equals(node):
            yield from ((term, place) for term in node.args[:2])
        elif node.op == "call_function" and node.args and hasattr(node.args[0], "meta"):
            source = node.args[0]
            # Forwards is the only direction that is worked out for reshaping: where from can be looked up there.
            before = self.places.get(source, place)
            if passed(node, before) == place:
                yield source, before
            else:
                self._refuse(f"'{_operator(node)}' does not carry factors of channels through")
        else:
            self._refuse(f"'{node.name}' is no layer's result")

    def _readers(self, node: Any, place: Place) -> Iterator[tuple[Any, Place]]:
        """Where a value goes: to layers, or into other values of the group."""
        for reader in node.users:
            layer = self._layers.get(reader)
            if layer is not None and layer.data is node:
                if layer.shared:
                    self._refuse(f"the weights of '{layer.path}' are used more than once")
                elif place.axis != _data_axis(layer) or (layer.kind != "linear" and place.repeat > 1):
                    self._refuse(f"'{layer.path}' multiplies along another axis")
                elif layer.kind == "transposed" and layer.groups > 1:
                    self._refuse(f"'{layer.path}' is a grouped transposed convolution")
                else:
                    self.group.consumers.append((layer, place.repeat))
            elif _operator(reader) in _SUMS and _is_sum_of_equals(reader):
                yield reader, place
            elif (after := passed(reader, place)) is not None and reader.args[0] is node:
                yield reader, after
            else:
                self._refuse(f"{_name(reader)} reads the results")


def passed(node: Any, place: Place) -> Place | None:
    """Where a result has the channels that its first operand has at a place; None where factors do not get through."""
    name = _operator(node)
    shape = getattr(node.args[0].meta.get("val"), "shape", ()) if node.args and hasattr(node.args[0], "meta") else ()
    if name in _ELEMENTWISE:
        return place
    if name in ("mul", "div") and len(node.args) > 1 and isinstance(node.args[1], int | float):
        return place if node.args[1] != 0 else None
    if name.rstrip("123d") in _POOLING:
        return place if place == Place(1) and len(shape) > 2 else None
    if name == "pad":
        amounts = node.args[1]
        mode = node.args[2] if len(node.args) > 2 else "constant"
        value = node.args[3] if len(node.args) > 3 else None
        inside = len(amounts) // 2 < len(shape) - place.axis
        return place if inside and (mode != "constant" or not value) else None
    if name == "mean" and len(node.args) > 1 and node.args[1]:
        dims = {dim % len(shape) for dim in node.args[1]}
        kept = len(node.args) > 2 and node.args[2]
        gone = 0 if kept else sum(dim < place.axis for dim in dims)
        return None if place.axis in dims else Place(place.axis - gone, place.repeat)
    if name in _RESHAPING:
        return _reshaped(tuple(shape), tuple(node.meta["val"].shape), place)
    return None


def _reshaped(before: tuple[int, ...], after: tuple[int, ...], place: Place) -> Place | None:
    if before == after:
        return place
    rest = 1
    for size in before[2:]:
        rest *= size
    flat = len(after) == 2 and after == (before[0], before[1] * rest)
    return Place(1, place.repeat * rest) if flat and place.axis == 1 else None


def _is_sum_of_equals(node: Any) -> bool:
    """Whether an addition has two tensors of one shape."""
    shapes = [getattr(getattr(term, "meta", {}).get("val"), "shape", None) for term in node.args[:2]]
    return len(shapes) == 2 and shapes[0] is not None and shapes[0] == shapes[1]


def _place_of(layer: Layer) -> Place:
    return Place(layer.node.meta["val"].dim() - 1 if layer.kind == "linear" else 1)


def _data_axis(layer: Layer) -> int:
    return int(layer.data.meta["val"].dim()) - 1 if layer.kind == "linear" else 1


def _operator(node: Any) -> str:
    """`relu` of `aten.relu.default`; empty for what is no operator of torch."""
    parts = str(node.target).split(".")
    return parts[1] if node.op == "call_function" and len(parts) > 1 and parts[0] == "aten" else ""


def _name(node: Any) -> str:
    return "the model's output" if node.op == "output" else f"'{_operator(node) or node.name}'"
