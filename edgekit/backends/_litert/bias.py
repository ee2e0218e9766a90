"""Biases of a quantized file, set so that every layer's mean result is the float layer's.

Rounded weights and clipped activations shift the mean of each output channel, and the shifts add up from layer to
layer. The mean before the activation function is measured on calibration examples, in float and quantized with all
earlier layers corrected already, and the difference goes into the bias: A. Finkelstein, U. Almog and M. Grobman,
"Fighting Quantization Bias With Bias", 2019; M. Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019.

A layer is linear in its input before the activation function: the mean of its results is its result for the mean
input. So one run of the network on each example, stopped before every layer, is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example, interpreter
from edgekit.backends._litert.observation import LINEAR, Observation, data_input
from edgekit.backends._litert.stepwise import Stepwise

if TYPE_CHECKING:
    from edgekit.core.task import Array

_INT32 = 2**31 - 1
_WEIGHTS = 1
_BIAS_STEPS = 2**29
"""How many steps a bias may have: far from where 32 bits end, for products are added to it."""


def correct_biases(quantized: Any, plain: Any, observed: Observation, samples: Mapping[str, Sequence[Example]]) -> int:
    """Correct the biases of all layers with 8-bit weights and activations, in place; how many there are.

    Args:
        quantized: The quantized model.
        plain: The float model that it was made from.
        observed: Means of the float model's tensors on the same examples.
        samples: Examples by signature.
    """
    names = flatbuffer.builtin_names()
    count = 0
    for signature in quantized.signatureDefs:
        place = int(signature.subgraphIndex)
        steps = Stepwise(quantized, signature, samples[flatbuffer.text(signature.signatureKey)])
        subgraph, origin = quantized.subgraphs[place], plain.subgraphs[place]
        floats = {flatbuffer.text(origin.tensors[int(op.outputs[0])].name): op for op in origin.operators}
        for index, operator in enumerate(subgraph.operators):
            kind = flatbuffer.operator_name(quantized, operator, names)
            twin = floats.get(flatbuffer.text(subgraph.tensors[int(operator.outputs[0])].name))
            if kind not in LINEAR or twin is None or not _is_8_bit(quantized, subgraph, operator, kind):
                continue
            layer = _Layer(plain, origin, twin, kind)
            if layer.input_name not in observed.means:
                continue
            steps.run_to(index)
            _coarsen(quantized, subgraph, operator, kind, layer)
            mean = steps.mean(int(operator.inputs[data_input(kind)]))
            weights = _real(quantized, subgraph.tensors[int(operator.inputs[_WEIGHTS])])
            shift = layer.mean_result(mean, weights) - layer.mean_result(observed.means[layer.input_name], None)
            _set_bias(quantized, subgraph, operator, kind, layer.bias() - shift)
            count += 1
    return count


class _Layer:
    """A linear operator of the float model."""

    def __init__(self, model: Any, subgraph: Any, operator: Any, kind: str) -> None:
        self._model, self._subgraph, self._operator, self._kind = model, subgraph, operator, kind
        self.input_name = flatbuffer.text(subgraph.tensors[int(operator.inputs[data_input(kind)])].name)

    def bias(self) -> Array | float:
        """Its bias by output channel; 0 where it has none."""
        import numpy as np

        place = _bias_input(self._kind)
        if len(self._operator.inputs) <= place or int(self._operator.inputs[place]) < 0:
            return 0.0
        return _real(self._model, self._subgraph.tensors[int(self._operator.inputs[place])]).astype(np.float64)

    def weights(self) -> Array:
        """Its weights."""
        return _real(self._model, self._subgraph.tensors[int(self._operator.inputs[_WEIGHTS])])

    def _channels(self) -> int:
        return int(self._subgraph.tensors[int(self._operator.outputs[0])].shape[-1])

    def mean_result(self, value: Array, weights: Array | None) -> Array:
        """Its result without bias and activation function, for a float input, averaged over all but the channels.

        Args:
            value: In the shape of its input.
            weights: Float weights in the place of its own, or None for its own.
        """
        import numpy as np

        tflite = flatbuffer.schema()
        model = tflite.ModelT()
        model.version, model.operatorCodes = self._model.version, self._model.operatorCodes
        model.buffers, model.subgraphs = [tflite.BufferT()], []
        graph = flatbuffer.Graph.new(model, "layer")
        tensors = self._subgraph.tensors
        data = data_input(self._kind)
        own = self.weights() if weights is None else weights
        inputs = [-1] * _bias_input(self._kind)
        inputs[data] = graph.tensor(value.shape)
        inputs[_WEIGHTS] = graph.constant(own.astype(np.float32))
        if data:
            inputs[0] = graph.constant(_real(self._model, tensors[int(self._operator.inputs[0])], "int32"))
        # The kernels of convolutions insist on a bias.
        inputs.append(graph.constant(np.zeros(self._channels(), np.float32)))
        result = graph.tensor([int(size) for size in tensors[int(self._operator.outputs[0])].shape])
        operator = tflite.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._operator.opcodeIndex, inputs, [result]
        operator.builtinOptionsType = self._operator.builtinOptionsType
        operator.builtinOptions = _without_activation(self._operator.builtinOptions)
        graph.operators.append(operator)
        graph.close([inputs[data]], [result])
        runtime = interpreter(flatbuffer.write(model))
        runtime.allocate_tensors()
        runtime.set_tensor(inputs[data], value.astype(np.float32))
        runtime.invoke()
        found = runtime.get_tensor(result).astype(np.float64)
        return np.asarray(found.reshape(-1, found.shape[-1]).mean(axis=0))


def _bias_input(kind: str) -> int:
    return max(data_input(kind), _WEIGHTS) + 1


def _without_activation(options: Any) -> Any:
    from copy import copy

    own = copy(options)
    own.fusedActivationFunction = flatbuffer.schema().ActivationFunctionType.NONE
    return own


def _is_8_bit(model: Any, subgraph: Any, operator: Any, kind: str) -> bool:
    """Whether activations and constant weights are int8: what the runtime quantizes as it comes stays as it is."""
    int8 = flatbuffer.schema().TensorType.INT8
    data, weights = (subgraph.tensors[int(operator.inputs[place])] for place in (data_input(kind), _WEIGHTS))
    result = subgraph.tensors[int(operator.outputs[0])]
    constant = model.buffers[weights.buffer].data is not None
    return constant and all(tensor.type == int8 for tensor in (data, weights, result))


def _real(model: Any, tensor: Any, dtype: str = "") -> Array:
    """A constant's real values, in its shape; `dtype` where they stand for themselves."""
    import numpy as np

    shape = tuple(int(size) for size in tensor.shape)
    stored = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), dtype or flatbuffer.type_name(tensor.type))
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
        return stored.reshape(shape)
    along = [1] * len(shape)
    if len(quantization.scale) > 1:
        along[int(quantization.quantizedDimension)] = -1
    scale, zero = (np.asarray(one, np.float64).reshape(along) for one in (quantization.scale, quantization.zeroPoint))
    return (stored.reshape(shape) - zero) * scale


def _coarsen(model: Any, subgraph: Any, operator: Any, kind: str, layer: _Layer) -> None:
    """Give channels whose weights are next to nothing coarser steps, in which their bias fits into 32 bits.

    A bias is stored in steps of the input's times the weights': in a channel that training has switched off those are
    so small that the quantizer cuts the bias off, and the channel gives zero where it gave a constant.
    """
    import numpy as np

    data, weights = (subgraph.tensors[int(operator.inputs[place])] for place in (data_input(kind), _WEIGHTS))
    scale = np.asarray(weights.quantization.scale, np.float64)
    least = np.abs(layer.bias()) / (_BIAS_STEPS * float(data.quantization.scale[0]))
    if scale.size == 1 or not np.any(scale < least):
        return
    coarse = np.maximum(scale, least).astype(np.float32)
    along = [1] * len(weights.shape)
    along[int(weights.quantization.quantizedDimension)] = -1
    stored = np.clip(np.round(layer.weights() / coarse.astype(np.float64).reshape(along)), -127, 127)
    place = _constant(model, subgraph, stored.astype(np.int8), coarse, int(weights.quantization.quantizedDimension))
    operator.inputs = [place if at == _WEIGHTS else int(tensor) for at, tensor in enumerate(operator.inputs)]


def _set_bias(model: Any, subgraph: Any, operator: Any, kind: str, bias: Array) -> None:
    """Give an operator a bias of its own: another may share the one that it has."""
    import numpy as np

    data, weights = (subgraph.tensors[int(operator.inputs[place])] for place in (data_input(kind), _WEIGHTS))
    scale = np.float32(data.quantization.scale[0]) * np.asarray(weights.quantization.scale, np.float32)
    steps = np.clip(np.round(bias / scale.astype(np.float64)), -_INT32, _INT32).astype(np.int32)
    place = _constant(model, subgraph, steps, scale, 0)
    at = _bias_input(kind)
    inputs = [int(tensor) for tensor in operator.inputs]
    operator.inputs = [*inputs[:at], place, *inputs[at + 1 :]]


def _constant(model: Any, subgraph: Any, stored: Array, scale: Array, along: int) -> int:
    """A new constant with a scale for each place along one of its axes; its index."""
    place = flatbuffer.Graph(model, subgraph).constant(stored)
    quantization = flatbuffer.schema().QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = list(map(float, scale)), [0] * len(scale)
    quantization.quantizedDimension = along
    subgraph.tensors[place].quantization = quantization
    return place
