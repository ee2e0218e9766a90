"""Layers of a graph in QDQ form: integers behind DequantizeLinear, changed in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.biases import Bias, Weights
from edgekit.backends._quantize.levels import Codebook, rounded_codes
from edgekit.core.errors import BackendError

if TYPE_CHECKING:
    from edgekit.backends._onnxruntime.layers import Layer
    from edgekit.backends._onnxruntime.stepwise import Stepwise
    from edgekit.backends._quantize.levels import Codes
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

INT8, _INT32 = 127, 2**31 - 1
_BIAS = 2


def qdq_layers(model: Any, layers: Sequence[Layer]) -> Iterator[QdqLayer]:
    """Layers of a graph whose weights have become integers, in the graph's order.

    Args:
        model: The graph in QDQ form, in calling order.
        layers: Those of the float graph that it was made from; nodes have kept their names.
    """
    weights = Weights(model)
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    by_name = {layer.node.name: layer for layer in layers}
    for place, node in enumerate(model.graph.node):
        layer = by_name.get(node.name)
        if layer is None or node.op_type == "DequantizeLinear" or len(node.input) <= 1:
            continue
        maker = makers.get(node.input[1])
        if maker is not None and maker.input[0] in weights:
            yield QdqLayer(model, weights, makers, layer, node, place)


class QdqLayer:
    """One such layer; see `sequential.Layer` for what it does once `watch` was called.

    Attributes:
        layer: Its float twin.
        largest: The largest whole number that its weights are stored as.
        is_fixed: Whether training has fixed its weights.
    """

    largest = INT8
    is_fixed = False

    def __init__(
        self, model: Any, weights: Weights, makers: dict[str, Any], layer: Layer, node: Any, place: int
    ) -> None:
        self.layer = layer
        self._weights, self._makers, self._node, self._place = weights, makers, node, place
        self._weight = makers[node.input[1]]
        maker = makers.get(node.input[_BIAS]) if len(node.input) > _BIAS else None
        # A constant of its own, or one that several layers share and nobody may change.
        readers = sum(name == maker.output[0] for one in model.graph.node for name in one.input) if maker else 0
        self._bias = maker if readers == 1 else None
        self._float_bias = Bias(model, weights, node, layer) if node.op_type == "MatMul" else None
        self._steps: Stepwise | None = None
        self._plain: Floats | None = None
        self._expected: Floats | None = None
        self._now: Floats | None = None

    def watch(self, steps: Stepwise, plain: Array, expected: Floats) -> None:
        """Be ready to be corrected.

        Args:
            steps: The run of the network.
            plain: The float weight.
            expected: The mean results of the float layer, shape (out,).
        """
        self._steps, self._expected = steps, expected
        self._plain = self.layer.rows(plain)

    @property
    def _scale(self) -> Floats:
        import numpy as np

        scale = self._weights[self._weight.input[1]].astype(np.float64).reshape(-1, 1)
        return np.broadcast_to(scale, (self.layer.shape[self.layer.axis], 1))

    def _real(self) -> Floats:
        import numpy as np

        rows = self.layer.rows(self._weights[self._weight.input[0]])
        return np.asarray(self.layer.from_rows(rows * self._scale))

    def fix(self, book: Codebook, codes: Codes) -> None:
        """Have exactly the weights that training has put on a grid; a scale cannot be negative here, a level can."""
        import numpy as np

        bias = self._stored_bias()
        signs = np.where(book.scale < 0, -1.0, 1.0)
        self._store(book.levels[codes] * signs)
        scale = np.abs(book.scale[:, 0])
        old = self._weights[self._weight.input[1]]
        if old.size != scale.size:
            raise BackendError(f"The scale of {self.layer.path} counts no output channels.")
        self._weights[self._weight.input[1]] = np.where(scale > 0, scale, 1.0).astype(np.float32)
        if bias is not None:
            self.set_bias(bias)

    def _store(self, levels: Floats) -> None:
        import numpy as np

        self._weights[self._weight.input[0]] = self.layer.from_rows(levels.astype(np.int8))

    def _stored_bias(self) -> Floats | None:
        import numpy as np

        if self._bias is None:
            return None
        stored, scale = (self._weights[name].astype(np.float64) for name in self._bias.input[:2])
        return np.asarray(stored * scale).ravel()

    def arrive(self) -> None:
        """See `sequential.Layer`."""
        if self._steps is not None:
            self._steps.run_to(self._place)

    def second_moment(self) -> Floats | None:
        """See `sequential.Layer`."""
        if self._steps is None:
            return None
        wanted = self.layer.can_be_rounded and not self.is_fixed
        self._now, second = self._steps.moments(self._node.input[0], self.layer.channel_axis, second=wanted)
        return second

    def round_weights(self, moment: Floats) -> None:
        """See `sequential.Layer`."""
        import numpy as np

        if self._plain is None:
            return
        levels = np.arange(-self.largest, self.largest + 1, dtype=np.float64)
        book = Codebook(levels, np.array(self._scale), self.layer.width)
        self._store(levels[rounded_codes(self._plain, book, moment)])

    def expected(self) -> Floats:
        """See `sequential.Layer`."""
        import numpy as np

        return np.zeros(0) if self._expected is None else self._expected

    def present(self) -> Floats:
        """See `sequential.Layer`."""
        import numpy as np

        return np.zeros(0) if self._now is None else self.layer.mean_result(self._now, self._real())

    def set_bias(self, bias: Floats) -> None:
        """See `sequential.Layer`; the bias is stored in steps of the data's times the weights'."""
        import numpy as np

        if self._float_bias is not None and self._float_bias.can_be_set:
            self._float_bias.set(bias)
        if self._bias is None:
            return
        data = self._makers[self._node.input[0]]
        groups = len(bias) // len(self._scale)
        scale = float(self._weights[data.input[1]]) * np.tile(self._scale[:, 0], groups)
        stored = np.clip(np.round(bias / scale), -_INT32, _INT32).astype(np.int32)
        shape = self._weights[self._bias.input[0]].shape
        self._weights[self._bias.input[0]] = stored.reshape(shape)
        self._weights[self._bias.input[1]] = scale.astype(np.float32)
