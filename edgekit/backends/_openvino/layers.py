"""Operators of an OpenVINO model that have constant weights: the weights by output channel, and the biases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.runtime import opset, run_once

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
LINEAR = (*CONVOLUTIONS, "MatMul")
"""Operators whose results are linear in their data, to which a bias is added."""

_CHANNELS = {
    "Convolution": (0,),
    "GroupConvolution": (0, 1),
    "ConvolutionBackpropData": (1,),
    "GroupConvolutionBackpropData": (0, 2),
    "Gather": (0,),
    "LSTMSequence": (0, 1),
    "GRUSequence": (0, 1),
    "RNNSequence": (0, 1),
}
_PORTS = {"Gather": (0,), "LSTMSequence": (4, 5), "GRUSequence": (3, 4), "RNNSequence": (3, 4)}
_WIDEST = 4096
"""The longest axis whose products of every two channels are kept."""


def layers_of(model: Any) -> Iterator[Layer]:
    """A model's layers with constant weights of two dimensions or more, in the order in which they are computed."""
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind != "MatMul" and kind not in _CHANNELS:
            continue
        for port in _PORTS.get(kind, (1,)):
            constant = _constant(node.input_value(port))
            if constant is None or (kind == "MatMul" and len(constant.get_output_shape(0)) != 2):
                continue
            if len(constant.get_output_shape(0)) > 1:
                yield Layer(node, port, constant)


def _constant(source: Any) -> Any | None:
    """The float constant behind a port, past what stores it in half or rounds it; None where there is none."""
    node = source.get_node()
    while node.get_type_name() in ("FakeQuantize", "Convert"):
        node = node.input_value(0).get_node()
    kind = node.get_output_element_type(0).get_type_name()
    return node if node.get_type_name() == "Constant" and kind in ("f32", "f16", "f64") else None


@dataclass
class Layer:
    """One operator with constant weights.

    Attributes:
        node: The operator.
        port: Which of its inputs the weights are.
        constant: The constant that they come from.
    """

    node: Any
    port: int
    constant: Any

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others, in every copy of the model."""
        return self.node.get_friendly_name(), self.port

    @property
    def kind(self) -> str:
        """The operator's kind."""
        return str(self.node.get_type_name())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its weights."""
        return tuple(self.constant.get_output_shape(0))

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    @property
    def channels(self) -> tuple[int, ...]:
        """The axes of its weights that together count output channels."""
        if self.kind != "MatMul":
            return _CHANNELS[self.kind]
        return (0,) if self.node.get_attributes()["transpose_b"] else (1,)

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of its weights with those of its channels first."""
        return self.channels + tuple(axis for axis in range(len(self.shape)) if axis not in self.channels)

    @property
    def is_linear(self) -> bool:
        """Whether it is one of `LINEAR`."""
        return self.kind in LINEAR

    @property
    def is_depthwise(self) -> bool:
        """Whether each of its channels reads one channel of the data."""
        return self.kind == "GroupConvolution" and self.shape[2] == 1

    @property
    def is_product(self) -> bool:
        """Whether it multiplies one axis of its data by weights (out, in), an axis that is not too long."""
        return self._is_plain and self.size // self.rows_shape[0] <= _WIDEST

    @property
    def _is_plain(self) -> bool:
        attributes = self.node.get_attributes()
        if self.kind == "MatMul":
            return not attributes["transpose_a"]
        pointwise = self.kind == "Convolution" and math.prod(self.shape[2:]) == 1
        return pointwise and set(attributes["strides"]) == {1} and not any(attributes["pads_begin"])

    @property
    def rows_shape(self) -> tuple[int, int]:
        """Output channels, and weights of each."""
        count = math.prod(self.shape[axis] for axis in self.channels)
        return count, self.size // count

    @property
    def data(self) -> Any:
        """The output that its data come from."""
        return self.node.input_value(0)

    @property
    def data_axis(self) -> int:
        """The axis of the data that a matrix product runs over."""
        return 1 if self.kind in CONVOLUTIONS else -1

    def rows(self) -> Floats:
        """Its weights by output channel, float64, shape `rows_shape`."""
        import numpy as np

        weights = np.asarray(self.constant.get_data(), np.float64)
        return weights.transpose(self.order).reshape(self.rows_shape)

    def shaped(self, rows: Array) -> Array:
        """Rows in the shape of its weights."""
        import numpy as np

        moved = rows.reshape([self.shape[axis] for axis in self.order])
        return np.ascontiguousarray(moved.transpose(np.argsort(self.order)))

    def shaped_scale(self, scale: Floats) -> Floats:
        """One number a channel, in a shape that its weights can be multiplied with."""
        import numpy as np

        shape = [self.shape[axis] if axis in self.channels else 1 for axis in range(len(self.shape))]
        # Channels over two axes keep their order: the first of them counts slower in both.
        return np.asarray(scale).reshape(shape)

    def set_weights(self, output: Any) -> None:
        """Take its weights from another output."""
        self.node.input(self.port).replace_source_output(output)

    def bias(self) -> Floats:
        """What is added to its channels; zeros where nothing is."""
        import numpy as np

        found = self._added()
        if found is None:
            return np.zeros(self.rows_shape[0])
        return np.asarray(found[1].get_data(), np.float64).ravel()

    def set_bias(self, bias: Floats) -> None:
        """Add something else to its channels."""
        import numpy as np

        rank = len(self.node.get_output_partial_shape(0))
        shape = [1] * rank
        shape[self.data_axis] = -1
        constant = opset().constant(bias.astype(np.float32).reshape(shape))
        found = self._added()
        if found is not None:
            constant.set_friendly_name(found[1].get_friendly_name())
            found[0].replace_source_output(constant.output(0))
            return
        readers = list(self.node.output(0).get_target_inputs())
        name = self.node.get_friendly_name()
        added = opset().add(self.node.output(0), constant)
        added.set_friendly_name(f"{name}/bias")
        constant.set_friendly_name(f"{name}/bias/values")
        for reader in readers:
            reader.replace_source_output(added.output(0))

    def _added(self) -> tuple[Any, Any] | None:
        """The port of the addition behind it that takes a constant of one number a channel, and the constant."""
        readers = list(self.node.output(0).get_target_inputs())
        if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
            return None
        addition = readers[0].get_node()
        port = addition.input(1 - readers[0].get_index())
        constant = _constant(port.get_source_output())
        if constant is None or math.prod(constant.get_output_shape(0)) != self.rows_shape[0]:
            return None
        shape = list(constant.get_output_shape(0))
        # Aligned at the end, as additions broadcast: the channels have to stand where the results have theirs.
        behind = len(self.node.get_output_partial_shape(0)) - 1 - self.data_axis if self.data_axis > 0 else 0
        return (port, constant) if len(shape) > behind and shape[len(shape) - 1 - behind] == max(shape) else None

    def mean_result(self, value: Floats, rows: Floats) -> Floats:
        """The mean of each output channel without bias, for a value of its data and weights; shape (channels,).

        A transposed convolution is run: the node is left with these weights and with a parameter as its data, so that
        it has to be one of a copy.
        """
        import numpy as np

        if self._is_plain:
            mean = np.moveaxis(value, self.data_axis, -1).reshape(-1, value.shape[self.data_axis]).mean(axis=0)
            return np.asarray(rows @ mean)
        if self._is_windowed:
            means = self._window_means(value)
            groups = self.shape[0] if self.kind == "GroupConvolution" else 1
            # Each group of output channels meets its own group of the data's.
            grouped = rows.reshape(groups, -1, rows.shape[1])
            return np.asarray(np.einsum("goi,gi->go", grouped, means.reshape(groups, -1)).ravel())
        self.set_weights(opset().constant(self.shaped(rows).astype(np.float32)).output(0))
        result = run_once(self.node, value.astype(np.float32)).astype(np.float64)
        moved = np.moveaxis(result, self.data_axis, -1)
        return np.asarray(moved.reshape(-1, moved.shape[-1]).mean(axis=0))

    @property
    def _is_windowed(self) -> bool:
        kind = self.kind in ("Convolution", "GroupConvolution")
        return kind and self.node.get_attributes()["auto_pad"] == "explicit"

    def _window_means(self, value: Floats) -> Floats:
        """The mean, over all places of a convolution's window, of what each of its weights meets: (channels, weights)."""
        import numpy as np

        attributes = self.node.get_attributes()
        begin, end = attributes["pads_begin"], attributes["pads_end"]
        padded = np.pad(value, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
        places = self.node.get_output_shape(0)[2:]
        window = self.shape[-len(places) :]
        found = np.empty((value.shape[1], *window))
        for offset in np.ndindex(*window):
            taken = tuple(
                slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
                for at, dilation, stride, count in zip(
                    offset, attributes["dilations"], attributes["strides"], places, strict=True
                )
            )
            part = padded[(slice(None), slice(None), *taken)]
            found[(slice(None), *offset)] = np.moveaxis(part, 1, 0).reshape(value.shape[1], -1).mean(axis=1)
        return found.reshape(value.shape[1], -1)
