"""Weights of few bits, packed into bytes, which the file itself unpacks once, when a device first runs it.

    before:  weights (constant) ──────────────────────────────────────────▶ FULLY_CONNECTED

    after:   CALL_ONCE ▶ bytes ▶ CAST ▶ GATHER from 256 rows ▶ RESHAPE ▶ MUL by scale ▶ ASSIGN_VARIABLE
             VAR_HANDLE ▶ READ_VARIABLE ───────────────────────────────────▶ FULLY_CONNECTED

A row has the levels of all weights of one byte, so that one GATHER unpacks any palette, evenly spaced or not. The 256
rows are made by the file itself as well, once for all layers with the same levels.
Only built-in operators are used, those of a runtime from 2021 on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.grids import StoredGrid
from edgekit.backends._litert.layers import linear_layers

if TYPE_CHECKING:
    from edgekit.core.task import Array

_BYTE = 256
_VARIABLE = "w"


def pack(model: Any, palettes: Mapping[str, StoredGrid]) -> None:
    """Store the weights of some operators as packed codes, in place; what it computes stays the same to the last bit.

    Args:
        model: A model whose operators have these weights as float32 constants.
        palettes: The weights by the name of the operator's result.
    """
    if not palettes:
        return
    unpacking = _Unpacking(model)
    for signature in model.signatureDefs:
        _use_variables(model, model.subgraphs[signature.subgraphIndex], palettes, unpacking)
    unpacking.close()
    _slim(model)


def _use_variables(model: Any, subgraph: Any, palettes: Mapping[str, StoredGrid], unpacking: _Unpacking) -> None:
    places = {place: layer for place, layer in linear_layers(model, subgraph) if layer.result_name in palettes}
    if not places:
        return
    graph = flatbuffer.Graph(model, subgraph)
    options = flatbuffer.schema().CallOnceOptionsT()
    options.initSubgraphIndex = unpacking.index
    graph.op("CALL_ONCE", [], [], options)
    read: set[int] = set()
    for place, operator in enumerate(subgraph.operators):
        weights = int(operator.inputs[1]) if place in places else -1
        if weights >= 0 and weights not in read:
            read.add(weights)
            name = unpacking.variable(palettes[places[place].result_name])
            handle = _handle(graph, name)
            # The tensor keeps its number and name; it has no bytes of its own any more.
            subgraph.tensors[weights].buffer = 0
            graph.op("READ_VARIABLE", [handle], [weights], flatbuffer.schema().ReadVariableOptionsT())
        graph.operators.append(operator)
    subgraph.operators = graph.operators


def _slim(model: Any) -> None:
    """Leave out what a small file has more of than of weights: the converter's long names, and empty quantizations."""
    for place, subgraph in enumerate(model.subgraphs):
        known = {int(tensor) for tensor in (*subgraph.inputs, *subgraph.outputs)}
        for index, tensor in enumerate(subgraph.tensors):
            if index not in known:
                tensor.name = f"{place}.{index}"
            if tensor.quantization is not None and not _has_scale(tensor.quantization):
                tensor.quantization = None


def _has_scale(quantization: Any) -> bool:
    return quantization.scale is not None and len(quantization.scale) > 0


def _handle(graph: flatbuffer.Graph, name: str) -> int:
    tflite = flatbuffer.schema()
    handle = graph.tensor((1,), "int32")
    graph.subgraph.tensors[handle].type = tflite.TensorType.RESOURCE
    options = tflite.VarHandleOptionsT()
    options.container, options.sharedName = "", name
    graph.op("VAR_HANDLE", [], [handle], options)
    return handle


class _Unpacking:
    """The subgraph that runs once and fills the variables; signatures with equal weights share them."""

    def __init__(self, model: Any) -> None:
        self._graph = flatbuffer.Graph.new(model, "unpack")
        self._variables: dict[str, str] = {}
        self._places: dict[int, int] = {}
        self._rows: dict[tuple[int, tuple[float, ...]], int] = {}

    @property
    def index(self) -> int:
        """Its place among the model's subgraphs."""
        return self._graph.index

    def close(self) -> None:
        """Put the operators into the subgraph."""
        self._graph.close([], [])

    def variable(self, grid: StoredGrid) -> str:
        """The name of the variable with these weights."""
        key = _digest(grid)
        if key not in self._variables:
            self._variables[key] = f"{_VARIABLE}{len(self._variables)}"
            unpacked = self._unpacked(grid)
            handle = _handle(self._graph, self._variables[key])
            options = flatbuffer.schema().AssignVariableOptionsT()
            self._graph.op("ASSIGN_VARIABLE", [handle, unpacked], [], options)
        return self._variables[key]

    def _unpacked(self, grid: StoredGrid) -> int:
        import numpy as np

        graph, bits = self._graph, _storage_bits(grid.bits)
        packed = packed_codes(grid.codes, bits)
        rows = self._gathered(self._levels(bits, grid.levels), self._as_int32(packed))
        shape, size = grid.codes.shape, grid.codes.size
        if len(packed) * (8 // bits) != size:
            rows = self._first(self._reshaped(rows, (len(packed) * (8 // bits),)), size)
        blocks = (*grid.scale.shape, size // grid.scale.size) if grid.scale.ndim > 1 else shape
        levels = self._reshaped(rows, blocks)
        scaled = graph.tensor(blocks)
        scale = graph.constant(np.ascontiguousarray(grid.along()))
        graph.op("MUL", [levels, scale], [scaled], flatbuffer.schema().MulOptionsT())
        return scaled if blocks == shape else self._reshaped(scaled, shape)

    def _levels(self, bits: int, levels: tuple[float, ...]) -> int:
        """The levels of every byte's weights, (256, weights a byte)."""
        import numpy as np

        key = (bits, levels)
        if key not in self._rows:
            if bits not in self._places:
                self._places[bits] = self._codes_of_bytes(bits)
            # Codes that no weight has stand for the last level: every code must be somewhere.
            filled = np.asarray((*levels, *[levels[-1]] * (2**bits - len(levels))), np.float32)
            self._rows[key] = self._gathered(self._graph.constant(filled), self._places[bits])
        return self._rows[key]

    def _codes_of_bytes(self, bits: int) -> int:
        """The codes in every byte, (256, weights a byte), computed: as a constant they would be most of a small file."""
        import numpy as np

        tflite, graph, per = flatbuffer.schema(), self._graph, 8 // bits
        every = self._as_int32(np.arange(_BYTE, dtype=np.uint8)[:, None])
        shifts = graph.constant(2 ** (np.arange(per, dtype=np.int32) * bits))
        shifted, codes = graph.tensor((_BYTE, per), "int32"), graph.tensor((_BYTE, per), "int32")
        graph.op("FLOOR_DIV", [every, shifts], [shifted], tflite.FloorDivOptionsT())
        count = graph.constant(np.array([2**bits], np.int32))
        graph.op("FLOOR_MOD", [shifted, count], [codes], tflite.FloorModOptionsT())
        return codes

    def _reshaped(self, tensor: int, shape: tuple[int, ...]) -> int:
        """A tensor in another shape, which stands in the operator and not in a constant."""
        options = flatbuffer.schema().ReshapeOptionsT()
        options.newShape = list(shape)
        found = self._graph.tensor(shape)
        self._graph.op("RESHAPE", [tensor], [found], options)
        return found

    def _as_int32(self, value: Array) -> int:
        tflite, graph = flatbuffer.schema(), self._graph
        wide = graph.tensor(value.shape, "int32")
        options = tflite.CastOptionsT()
        options.inDataType, options.outDataType = tflite.TensorType.UINT8, tflite.TensorType.INT32
        graph.op("CAST", [graph.constant(value)], [wide], options)
        return wide

    def _gathered(self, table: int, places: int) -> int:
        graph = self._graph
        found = graph.tensor((*graph.shape(places), *graph.shape(table)[1:]))
        graph.op("GATHER", [table, places], [found], flatbuffer.schema().GatherOptionsT())
        return found

    def _first(self, tensor: int, count: int) -> int:
        import numpy as np

        graph = self._graph
        found = graph.tensor((count,))
        start, size = graph.constant(np.array([0], np.int32)), graph.constant(np.array([count], np.int32))
        graph.op("SLICE", [tensor, start, size], [found], flatbuffer.schema().SliceOptionsT())
        return found


def _storage_bits(bits: int) -> int:
    """The least number of bits that holds a code and divides a byte."""
    return next(one for one in (1, 2, 4, 8) if one >= bits)


def packed_codes(codes: Array, bits: int) -> Array:
    """Codes in bytes, uint8, in the order of the weights, the first in a byte's lowest bits."""
    import numpy as np

    per = 8 // bits
    flat = np.ascontiguousarray(codes).ravel().astype(np.uint8)
    rows = np.append(flat, np.zeros(-flat.size % per, np.uint8)).reshape(-1, per)
    shifted = rows << (np.arange(per, dtype=np.uint8) * bits)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8))


def _digest(grid: StoredGrid) -> str:
    import numpy as np

    found = hashlib.sha256(repr((grid.levels, grid.codes.shape, grid.axis)).encode())
    found.update(np.ascontiguousarray(grid.codes).tobytes())
    found.update(np.ascontiguousarray(grid.scale).tobytes())
    return found.hexdigest()
