"""Initializers replaced by operators that make them from something smaller, when the file is loaded."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.core.task import Array


def opset_of(model: Any) -> int:
    """The version of ONNX's standard operators that a model is written with."""
    return next((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)


class Unpacker:
    """Writes initializers into a model and collects the operators that make weights of them.

    Args:
        onnx: The library.
        model: The model, changed in place.
        names: The initializers that operators will stand for; they are taken out.

    Attributes:
        nodes: The operators so far.
    """

    def __init__(self, onnx: Any, model: Any, names: Collection[str]) -> None:
        self._onnx, self._graph = onnx, model.graph
        self._known: set[str] = set()
        self.nodes: list[Any] = []
        kept = [one for one in model.graph.initializer if one.name not in names]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    def finish(self) -> None:
        """Put the operators before all others."""
        nodes = list(self._graph.node)
        del self._graph.node[:]
        self._graph.node.extend([*self.nodes, *nodes])

    def _constant(self, name: str, values: Array) -> str:
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def _shared(self, name: str, values: Array) -> str:
        """A constant that several weights need, written once."""
        if name not in self._known:
            self._known.add(name)
            self._constant(name, values)
        return name

    def _node(self, kind: str, inputs: list[str], result: str, **attributes: Any) -> str:
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [result], **attributes))
        return result
