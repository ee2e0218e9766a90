"""Layers of a quantized network made to give, on average, what the float layers give, one after the other.

Weights of matrix products are rounded anew for the data that they meet (see `rounding`). Rounded weights and clipped
activations still shift the mean of each output channel, and the shifts add up from layer to layer. The mean before the
activation function is measured on calibration examples, in float and quantized with all earlier layers corrected
already, and the difference goes into the bias: A. Finkelstein, U. Almog and M. Grobman, "Fighting Quantization Bias
With Bias", 2019; M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.

A layer is linear in its data before the activation function: the mean of its results is its result for the mean of its
data. So one run of the network on each example, stopped before every layer, is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats


class Layer(Protocol):
    """One linear operator of a quantized network that has a float twin; how it is stored is the backend's affair."""

    def arrive(self) -> None:
        """Run the quantized network on all examples as far as this layer's data, earlier layers as they are now."""

    def second_moment(self) -> Floats | None:
        """The mean of the products of every two of the data that it meets now, shape (in, in).

        None where its weights are not to be rounded: no matrix product, too wide, or fixed by training.
        """

    def round_weights(self, moment: Floats) -> None:
        """Round the float twin's weights anew for data with this second moment, and have those from now on."""

    def expected(self) -> Floats:
        """The mean result of each output channel of the float twin, its bias included, shape (out,)."""

    def present(self) -> Floats:
        """The mean result for the data that it meets now and the weights that it has now, without a bias."""

    def set_bias(self, bias: Floats) -> None:
        """Have another bias, shape (out,)."""


def correct_layers(layers: Iterable[Layer]) -> int:
    """Round the weights and correct the biases of layers in the order in which they are computed; how many there are."""
    count = 0
    for layer in layers:
        layer.arrive()
        moment = layer.second_moment()
        if moment is not None:
            layer.round_weights(moment)
        layer.set_bias(layer.expected() - layer.present())
        count += 1
    return count
