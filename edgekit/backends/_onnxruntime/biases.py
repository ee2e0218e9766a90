"""The constant that is added to a layer's results: an input of the operator, or of an Add behind a matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.graph import EXTRA, WHY
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.backends._onnxruntime.layers import Layer
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

_PLACE = 2


class Weights:
    """Initializers of a model as arrays, by name; setting one changes the model."""

    def __init__(self, model: Any) -> None:
        self._numpy = require("onnx.numpy_helper", EXTRA, WHY)
        self._graph = model.graph
        self._by_name = {one.name: one for one in model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Array:
        found: Array = self._numpy.to_array(self._by_name[name])
        return found

    def __setitem__(self, name: str, value: Array) -> None:
        made = self._numpy.from_array(value, name)
        if name not in self._by_name:
            self._graph.initializer.append(made)
            self._by_name[name] = self._graph.initializer[-1]
        self._by_name[name].CopyFrom(made)


class Bias:
    """Where one layer's float bias is.

    Args:
        model: The layer's model.
        weights: Its initializers.
        node: The layer's operator in it.
        layer: The layer.
    """

    def __init__(self, model: Any, weights: Weights, node: Any, layer: Layer) -> None:
        self._weights, self._layer = weights, layer
        self._channels = layer.shape[layer.axis] * _groups(layer)
        self._node, self._place = (node, _PLACE) if node.op_type != "MatMul" else _addition(model, weights, node)

    @property
    def can_be_set(self) -> bool:
        """Whether there is a place for it."""
        if self._node is None:
            return False
        return not self._name or (self._name in self._weights and self._weights[self._name].size == self._channels)

    @property
    def _name(self) -> str:
        inputs = [] if self._node is None else list(self._node.input)
        return str(inputs[self._place]) if self._place < len(inputs) else ""

    def value(self) -> Floats:
        """The bias, float64, shape (out,); zeros where there is none."""
        import numpy as np

        if not self.can_be_set or not self._name:
            return np.zeros(self._channels)
        return self._weights[self._name].astype(np.float64).ravel()

    def set(self, bias: Floats) -> None:
        """Have another of its own, for other layers may share the one that it has."""
        import numpy as np

        shape = self._weights[self._name].shape if self._name else (self._channels,)
        name = f"{self._node.output[0]}__bias"
        self._weights[name] = bias.astype(np.float32).reshape(shape)
        if self._place < len(self._node.input):
            self._node.input[self._place] = name
        else:
            self._node.input.append(name)


def _groups(layer: Layer) -> int:
    """A grouped transposed convolution counts the output channels of one group in its weight."""
    from edgekit.backends._onnxruntime.layers import attribute

    return int(attribute(layer.node, "group", 1)) if layer.node.op_type == "ConvTranspose" else 1


def _addition(model: Any, weights: Weights, node: Any) -> tuple[Any, int]:
    """The Add of a constant that alone reads a product, and that constant's place."""
    readers = [one for one in model.graph.node if node.output[0] in one.input]
    given = {value.name for value in model.graph.output}
    if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in given:
        return None, 0
    place = 1 - list(readers[0].input).index(node.output[0])
    return (readers[0], place) if readers[0].input[place] in weights else (None, 0)
