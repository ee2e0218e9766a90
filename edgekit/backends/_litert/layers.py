"""Linear operators of a file, float or quantized: their weights and biases as real numbers, and as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import interpreter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.core.task import Array

    Floats = NDArray[np.float64]

KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
"""Operators that add a bias to something linear in their data."""

_WEIGHTS = 1
_DEPTHWISE_AXIS = 3
_INT32 = 2**31 - 1
_INT8, _INT4 = 127, 7
_WIDEST = 4096
_BIAS_STEPS = 2**29
"""How many steps a bias may have: far from where 32 bits end, for products are added to it."""


def linear_layers(model: Any, subgraph: Any) -> Iterator[tuple[int, LinearLayer]]:
    """A subgraph's linear operators, with their places among its operators."""
    names = flatbuffer.builtin_names()
    for place, operator in enumerate(subgraph.operators):
        kind = flatbuffer.operator_name(model, operator, names)
        if kind in KINDS:
            yield place, LinearLayer(model, subgraph, operator, kind)


class LinearLayer:
    """One linear operator.

    Attributes:
        data: The tensor that its data come from, by number.
        result: The tensor that it makes, by number.
    """

    def __init__(self, model: Any, subgraph: Any, operator: Any, kind: str) -> None:
        self._model, self._subgraph, self._operator, self._kind = model, subgraph, operator, kind
        # A transposed convolution takes its output's shape first.
        self._data_place = 2 if kind == "TRANSPOSE_CONV" else 0
        self._bias_place = max(self._data_place, _WEIGHTS) + 1
        self.data = int(operator.inputs[self._data_place])
        self.result = int(operator.outputs[0])
        self._weights = self._constant_weights()

    @property
    def data_name(self) -> str:
        """The name of the tensor that its data come from."""
        return flatbuffer.text(self._subgraph.tensors[self.data].name)

    @property
    def result_name(self) -> str:
        """The name of its result."""
        return flatbuffer.text(self._subgraph.tensors[self.result].name)

    @property
    def has_weights(self) -> bool:
        """Whether its weights stand in the file, as they are or behind a DEQUANTIZE."""
        return self._weights is not None

    @property
    def constant(self) -> Any:
        """The schema's tensor that its weights stand in."""
        return self._weights

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of its data."""
        return tuple(int(size) for size in self._subgraph.tensors[self.data].shape)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The shape of its result."""
        return tuple(int(size) for size in self._subgraph.tensors[self.result].shape)

    @property
    def kind(self) -> str:
        """The operator's name in the schema."""
        return self._kind

    @property
    def size(self) -> int:
        """How many weights it has."""
        import numpy as np

        return int(np.prod([int(size) for size in self._weights.shape]))

    @property
    def buffer(self) -> int:
        """The number of the buffer with its weights."""
        return int(self._weights.buffer)

    @property
    def channels(self) -> int:
        """How many output channels its weights have."""
        return int(self._weights.shape[self.channel_axis])

    @property
    def channel_axis(self) -> int:
        """The axis of its weights that counts output channels."""
        return _DEPTHWISE_AXIS if self._kind == "DEPTHWISE_CONV_2D" else 0

    @property
    def is_8_bit(self) -> bool:
        """Whether it takes and gives int8."""
        int8 = flatbuffer.schema().TensorType.INT8
        return all(self._subgraph.tensors[tensor].type == int8 for tensor in (self.data, self.result))

    @property
    def is_float(self) -> bool:
        """Whether it takes and gives float32, whatever its weights are stored as."""
        float32 = flatbuffer.schema().TensorType.FLOAT32
        return all(self._subgraph.tensors[tensor].type == float32 for tensor in (self.data, self.result))

    @property
    def is_product(self) -> bool:
        """Whether it multiplies the last axis of its data by integer weights of its own, shape (out, …, in).

        Not where that axis is so long that the products of all its channels would not fit into memory.
        """
        types = flatbuffer.schema().TensorType
        if self._weights is None or self._weights.type not in (types.INT4, types.INT8):
            return False
        if int(self._weights.shape[-1]) > _WIDEST:
            return False
        if len([op for op in self._subgraph.operators if self._weight_index in [int(t) for t in op.inputs]]) != 1:
            return False
        options = self._operator.builtinOptions
        pointwise = self._kind == "CONV_2D" and list(self._weights.shape[1:3]) == [1, 1]
        return self._kind == "FULLY_CONNECTED" or (pointwise and options.strideW == options.strideH == 1)

    @property
    def largest(self) -> int:
        """The largest whole number that its weights are stored as, and the least without its sign."""
        return _INT4 if self._weights.type == flatbuffer.schema().TensorType.INT4 else _INT8

    @property
    def _weight_index(self) -> int:
        return int(self._operator.inputs[_WEIGHTS])

    def _constant_weights(self) -> Any:
        index = self._weight_index
        makers = [op for op in self._subgraph.operators if index in [int(tensor) for tensor in op.outputs]]
        if makers:
            kind = flatbuffer.operator_name(self._model, makers[0], flatbuffer.builtin_names())
            index = int(makers[0].inputs[0]) if kind == "DEQUANTIZE" else -1
        tensor = self._subgraph.tensors[index] if index >= 0 else None
        return tensor if tensor is not None and self._model.buffers[tensor.buffer].data is not None else None

    def weights(self) -> Floats:
        """Its weights as real numbers, in their own shape."""
        return _real(self._model, self._weights)

    def steps(self) -> Floats:
        """One step of each output channel's quantized weights."""
        import numpy as np

        scale = np.asarray(self._weights.quantization.scale, np.float64)
        return np.broadcast_to(scale, (int(self._weights.shape[0]),))

    def store(self, steps: Array) -> None:
        """Have other weights, as whole numbers in the shape of its own."""
        import numpy as np

        flat = steps.ravel().astype(np.int8)
        buffer = flatbuffer.schema().BufferT()
        buffer.data = np.asarray(_packed(flat) if self.largest == _INT4 else flat).view(np.uint8)
        self._model.buffers.append(buffer)
        self._weights.buffer = len(self._model.buffers) - 1

    def put(self, steps: Array, scale: Floats) -> None:
        """Have other weights, as whole numbers in the shape of its own, and other scales of its output channels."""
        quantization = flatbuffer.schema().QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = [float(one) for one in scale], [0] * len(scale)
        quantization.quantizedDimension = self.channel_axis
        self._weights.quantization = quantization
        self.store(steps)

    def put_floats(self, weights: Array) -> None:
        """Have other float32 weights in the shape of its own."""
        import numpy as np

        buffer = flatbuffer.schema().BufferT()
        buffer.data = np.ascontiguousarray(weights, np.float32).view(np.uint8).ravel()
        self._model.buffers.append(buffer)
        self._weights.buffer = len(self._model.buffers) - 1

    @property
    def stored_bits(self) -> int | None:
        """How many bits an integer weight has; None where its weights are floats."""
        types = flatbuffer.schema().TensorType
        return {types.INT4: 4, types.INT8: 8}.get(self._weights.type) if self._weights is not None else None

    def activated(self, low: float, high: float) -> tuple[float, float]:
        """What a range of its results becomes by the activation function that is part of it."""
        kinds = flatbuffer.schema().ActivationFunctionType
        low_of = {kinds.RELU: 0.0, kinds.RELU6: 0.0, kinds.RELU_N1_TO_1: -1.0}
        high_of = {kinds.RELU6: 6.0, kinds.RELU_N1_TO_1: 1.0}
        own = self._operator.builtinOptions.fusedActivationFunction
        return max(low, low_of.get(own, low)), min(high, high_of.get(own, high))

    def bias(self) -> Floats:
        """Its bias by output channel; zeros where it has none."""
        import numpy as np

        inputs = self._operator.inputs
        if len(inputs) <= self._bias_place or int(inputs[self._bias_place]) < 0:
            return np.zeros(int(self._subgraph.tensors[self.result].shape[-1]))
        return _real(self._model, self._subgraph.tensors[int(inputs[self._bias_place])])

    def mean_result(self, value: Floats, weights: Floats) -> Floats:
        """Its result without bias and activation function, averaged over all axes but the channels.

        Args:
            value: Real numbers in the shape of its data.
            weights: Real numbers in the shape of its weights.
        """
        import numpy as np

        tflite = flatbuffer.schema()
        model = tflite.ModelT()
        model.version, model.operatorCodes = self._model.version, self._model.operatorCodes
        model.buffers, model.subgraphs = [tflite.BufferT()], []
        graph = flatbuffer.Graph.new(model, "layer")
        inputs = [-1] * (self._bias_place + 1)
        inputs[self._data_place] = graph.tensor(value.shape)
        inputs[_WEIGHTS] = graph.constant(weights.astype(np.float32))
        if self._data_place:
            shape = self._model.buffers[self._subgraph.tensors[int(self._operator.inputs[0])].buffer].data
            inputs[0] = graph.constant(np.frombuffer(shape.tobytes(), np.int32))
        made = [int(size) for size in self._subgraph.tensors[self.result].shape]
        # The kernels of convolutions insist on a bias.
        inputs[self._bias_place] = graph.constant(np.zeros(made[-1], np.float32))
        result = graph.tensor(made)
        operator = copy(self._operator)
        operator.inputs, operator.outputs = inputs, [result]
        operator.builtinOptions = copy(operator.builtinOptions)
        operator.builtinOptions.fusedActivationFunction = tflite.ActivationFunctionType.NONE
        graph.operators.append(operator)
        graph.close([inputs[self._data_place]], [result])
        runtime = interpreter(flatbuffer.write(model))
        runtime.allocate_tensors()
        runtime.set_tensor(inputs[self._data_place], value.astype(np.float32))
        runtime.invoke()
        found = runtime.get_tensor(result).astype(np.float64)
        return np.asarray(found.reshape(-1, found.shape[-1]).mean(axis=0))

    def coarsen(self, weights: Floats, bias: Floats) -> None:
        """Give channels whose weights are next to nothing coarser steps, in which their bias fits into 32 bits.

        A bias is stored in steps of the data's times the weights'. In a channel that training has switched off those
        are so small that the quantizer cuts the bias off, and the channel gives zero where it gave a constant.

        Args:
            weights: What the weights shall be.
            bias: What the bias shall be.
        """
        import numpy as np

        own = self._weights.quantization
        scale = np.asarray(own.scale, np.float64)
        least = np.abs(bias) / (_BIAS_STEPS * self._data_scale())
        if scale.size == 1 or not np.any(scale < least):
            return
        # To a power of two: signatures share their weights, and their data's steps hardly differ.
        wide = np.exp2(np.ceil(np.log2(np.maximum(least, np.finfo(np.float32).tiny))))
        coarse = np.where(scale < least, wide, scale).astype(np.float32)
        axis = int(own.quantizedDimension)
        along = [1] * weights.ndim
        along[axis] = -1
        stored = np.clip(np.round(weights / coarse.astype(np.float64).reshape(along)), -_INT8, _INT8)
        place = self._constant(np.asarray(stored, np.int8), coarse, axis)
        self._set_input(_WEIGHTS, place)
        self._weights = self._subgraph.tensors[place]

    def set_bias(self, bias: Floats) -> None:
        """Give it a bias of its own, for another may share the one that it has: in its data's steps, or in float."""
        import numpy as np

        if self.is_float:
            self._set_input(self._bias_place, self._constant(bias.astype(np.float32)))
            return
        scale = np.float32(self._data_scale()) * np.asarray(self._weights.quantization.scale, np.float32)
        steps = np.clip(np.round(bias / scale.astype(np.float64)), -_INT32, _INT32)
        self._set_input(self._bias_place, self._constant(np.asarray(steps, np.int32), scale))

    def _data_scale(self) -> float:
        return float(self._subgraph.tensors[self.data].quantization.scale[0])

    def _set_input(self, place: int, tensor: int) -> None:
        inputs = [int(one) for one in self._operator.inputs]
        self._operator.inputs = [*inputs[:place], tensor, *inputs[place + 1 :]]

    def _constant(self, stored: Array, scale: Array | None = None, axis: int = 0) -> int:
        place = flatbuffer.Graph(self._model, self._subgraph).constant(stored)
        if scale is not None:
            quantization = flatbuffer.schema().QuantizationParametersT()
            quantization.scale, quantization.zeroPoint = list(map(float, scale)), [0] * len(scale)
            quantization.quantizedDimension = axis
            self._subgraph.tensors[place].quantization = quantization
        return place


def _packed(steps: Array) -> Array:
    """Steps of 4 bits, two to a byte, the lower half first."""
    import numpy as np

    flat = np.append(steps, np.zeros(steps.size % 2, np.int8)).view(np.uint8)
    return np.asarray((flat[0::2] & 0x0F) | (flat[1::2] << 4))


def _real(model: Any, tensor: Any) -> Floats:
    import numpy as np

    shape = tuple(int(size) for size in tensor.shape)
    data = model.buffers[tensor.buffer].data
    if tensor.type == flatbuffer.schema().TensorType.INT4:
        # Two to a byte, the lower half first; a shift to the left and back gives each its sign.
        both = np.frombuffer(data.tobytes(), np.int8)
        halves = np.stack([np.left_shift(both, 4) >> 4, both >> 4], axis=-1).ravel()
        stored = halves[: int(np.prod(shape))].reshape(shape).astype(np.float64)
    else:
        stored = np.frombuffer(data.tobytes(), flatbuffer.type_name(tensor.type)).reshape(shape).astype(np.float64)
    own = tensor.quantization
    if own is None or own.scale is None or len(own.scale) == 0:
        return stored
    along = [1] * len(shape)
    if len(own.scale) > 1:
        along[int(own.quantizedDimension)] = -1
    scale, zero = (np.asarray(one, np.float64).reshape(along) for one in (own.scale, own.zeroPoint))
    return np.asarray((stored - zero) * scale)
