"""Layers of an ONNX graph: operators that multiply their data by constant weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.graph import EXTRA, WHY, runtime
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that add a bias, of their own or behind them, to something linear in their data."""
# Where a weight stands among an operator's inputs, and the axis of its output channels.
_PLACES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "Conv": ((1, 0),),
    "ConvTranspose": ((1, 1),),
    "MatMul": ((1, -1),),
    "Gather": ((0, 0),),
    "LSTM": ((1, 1), (2, 1)),
    "GRU": ((1, 1), (2, 1)),
}
_SMALLEST = 256
_WIDEST = 4096
"""Weights of one channel beyond which the products of all of them would not fit into memory."""


@dataclass(frozen=True)
class Layer:
    """One operator and one of its weights.

    Attributes:
        node: The operator.
        weight: The initializer's name.
        axis: The axis of the weight that counts output channels, from 0.
        shape: The weight's.
        path: The torch module path, or for other sources a name in the graph.
    """

    node: Any
    weight: str
    axis: int
    shape: tuple[int, ...]
    path: str

    @property
    def is_linear(self) -> bool:
        """Whether its results are linear in its data with a bias that can be set."""
        if self.node.op_type == "Gemm":
            plain = attribute(self.node, "alpha", 1.0) == 1.0 and attribute(self.node, "beta", 1.0) == 1.0
            return plain and not attribute(self.node, "transA", 0)
        return self.node.op_type in LINEAR

    @property
    def is_product(self) -> bool:
        """Whether it multiplies one axis of its data by a matrix."""
        if self.node.op_type in ("Gemm", "MatMul"):
            return len(self.shape) == 2
        kernel = self.node.op_type == "Conv" and math.prod(self.shape[2:]) == 1
        return (
            kernel
            and attribute(self.node, "group", 1) == 1
            and not any(attribute(self.node, "pads", ()))
            and set(attribute(self.node, "strides", (1,))) == {1}
        )

    @property
    def width(self) -> int:
        """How many weights an output channel has."""
        return math.prod(self.shape) // self.shape[self.axis]

    @property
    def can_be_rounded(self) -> bool:
        """Whether GPTQ can round its weights."""
        return self.is_linear and self.is_product and self.width <= _WIDEST

    @property
    def channel_axis(self) -> int:
        """The axis of its data and results that counts channels."""
        return 1 if self.node.op_type in ("Conv", "ConvTranspose") else -1

    def rows(self, weight: Array) -> Floats:
        """A weight of this shape as (output channels, the rest), float64."""
        import numpy as np

        moved = np.moveaxis(np.asarray(weight, np.float64), self.axis, 0)
        return moved.reshape(moved.shape[0], -1)

    def from_rows(self, rows: Array) -> Array:
        """The reverse of `rows`, in the rows' own type."""
        import numpy as np

        first = [self.shape[self.axis], *(size for place, size in enumerate(self.shape) if place != self.axis)]
        return np.ascontiguousarray(np.moveaxis(rows.reshape(first), 0, self.axis))

    def mean_result(self, mean: Floats, weight: Floats) -> Floats:
        """The mean result of each output channel, without a bias, for data of which this is the mean.

        Args:
            mean: The mean over the examples of its data, in their shape.
            weight: In the weight's own shape.
        """
        import numpy as np

        axis = self.channel_axis % mean.ndim
        others = tuple(place for place in range(mean.ndim) if place != axis)
        if self.is_product:
            return np.asarray(self.rows(weight) @ mean.mean(axis=others))
        result = _alone(self.node, mean.astype(np.float32), weight.astype(np.float32))
        return np.asarray(result.astype(np.float64).mean(axis=others))


def layers(model: Any, paths: Mapping[str, str]) -> Iterator[Layer]:
    """A graph's layers in its order, weights of fewer than 256 numbers left out.

    Args:
        model: The model.
        paths: Module paths by initializer; for those not in it a name is made of the graph's names.
    """
    onnx = require("onnx", EXTRA, WHY)
    initializers = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        for place, axis in places(node):
            name = node.input[place] if place < len(node.input) else ""
            one = initializers.get(name)
            if one is None or one.data_type != onnx.TensorProto.FLOAT or len(one.dims) < 2:
                continue
            if math.prod(one.dims) >= _SMALLEST:
                path = paths.get(name) or _named(node, name)
                yield Layer(node, name, axis % len(one.dims), tuple(one.dims), path)


def places(node: Any) -> tuple[tuple[int, int], ...]:
    """Where an operator takes weights, and the axis of their output channels."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "Gemm":
        return ((1, 0 if attribute(node, "transB", 0) else 1),)
    return _PLACES.get(node.op_type, ())


def attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute of an operator."""
    onnx = require("onnx", EXTRA, WHY)
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _named(node: Any, weight: str) -> str:
    """A weight's own name where a person gave it, else the operator's."""
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    anonymous = weight.startswith(("onnx::", "val_")) or not weight.strip("/")
    return (node.name if anonymous and node.name else weight).strip("/").replace("/", ".")


def _alone(node: Any, data: Array, weight: Array) -> Array:
    """The result of one operator, without its bias."""
    onnx = require("onnx", EXTRA, WHY)
    ort = runtime()
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(["data", "weight"])
    del copy.output[:]
    copy.output.extend(["result"])
    graph = onnx.helper.make_graph(
        [copy],
        "layer",
        [onnx.helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, data.shape)],
        [onnx.helper.make_empty_tensor_value_info("result")],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"data": data})[0]
    return found
