"""Recurrent layers as loops in a `.tflite` file: WHILE operators over a body of a few steps.

LiteRT has a sequence operator of its own for the LSTM alone, and that keeps its state in variable tensors from one
inference to the next until the program resets them. A loop starts from the state that it is given, each time, and it
is faster. One thread, CPU time in ms of the median of interleaved rounds, one sequence (I features, H units, T steps):

    LSTM 64, 128, 50    loop 0.30   operator 0.45   unrolled 0.49   ONNX Runtime 0.19
    GRU  64, 128, 50    loop 0.25   –               unrolled 0.29   ONNX Runtime 0.17
    LSTM 16, 32, 50     loop 0.06   operator 0.08
    LSTM 64, 128, 200   loop 1.10   operator 1.73
    LSTM 64, 128, 800   loop 4.71   operator 6.90
    LSTM 64, 64, 2000   loop 5.40   operator 6.88

A loop copies what it carries at each turn, the whole sequence among it, so a plain one takes quadratic time (18 ms for
the 800 steps). The body therefore does `_STEPS` steps at a turn, and a long sequence is cut into chunks, each run by a
loop of its own:

    while chunk < N:                     carries (T, …), N times
        while i < C / _STEPS:            carries (C, …)
            _STEPS steps
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekit.backends._litert.flatbuffer import Graph, schema, text
from edgekit.backends._litert.recurrent import GATES, PLACEHOLDER

_STEPS = 8
_LONG = 256
"""Steps from which on two nested loops are faster than one."""


@dataclass(frozen=True)
class _Cell:
    """A recurrent layer's step, as tensors of one subgraph.

    Attributes:
        kind: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        reverse: Whether it goes from the last step to the first.
        batch: Sequences side by side.
        weight: (gates · H, P).
        bias: (gates · H).
        projection: (P, H), for an LSTM whose output is projected.
        collect: Whether anybody reads the outputs of all steps.
    """

    kind: str
    reverse: bool
    batch: int
    weight: int
    bias: int
    projection: int | None
    collect: bool

    @property
    def constants(self) -> list[int]:
        return [tensor for tensor in (self.weight, self.bias, self.projection) if tensor is not None]

    def moved(self, constants: Sequence[int]) -> _Cell:
        """The same cell with its constants as another subgraph numbers them."""
        weight, bias, *rest = constants
        return replace(self, weight=weight, bias=bias, projection=rest[0] if rest else None)


def insert_loops(model: Any) -> int:
    """Put a loop in the place of each placeholder of the model; how many there were."""
    count = 0
    for subgraph in list(model.subgraphs):
        kept = []
        for operator in subgraph.operators:
            if not _is_placeholder(operator):
                kept.append(operator)
                continue
            graph = Graph(model, subgraph)
            _replace(graph, operator, [_is_read(subgraph, tensor) for tensor in operator.outputs])
            kept += graph.operators
            count += 1
        subgraph.operators = kept
    return count


def _is_placeholder(operator: Any) -> bool:
    name = getattr(operator.builtinOptions2, "callTargetName", None)
    return name is not None and text(name) == PLACEHOLDER


def _is_read(subgraph: Any, tensor: int) -> bool:
    return tensor in list(subgraph.outputs) or any(tensor in list(other.inputs) for other in subgraph.operators)


def _replace(graph: Graph, operator: Any, read: Sequence[bool]) -> None:
    kind, way = text(operator.builtinOptions2.backendConfig).split()
    x, h, c, weight, bias, *rest = (int(tensor) for tensor in operator.inputs)
    steps, batch, width = graph.shape(x)
    cell = _Cell(kind, way == "reverse", batch, weight, bias, rest[0] if rest else None, read[0])
    state = [h, c] if kind == "lstm" else [h]
    rows = graph.reshape(x, (steps * batch, width))
    outputs, state = _sequence(graph, cell, rows, state, steps)
    # A GRU has no second state: that output of the placeholder is never read.
    for tensor, into, wanted in zip((outputs, *state), operator.outputs, read, strict=False):
        if wanted and tensor is not None:
            graph.reshape(tensor, graph.shape(into), into)


def _sequence(graph: Graph, cell: _Cell, rows: int, state: list[int], steps: int) -> tuple[int | None, list[int]]:
    """The steps over `rows` (steps · B, gates · H), from `state` on: outputs (steps · B, P) and the state after them."""
    if steps <= _STEPS:
        return _unrolled(graph, cell, rows, state, steps)
    chunk = _chunk(steps)
    whole = steps // chunk * chunk
    if whole == steps:
        return _loop(graph, cell, rows, state, steps, chunk)
    # The steps that fill no chunk are the last to be done: at the end of the rows, or in reverse at their beginning.
    rest = steps - whole
    first, second = (rest, whole) if cell.reverse else (whole, rest)
    parts = {
        "head": (_rows(graph, rows, 0, first * cell.batch), first),
        "tail": (_rows(graph, rows, first * cell.batch, second * cell.batch), second),
    }
    outputs = {}
    for name in ("tail", "head") if cell.reverse else ("head", "tail"):
        part, length = parts[name]
        outputs[name], state = _sequence(graph, cell, part, state, length)
    return _joined(graph, [outputs["head"], outputs["tail"]]), state


def _chunk(steps: int) -> int:
    """How many steps one turn of a loop over `steps` does; one that leaves no rest where there is one."""
    if steps < _LONG:
        return next((size for size in range(_STEPS, _STEPS // 2, -1) if steps % size == 0), _STEPS)
    best = _STEPS * round(math.sqrt(steps / _STEPS))
    even = [size for size in range(best // 2, best * 2) if steps % size == 0]
    return min(even, key=lambda size: (size % _chunk(size) != 0, abs(size - best)), default=best)


def _loop(
    graph: Graph, cell: _Cell, rows: int, state: list[int], steps: int, chunk: int
) -> tuple[int | None, list[int]]:
    import numpy as np

    turns, each = steps // chunk, chunk * cell.batch
    width = graph.shape(rows)[-1]
    features = graph.shape(state[0])[-1]
    carried_weights = [tensor for tensor in cell.constants if not graph.is_constant(tensor)]
    start = graph.constant(np.array([turns - 1 if cell.reverse else 0], np.int32))
    initial = [start, *state, graph.reshape(rows, (turns, each, width)), *carried_weights]
    if cell.collect:
        initial.append(graph.zeros((turns, each, features)))

    shapes = [graph.shape(tensor) for tensor in initial]
    condition = _condition(graph.model, shapes, turns, cell.reverse)
    body = _body(graph, cell, shapes, len(state), chunk)
    options = schema().WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = condition, body
    results = [graph.tensor(shape, "int32" if place == 0 else "float32") for place, shape in enumerate(shapes)]
    graph.op("WHILE", initial, results, options)
    outputs = graph.reshape(results[-1], (steps * cell.batch, features)) if cell.collect else None
    return outputs, results[1 : 1 + len(state)]


def _carried(graph: Graph, shapes: Sequence[Sequence[int]]) -> list[int]:
    return [graph.tensor(shape, "int32" if place == 0 else "float32") for place, shape in enumerate(shapes)]


def _condition(model: Any, shapes: Sequence[Sequence[int]], turns: int, reverse: bool) -> int:
    import numpy as np

    graph = Graph.new(model, "edgekit_more")
    inputs = _carried(graph, shapes)
    more = graph.tensor((1,), "bool")
    name, options = ("GREATER_EQUAL", schema().GreaterEqualOptionsT()) if reverse else ("LESS", schema().LessOptionsT())
    limit = graph.constant(np.array([0 if reverse else turns], np.int32))
    graph.op(name, [inputs[0], limit], [more], options)
    graph.close(inputs, [more])
    return graph.index


def _body(outer: Graph, cell: _Cell, shapes: Sequence[Sequence[int]], states: int, chunk: int) -> int:
    import numpy as np

    tflite = schema()
    graph = Graph.new(outer.model, "edgekit_steps")
    inputs = _carried(graph, shapes)
    turn, state, sequence, rest = inputs[0], inputs[1 : 1 + states], inputs[1 + states], inputs[2 + states :]
    weights = iter(rest)
    inner = cell.moved(
        [
            graph.share(outer.subgraph.tensors[tensor]) if outer.is_constant(tensor) else next(weights)
            for tensor in cell.constants
        ]
    )
    _, each, width = graph.shape(sequence)
    picked = graph.tensor((1, each, width))
    graph.op("GATHER", [sequence, turn], [picked], tflite.GatherOptionsT())
    outputs, state = _sequence(graph, inner, graph.reshape(picked, (each, width)), state, chunk)
    step = graph.constant(np.array([-1 if cell.reverse else 1], np.int32))
    following = graph.tensor((1,), "int32")
    graph.op("ADD", [turn, step], [following], tflite.AddOptionsT())
    results = [following, *state, sequence, *rest]
    if outputs is not None:
        results[-1] = _written(graph, rest[-1], outputs, turn)
    graph.close(inputs, results)
    return graph.index


def _written(graph: Graph, collected: int, outputs: int, turn: int) -> int:
    """`collected` (turns, rows, P) with `outputs` (rows, P) at its place `turn`."""
    import numpy as np

    tflite = schema()
    shape = graph.shape(collected)
    update = graph.reshape(outputs, (1, *shape[1:]))
    place, zeros = graph.tensor((3,), "int32"), graph.constant(np.zeros(2, np.int32))
    graph.op("CONCATENATION", [turn, zeros], [place], tflite.ConcatenationOptionsT())
    updated = graph.tensor(shape)
    graph.op("DYNAMIC_UPDATE_SLICE", [collected, update, place], [updated])
    return updated


def _unrolled(graph: Graph, cell: _Cell, rows: int, state: list[int], steps: int) -> tuple[int | None, list[int]]:
    outputs: list[int | None] = [None] * steps
    for step in range(steps)[:: -1 if cell.reverse else 1]:
        x = rows if steps == 1 else _rows(graph, rows, step * cell.batch, cell.batch)
        state = _step(graph, cell, x, state)
        outputs[step] = state[0]
    return _joined(graph, outputs) if cell.collect else None, state


def _joined(graph: Graph, parts: Sequence[int | None]) -> int | None:
    present = [part for part in parts if part is not None]
    if len(present) <= 1:
        return present[0] if present else None
    options = schema().ConcatenationOptionsT()
    options.axis = 0
    height = sum(graph.shape(part)[0] for part in present)
    joined = graph.tensor((height, graph.shape(present[0])[1]))
    graph.op("CONCATENATION", present, [joined], options)
    return joined


def _rows(graph: Graph, tensor: int, start: int, count: int) -> int:
    import numpy as np

    width = graph.shape(tensor)[1]
    begin = graph.constant(np.array([start, 0], np.int32))
    size = graph.constant(np.array([count, width], np.int32))
    part = graph.tensor((count, width))
    graph.op("SLICE", [tensor, begin, size], [part], schema().SliceOptionsT())
    return part


# --- one step -------------------------------------------------------------------------------------------------------


def _step(graph: Graph, cell: _Cell, x: int, state: list[int]) -> list[int]:
    """The state after one step; `x` (B, gates · H) is the input's projection."""
    maths = _Maths(graph)
    across = maths.dense(state[0], cell.weight, cell.bias)
    if cell.kind == "gru":
        return [_gru(maths, x, across, state[0])]
    total = maths.add(x, across)
    if cell.kind == "lstm":
        h, c = _lstm(maths, total, state[1])
        return [h if cell.projection is None else maths.dense(h, cell.projection, None), c]
    return [maths.unary("TANH" if cell.kind == "rnn_tanh" else "RELU", total)]


def _lstm(maths: _Maths, total: int, c: int) -> tuple[int, int]:
    keep, forget, new, out = maths.split(total, GATES["lstm"])
    kept = maths.multiply(maths.unary("LOGISTIC", forget), c)
    added = maths.multiply(maths.unary("LOGISTIC", keep), maths.unary("TANH", new))
    c = maths.add(kept, added)
    return maths.multiply(maths.unary("LOGISTIC", out), maths.unary("TANH", c)), c


def _gru(maths: _Maths, x: int, across: int, h: int) -> int:
    x_reset, x_update, x_new = maths.split(x, GATES["gru"])
    h_reset, h_update, h_new = maths.split(across, GATES["gru"])
    reset = maths.unary("LOGISTIC", maths.add(x_reset, h_reset))
    update = maths.unary("LOGISTIC", maths.add(x_update, h_update))
    new = maths.unary("TANH", maths.add(x_new, maths.multiply(reset, h_new)))
    return maths.add(new, maths.multiply(update, maths.subtract(h, new)))


class _Maths:
    """Operators on tensors of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def dense(self, x: int, weight: int, bias: int | None) -> int:
        graph = self._graph
        y = graph.tensor((graph.shape(x)[0], graph.shape(weight)[0]))
        graph.op("FULLY_CONNECTED", [x, weight, bias], [y], schema().FullyConnectedOptionsT())
        return y

    def add(self, left: int, right: int) -> int:
        return self._binary("ADD", left, right, schema().AddOptionsT())

    def subtract(self, left: int, right: int) -> int:
        return self._binary("SUB", left, right, schema().SubOptionsT())

    def multiply(self, left: int, right: int) -> int:
        return self._binary("MUL", left, right, schema().MulOptionsT())

    def unary(self, name: str, x: int) -> int:
        return self._like(name, [x], None)

    def _binary(self, name: str, left: int, right: int, options: Any) -> int:
        return self._like(name, [left, right], options)

    def _like(self, name: str, inputs: list[int], options: Any) -> int:
        y = self._graph.tensor(self._graph.shape(inputs[0]))
        self._graph.op(name, inputs, [y], options)
        return y

    def split(self, x: int, parts: int) -> list[int]:
        import numpy as np

        graph = self._graph
        height, width = graph.shape(x)
        options = schema().SplitOptionsT()
        options.numSplits = parts
        pieces = [graph.tensor((height, width // parts)) for _ in range(parts)]
        graph.op("SPLIT", [graph.constant(np.array(1, np.int32)), x], pieces, options)
        return pieces
