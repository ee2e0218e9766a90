"""Fully connected layers written as convolutions of size 1×1, which compute the same."""

from __future__ import annotations

import math
from typing import Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.layers import LinearLayer

_VERSION = 3
"""The version of CONV_2D from which on it takes int8."""


def is_needed(layer: LinearLayer) -> bool:
    """Whether XNNPACK takes a layer's weights only where they are constant: fully connected, with int8 data."""
    return layer.kind == "FULLY_CONNECTED" and layer.is_8_bit


def rewrite(model: Any, subgraph: Any, operator: Any) -> None:
    """Write a fully connected layer as a convolution, in place: its data (…, in) become (n, 1, 1, in).

    Where others read the same weights, they are to be rewritten too.

    Args:
        model: The model.
        subgraph: The layer's subgraph.
        operator: The layer's operator.
    """
    tflite = flatbuffer.schema()
    graph = flatbuffer.Graph(model, subgraph)
    data, weights, result = int(operator.inputs[0]), int(operator.inputs[1]), int(operator.outputs[0])
    shape = graph.shape(weights)
    out, given = shape[0], shape[-1]
    subgraph.tensors[weights].shape = [out, 1, 1, given]
    rows = math.prod(graph.shape(data)) // given
    moved = _like(graph, data, (rows, 1, 1, given))
    made = _like(graph, result, (rows, 1, 1, out))
    graph.reshape(data, (rows, 1, 1, given), moved)
    options = tflite.Conv2DOptionsT()
    options.padding = tflite.Padding.VALID
    options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
    own = operator.builtinOptions
    # Options of zeros may have been left out.
    options.fusedActivationFunction = own.fusedActivationFunction if own is not None else 0
    graph.op("CONV_2D", [moved, *map(int, operator.inputs[1:])], [made], options, version=_VERSION)
    graph.reshape(made, graph.shape(result), result)
    place = next(place for place, one in enumerate(subgraph.operators) if one is operator)
    subgraph.operators = [*subgraph.operators[:place], *graph.operators, *subgraph.operators[place + 1 :]]


def _like(graph: flatbuffer.Graph, tensor: int, shape: tuple[int, ...]) -> int:
    """A tensor of another shape, with the type and the scale of one that is there."""
    source = graph.subgraph.tensors[tensor]
    found = graph.tensor(shape, flatbuffer.type_name(source.type))
    graph.subgraph.tensors[found].quantization = source.quantization
    return found
