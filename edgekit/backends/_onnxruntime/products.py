"""Matrix products with a bias behind them as one operator, whose bias an integer kernel can take.

    MatMul(x, w) + b   →   Reshape(Gemm(Reshape(x, [-1, in]), w, b), shape)

While it loads a file the runtime does this itself, but with a float bias, and then computes in float32.
"""

from __future__ import annotations

from typing import Any

from edgekit.backends._onnxruntime.biases import Weights
from edgekit.backends._onnxruntime.graph import EXTRA, WHY
from edgekit.core.extras import require


def with_gemms(model: Any) -> Any:
    """A copy with a Gemm for every product of data by a constant matrix and the sum with a constant that follows it."""
    import numpy as np

    onnx = require("onnx", EXTRA, WHY)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights, shapes = Weights(changed), _shapes(onnx, model)
    readers: dict[str, list[Any]] = {}
    for node in changed.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    given = {value.name for value in changed.graph.output}
    nodes, done = [], set()
    for node in changed.graph.node:
        if node.output[0] in done:
            continue
        match = _sum_behind(node, readers.get(node.output[0], []), weights) if node.output[0] not in given else None
        shape = shapes.get(match[0].output[0]) if match else None
        if match is None or not shape:
            nodes.append(node)
            continue
        total, bias = match
        width = weights[node.input[1]].shape[0]
        flat, back = f"{node.name}__flat", f"{node.name}__shape"
        weights[flat], weights[back] = np.array([-1, width], np.int64), np.array(shape, np.int64)
        nodes += [
            onnx.helper.make_node("Reshape", [node.input[0], flat], [f"{node.name}__rows"], f"{node.name}__in"),
            onnx.helper.make_node(
                "Gemm", [f"{node.name}__rows", node.input[1], bias], [f"{node.name}__sums"], f"{node.name}__gemm"
            ),
            onnx.helper.make_node("Reshape", [f"{node.name}__sums", back], [total.output[0]], f"{node.name}__out"),
        ]
        done.add(total.output[0])
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def _sum_behind(node: Any, readers: list[Any], weights: Weights) -> tuple[Any, str] | None:
    """The Add of a constant vector that alone reads a product, and that constant."""
    if node.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Add" or node.input[1] not in weights:
        return None
    matrix = weights[node.input[1]].shape
    bias = next((name for name in readers[0].input if name in weights), None)
    fits = bias is not None and len(matrix) == 2 and weights[bias].shape == matrix[1:]
    return (readers[0], bias) if fits and bias is not None else None


def _shapes(onnx: Any, model: Any) -> dict[str, list[int]]:
    """Shapes of values that are known throughout."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*inferred.value_info, *inferred.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if sizes and all(size > 0 for size in sizes):
            found[value.name] = sizes
    return found
