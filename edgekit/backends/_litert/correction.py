"""Layers of a quantized file made to give, on average, what the float layers give, one after the other.

Weights of matrix products are rounded anew for the data that they meet (see `rounding`). Rounded weights and clipped
activations still shift the mean of each output channel, and the shifts add up from layer to layer. The mean before the
activation function is measured on calibration examples, in float and quantized with all earlier layers corrected
already, and the difference goes into the bias: A. Finkelstein, U. Almog and M. Grobman, "Fighting Quantization Bias
With Bias", 2019; M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.

A layer is linear in its data before the activation function: the mean of its results is its result for the mean of its
data. So one run of the network on each example, stopped before every layer, is enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example
from edgekit.backends._litert.fourbits import least_error_steps
from edgekit.backends._litert.layers import LinearLayer, linear_layers
from edgekit.backends._litert.observation import Observation
from edgekit.backends._litert.stepwise import Stepwise
from edgekit.backends._quantize.rounding import rounded

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

_FOUR = 4
_MORE_DAMPING = 0.2
"""On top of what `rounded` has: at 4 bits errors are large, and what it makes good for them fits few photos."""


def correct_layers(
    quantized: Any,
    plain: Any,
    observed: Observation,
    samples: Mapping[str, Sequence[Example]],
    frozen: Collection[str] = (),
) -> int:
    """Round the weights and correct the biases of all layers with quantized weights, in place; how many there are.

    What stands inside a loop stays as it is.

    Args:
        quantized: The quantized model.
        plain: The float model that it was made from.
        observed: Means of the float model's tensors on the same examples.
        samples: Examples by signature.
        frozen: Results of layers whose weights stay as they are; their biases do not.
    """
    count = 0
    roundings: dict[str, tuple[Array, Floats]] = {}
    for signature in quantized.signatureDefs:
        place = int(signature.subgraphIndex)
        steps = Stepwise(quantized, signature, samples[flatbuffer.text(signature.signatureKey)])
        twins = {twin.result_name: twin for _, twin in linear_layers(plain, plain.subgraphs[place])}
        for index, layer in linear_layers(quantized, quantized.subgraphs[place]):
            twin = twins.get(layer.result_name)
            if twin is None or not (layer.has_weights and twin.has_weights and (layer.is_8_bit or layer.is_float)):
                continue
            if twin.data_name not in observed.means:
                continue
            steps.run_to(index)
            bias, weights = twin.bias(), twin.weights()
            if layer.is_8_bit:
                layer.coarsen(weights, bias)
            if layer.is_product and layer.result_name not in frozen:
                # Signatures share their weights: those of the first are rounded, and the others have the same.
                key = _digest(weights, layer.steps())
                if key not in roundings:
                    roundings[key] = _rounded(layer, weights, steps.second_moment(layer.data))
                if layer.stored_bits == _FOUR:
                    layer.put(*roundings[key])
                else:
                    layer.store(roundings[key][0])
            result = twin.mean_result(steps.mean(layer.data), layer.weights())
            layer.set_bias(bias + twin.mean_result(observed.means[twin.data_name], weights) - result)
            count += 1
    return count


def _rounded(layer: LinearLayer, weights: Floats, moment: Floats) -> tuple[Array, Floats]:
    """Whole numbers in the shape of the weights, and the step of each output channel."""
    import numpy as np

    products, steps = weights.reshape(len(weights), -1), layer.steps()
    if layer.stored_bits == _FOUR:
        power = np.diag(moment)
        steps = least_error_steps(products, power)
        moment = moment + np.eye(len(moment)) * (_MORE_DAMPING * float(power.mean()))
    found = rounded(products, steps, moment, layer.largest)
    return found.reshape(weights.shape).astype(np.int8), np.asarray(steps, np.float64)


def _digest(*arrays: Array) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()
