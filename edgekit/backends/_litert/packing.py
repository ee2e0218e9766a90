"""Weights of few bits, packed into bytes, which the file itself unpacks once, when a device first runs it.

    before:  weights (constant) ──────────────────────────────────────────▶ FULLY_CONNECTED

    after:   CALL_ONCE ▶ bytes ▶ CAST ▶ GATHER from 256 rows ▶ RESHAPE ▶ MUL by scale ▶ ASSIGN_VARIABLE
             VAR_HANDLE ▶ READ_VARIABLE ▶ UNPACK ──────────────────────────▶ FULLY_CONNECTED

A row has the levels of all weights of one byte, so that one GATHER unpacks any palette, evenly spaced or not. The 256
rows are made by the file itself as well, once for all layers with the same levels; layers of one shape and the same
levels are one variable where they are small, for in a small file operators weigh as much as weights. Scales are float16 where that
moves no weight by more than 2**-11 of itself, and float32 elsewhere.
Only built-in operators are used, those of a runtime from 2021 on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.grids import StoredGrid
from edgekit.backends._litert.layers import linear_layers

if TYPE_CHECKING:
    from edgekit.core.task import Array

_BYTE = 256
_VARIABLE = "w"
_SMALL = 2**15
"""Weights of a layer up to which the operators that fetch it weigh more than a percent or two of it."""
_TOGETHER = 2**19
"""How many weights stand together at most: their floats are in memory several times."""
_HALF = 2.0**-11
"""How far float16 is off at most, as a share of the number, where the number is not too small for it."""
_WORTH_HALVING = 48
"""Numbers from which on half their bytes are more than the DEQUANTIZE that reads them needs."""
_BIAS = (2,)
_HALVED: Mapping[str, tuple[int, ...]] = {
    "ADD": (0, 1),
    "SUB": (0, 1),
    "MUL": (0, 1),
    "FULLY_CONNECTED": _BIAS,
    "CONV_2D": _BIAS,
    "DEPTHWISE_CONV_2D": _BIAS,
}
"""Inputs of operators that may be float16 in the file: biases, position embeddings and factors, but no weights."""
_DEFAULTS = ("MUL", "ADD", "SUB", "MEAN", "FULLY_CONNECTED", "GELU", "GATHER")
"""Operators whose options may be left out where all of them are zero: runtimes start from zeros."""


def pack(model: Any, palettes: Mapping[str, StoredGrid], *, halves: bool = False) -> None:
    """Store the weights of some operators as packed codes, in place.

    They become `scale * level` in float32, with the scale rounded to float16 where that is exact to 2**-11.

    Args:
        model: A model whose operators have these weights as float32 constants.
        palettes: The weights by the name of the operator's result.
        halves: Whether to store as float16 what else is float32.
    """
    if not palettes:
        return
    unpacking = _Unpacking(model, palettes.values())
    for signature in model.signatureDefs:
        _use_variables(model, model.subgraphs[signature.subgraphIndex], palettes, unpacking)
    unpacking.close()
    for signature in model.signatureDefs:
        _keep_axes(model, model.subgraphs[signature.subgraphIndex])
    if halves:
        _halve(model)
    _slim(model)


def _keep_axes(model: Any, subgraph: Any) -> None:
    """Have means keep their axes, where all that follows from them is given these axes back, as in a layer norm."""
    names = flatbuffer.builtin_names()
    kinds = [flatbuffer.operator_name(model, operator, names) for operator in subgraph.operators]
    users: dict[int, list[int]] = {}
    for place, operator in enumerate(subgraph.operators):
        for index in map(int, operator.inputs):
            users.setdefault(index, []).append(place)
    thin, shapes = _thin(model, subgraph, kinds)
    known = {int(index) for index in subgraph.outputs}
    wide: dict[int, int] = {}
    for place, operator in enumerate(subgraph.operators):
        source = int(operator.inputs[0]) if len(operator.inputs) else -1
        if kinds[place] == "RESHAPE" and source in thin:
            wide[int(operator.outputs[0])] = source
    lost = {
        root
        for index, root in thin.items()
        for place in users.get(index, [])
        if int(subgraph.operators[place].outputs[0]) not in thin
        and not (
            int(subgraph.operators[place].outputs[0]) in wide
            and _shape(subgraph, int(subgraph.operators[place].outputs[0])) == shapes[root]
        )
    } | {root for index, root in thin.items() if index in known}
    gone = {result: source for result, source in wide.items() if thin[source] not in lost and result not in known}
    for index, root in thin.items():
        if root not in lost:
            subgraph.tensors[index].shape = list(shapes[root])
    for operator, kind in zip(subgraph.operators, kinds, strict=True):
        if kind == "MEAN" and thin.get(int(operator.outputs[0]), -1) not in {-1} | lost:
            operator.builtinOptions.keepDims = True
        operator.inputs = [gone.get(int(index), int(index)) for index in operator.inputs]
    subgraph.operators = [one for one in subgraph.operators if not gone.keys() & set(map(int, one.outputs))]


def _shape(subgraph: Any, index: int) -> tuple[int, ...]:
    return tuple(map(int, subgraph.tensors[index].shape))


def _thin(model: Any, subgraph: Any, kinds: Sequence[str]) -> tuple[dict[int, int], dict[int, tuple[int, ...]]]:
    """Means without their axes and what is computed of them element by element, each with a root; the roots' full shapes.

    A root is a shape with its missing axes: what has the same one may meet.
    """
    import numpy as np

    roots: dict[tuple[int, ...], int] = {}
    thin: dict[int, int] = {}
    for operator, kind in zip(subgraph.operators, kinds, strict=True):
        inputs = [int(index) for index in operator.inputs]
        if kind == "MEAN" and not operator.builtinOptions.keepDims:
            data = model.buffers[subgraph.tensors[inputs[1]].buffer].data
            if data is not None:
                shape = list(_shape(subgraph, inputs[0]))
                for axis in np.frombuffer(data.tobytes(), np.int32):
                    shape[axis] = 1
                thin[int(operator.outputs[0])] = roots.setdefault(tuple(shape), len(roots))
        elif kind in ("ADD", "SUB", "MUL", "RSQRT"):
            found = {thin[index] for index in inputs if index in thin}
            alike = all(index in thin or np.prod(_shape(subgraph, index)) == 1 for index in inputs)
            if len(found) == 1 and alike:
                thin[int(operator.outputs[0])] = found.pop()
    return thin, {root: shape for shape, root in roots.items()}


def _halve(model: Any) -> None:
    """Store what else is float32 in the signatures as float16, in place; the runtime widens it once, when it loads.

    Biases, position embeddings and factors, where they are many and lose no more than 2**-11 of the largest. An
    operator whose own weights are float32 constants is left alone: somebody wants it exact.
    """
    mains = {int(signature.subgraphIndex) for signature in model.signatureDefs}
    for place in sorted(mains):
        _halve_in(model, model.subgraphs[place])


def _halve_in(model: Any, subgraph: Any) -> None:
    graph = flatbuffer.Graph(model, subgraph)
    uses = list(_halved_inputs(model, graph))
    alone = {
        index
        for operator, place in uses
        if not _is_unpacked(model, graph, operator)
        for index in [int(operator.inputs[place])]
    }
    together: dict[tuple[int, ...], list[int]] = {}
    for index in dict.fromkeys(int(operator.inputs[place]) for operator, place in uses):
        together.setdefault((index,) if index in alone else (-1, *graph.shape(index)), []).append(index)
    halves: dict[int, int] = {}
    for group in together.values():
        halves |= zip(group, _widened_apart(graph, [graph.value(index) for index in group]), strict=True)
    for operator, place in uses:
        inputs = [int(index) for index in operator.inputs]
        inputs[place] = halves[inputs[place]]
        operator.inputs = inputs
    subgraph.operators = [*graph.operators, *subgraph.operators]


def _halved_inputs(model: Any, graph: flatbuffer.Graph) -> Iterator[tuple[Any, int]]:
    """Operators with the places of their inputs that may be float16."""
    names = flatbuffer.builtin_names()
    for operator in graph.subgraph.operators:
        kind = flatbuffer.operator_name(model, operator, names)
        exact = _HALVED.get(kind) == _BIAS and _is_constant_float(graph, int(operator.inputs[1]))
        for place in () if exact else _HALVED.get(kind, ()):
            index = int(operator.inputs[place]) if place < len(operator.inputs) else -1
            if index >= 0 and _may_be_half(graph, index):
                yield operator, place


def _is_unpacked(model: Any, graph: flatbuffer.Graph, operator: Any) -> bool:
    """Whether an operator has no weights in the file. To those that have, a delegate wants the bias to be constant."""
    names = flatbuffer.builtin_names()
    if _HALVED.get(flatbuffer.operator_name(model, operator, names)) != _BIAS:
        return True
    makers = [one for one in graph.subgraph.operators if int(operator.inputs[1]) in map(int, one.outputs)]
    return any(flatbuffer.operator_name(model, one, names) in ("READ_VARIABLE", "UNPACK") for one in makers)


def _is_constant_float(graph: flatbuffer.Graph, index: int) -> bool:
    return _is_float(graph, index) and graph.is_constant(index)


def _is_float(graph: flatbuffer.Graph, index: int) -> bool:
    return bool(graph.subgraph.tensors[index].type == flatbuffer.schema().TensorType.FLOAT32)


def _may_be_half(graph: flatbuffer.Graph, index: int) -> bool:
    if not _is_constant_float(graph, index):
        return False
    value = graph.value(index)
    largest = float(abs(value).max(initial=0.0))
    return value.size >= _WORTH_HALVING and _off(value) <= _HALF * largest


def _off(value: Array) -> float:
    """How far the worst number is from its float16; infinite where one is too large."""
    import numpy as np

    if float(np.abs(value).max(initial=0.0)) > float(np.finfo(np.float16).max):
        return math.inf
    return float(np.abs(value - value.astype(np.float16).astype(np.float32)).max(initial=0.0))


def _widened_apart(graph: flatbuffer.Graph, values: Sequence[Array]) -> list[int]:
    """Arrays of one shape as float16 constants that are widened together."""
    import numpy as np

    if len(values) == 1:
        return [_widened(graph, values[0].astype(np.float16))]
    together = _widened(graph, np.stack(values).astype(np.float16))
    return _split(graph, together, len(values))


def _split(graph: flatbuffer.Graph, together: int, count: int) -> list[int]:
    """The parts of a tensor along its first axis."""
    found = [graph.tensor(graph.shape(together)[1:]) for _ in range(count)]
    options = flatbuffer.schema().UnpackOptionsT()
    options.num, options.axis = count, 0
    graph.op("UNPACK", [together], found, options)
    return found


def _widened(graph: flatbuffer.Graph, value: Array) -> int:
    """A float16 constant as the float32 that operators take."""
    found = graph.tensor(value.shape)
    graph.op("DEQUANTIZE", [graph.constant(value)], [found], flatbuffer.schema().DequantizeOptionsT())
    return found


def _use_variables(model: Any, subgraph: Any, palettes: Mapping[str, StoredGrid], unpacking: _Unpacking) -> None:
    places = {place: layer for place, layer in linear_layers(model, subgraph) if layer.result_name in palettes}
    if not places:
        return
    graph = flatbuffer.Graph(model, subgraph)
    options = flatbuffer.schema().CallOnceOptionsT()
    options.initSubgraphIndex = unpacking.index
    graph.op("CALL_ONCE", [], [], options)
    read: dict[str, int] = {}
    for place, operator in enumerate(subgraph.operators):
        if place in places:
            key = _digest(palettes[places[place].result_name])
            if key not in read:
                read |= _read(graph, *unpacking.found(key))
            operator.inputs = [int(operator.inputs[0]), read[key], *map(int, operator.inputs[2:])]
        graph.operators.append(operator)
    subgraph.operators = graph.operators


def _read(graph: flatbuffer.Graph, name: str, group: Mapping[str, StoredGrid]) -> dict[str, int]:
    """Tensors with the weights of a variable's layers, by their digests."""
    shape, options = next(iter(group.values())).codes.shape, flatbuffer.schema().ReadVariableOptionsT()
    read = graph.tensor(shape if len(group) == 1 else (len(group), *shape))
    graph.op("READ_VARIABLE", [_handle(graph, name)], [read], options)
    return dict(zip(group, [read] if len(group) == 1 else _split(graph, read, len(group)), strict=True))


def _slim(model: Any) -> None:
    """Leave out what a small file has more of than of weights: the converter's long names, and empty fields.

    Inputs and outputs keep theirs; a diverging layer is told by its values, and its tensor by its number.
    """
    names = flatbuffer.builtin_names()
    for subgraph in model.subgraphs:
        known = {int(tensor) for tensor in (*subgraph.inputs, *subgraph.outputs)}
        for index, tensor in enumerate(subgraph.tensors):
            if index not in known:
                tensor.name = None
            # A shape says that there is a rank.
            tensor.hasRank = tensor.hasRank and not len(tensor.shape)
            if tensor.quantization is not None and not _has_scale(tensor.quantization):
                tensor.quantization = None
        for operator in subgraph.operators:
            _without_empty_fields(operator)
            _without_default_options(operator, flatbuffer.operator_name(model, operator, names))


def _without_empty_fields(operator: Any) -> None:
    for field in ("intermediates", "mutatingVariableInputs", "customOptions"):
        found = getattr(operator, field)
        if found is not None and len(found) == 0:
            setattr(operator, field, None)


def _without_default_options(operator: Any, kind: str) -> None:
    if operator.builtinOptions is None:
        return
    # Only kernels for 16 bits read this one, which is true by default.
    fields = {name: value for name, value in vars(operator.builtinOptions).items() if name != "potScaleInt16"}
    if not fields or (kind in _DEFAULTS and not any(fields.values())):
        operator.builtinOptions, operator.builtinOptionsType = None, 0


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

    def __init__(self, model: Any, palettes: Collection[StoredGrid]) -> None:
        self._graph = flatbuffer.Graph.new(model, "unpack")
        self._groups = _groups({_digest(grid): grid for grid in palettes})
        self._places: dict[int, int] = {}
        self._rows: dict[tuple[int, tuple[float, ...]], int] = {}

    @property
    def index(self) -> int:
        """Its place among the model's subgraphs."""
        return self._graph.index

    def found(self, key: str) -> tuple[str, Mapping[str, StoredGrid]]:
        """The name of the variable with the weights of that digest, and everything that stands in it, in order."""
        return next((f"{_VARIABLE}{place}", group) for place, group in enumerate(self._groups) if key in group)

    def close(self) -> None:
        """Put the operators into the subgraph."""
        for place, group in enumerate(self._groups):
            handle, value = _handle(self._graph, f"{_VARIABLE}{place}"), self._unpacked(list(group.values()))
            self._graph.op("ASSIGN_VARIABLE", [handle, value], [], flatbuffer.schema().AssignVariableOptionsT())
        self._graph.close([], [])

    def _unpacked(self, grids: Sequence[StoredGrid]) -> int:
        """The weights of layers of one shape and the same levels; with a first axis that counts them, if several."""
        import numpy as np

        first, count = grids[0], len(grids)
        bits, shape, size = _storage_bits(first.bits), first.codes.shape, first.codes.size * count
        packed = packed_codes(np.stack([grid.codes for grid in grids]), bits)
        rows = self._gathered(self._levels(bits, first.levels), self._as_int32(packed))
        if len(packed) * (8 // bits) != size:
            rows = self._first(self._reshaped(rows, (len(packed) * (8 // bits),)), size)
        wide = (count, *_around_channels(first))
        scaled = self._graph.tensor(wide)
        factors = [self._reshaped(rows, wide), self._scales(grids)]
        self._graph.op("MUL", factors, [scaled], flatbuffer.schema().MulOptionsT())
        return self._reshaped(scaled, shape if count == 1 else (count, *shape))

    def _scales(self, grids: Sequence[StoredGrid]) -> int:
        """The scales, (layers, 1, channels, 1), all of them float16 or float32."""
        import numpy as np

        scale = np.stack([np.asarray(grid.scale, np.float32).ravel() for grid in grids])[:, None, :, None]
        if _fits_half(scale):
            return _widened(self._graph, scale.astype(np.float16))
        return self._graph.constant(scale)

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


def _groups(grids: Mapping[str, StoredGrid]) -> list[dict[str, StoredGrid]]:
    """Weights that stand in one variable: of one shape, with the same levels, and scales of the same type.

    Large ones stand alone, for the device copies what stands together once more at every run.
    """
    import numpy as np

    found: dict[tuple[Any, ...], list[dict[str, StoredGrid]]] = {}
    for name, grid in grids.items():
        half = _fits_half(np.asarray(grid.scale, np.float32))
        groups = found.setdefault((grid.bits, grid.levels, grid.codes.shape, grid.axis, grid.scale.shape, half), [])
        if not groups or grid.codes.size > _SMALL or (len(groups[-1]) + 1) * grid.codes.size > _TOGETHER:
            groups.append({})
        groups[-1][name] = grid
    return [group for groups in found.values() for group in groups]


def _around_channels(grid: StoredGrid) -> tuple[int, int, int]:
    """How many weights stand before, in, and after the axis that the scales count."""
    shape = grid.codes.shape
    before = 1 if grid.scale.ndim > 1 else math.prod(shape[: grid.axis])
    return before, grid.scale.size, grid.codes.size // (before * grid.scale.size)


def _fits_half(scale: Array) -> bool:
    """Whether float16 moves no scale by more than 2**-11 of itself."""
    import numpy as np

    half = scale.astype(np.float16) if _off(scale) < math.inf else np.zeros_like(scale)
    off = np.asarray(half, np.float64) - np.asarray(scale, np.float64)
    return bool(np.all(np.abs(off) <= _HALF * np.abs(scale)))


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
