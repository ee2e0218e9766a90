"""RNN, GRU and LSTM: torch's own modules wherever they compute the same, so that runtimes see one sequence operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.frontends._onnx_import.call import Call, is_known
from edgekit.frontends._onnx_import.cells import Cell, make_cell
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import Value, nn, torch
from edgekit.frontends._onnx_import.registry import handles

# ONNX orders an LSTM's gates i, o, f, c and a GRU's z, r, h; torch i, f, g, o and r, z, n.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@dataclass(frozen=True)
class Weights:
    """Weights of one direction, gates in ONNX's order.

    Attributes:
        inputs: (gates · hidden, features).
        hidden: (gates · hidden, hidden).
        input_bias: (gates · hidden), or None.
        hidden_bias: (gates · hidden), or None.
        peepholes: (3 · hidden) in the order i, o, f, or None.
    """

    inputs: Value
    hidden: Value
    input_bias: Value
    hidden_bias: Value
    peepholes: Value


@dataclass(frozen=True)
class Sequence:
    """What a recurrent node works on; the time axis is the first."""

    x: Value
    lengths: Value
    hidden: Value
    cell: Value


@handles("LSTM", "GRU", "RNN", since=7)
def recurrent(
    call: Call,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    hidden: Value = None,
    cell: Value = None,
    peepholes: Value = None,
) -> tuple[Value, ...]:
    """A recurrent layer in one or both directions."""
    batch_first = bool(call.attr("layout", 0))
    if batch_first:
        x, hidden, cell = (None if v is None else torch.transpose(v, 0, 1) for v in (x, hidden, cell))
    steps, batch = x.shape[0], x.shape[1]
    if lengths is not None and is_known(lengths) and bool((lengths == steps).all()):
        lengths = None
    state = (w.shape[0], batch, r.shape[-1])
    zeros = torch.zeros(state, dtype=x.dtype)
    hidden = zeros if hidden is None else hidden
    cell = zeros if cell is None else cell
    weights = [_weights(i, w, r, b, peepholes) for i in range(w.shape[0])]
    sequence = Sequence(x, lengths, hidden, cell)
    if _is_usual(call, weights, lengths):
        results = _by_module(call, sequence, weights)
    else:
        results = _by_steps(call, sequence, weights)
    return _outputs(call, results, batch_first)


def _weights(direction: int, w: Value, r: Value, b: Value, peepholes: Value) -> Weights:
    def part(value: Value) -> Value:
        return None if value is None else torch.select(value, 0, direction)

    bias, size = part(b), r.shape[1]
    return Weights(
        part(w),
        part(r),
        None if bias is None else bias[:size],
        None if bias is None else bias[size:],
        part(peepholes),
    )


def _is_usual(call: Call, weights: list[Weights], lengths: Value) -> bool:
    """Whether torch's module computes the same."""
    activations = call.attr("activations", _USUAL[call.op_type] * len(weights))
    names = [a.decode() if isinstance(a, bytes) else a for a in activations]
    plain = {name.capitalize() for name in names}
    if call.op_type == "RNN":
        usual = len(plain) == 1 and plain <= {"Tanh", "Relu"}
    else:
        usual = [name.capitalize() for name in names] == _USUAL[call.op_type] * len(weights)
    return (
        usual
        and lengths is None
        and not call.attr("clip", 0.0)
        and not call.attr("input_forget", 0)
        and (call.op_type != "GRU" or bool(call.attr("linear_before_reset", 0)))
        and all(w.peepholes is None or bool(is_known(w.peepholes) and not w.peepholes.any()) for w in weights)
        and all(is_known(w.inputs, w.hidden, w.input_bias, w.hidden_bias) for w in weights)
    )


def _by_module(call: Call, sequence: Sequence, weights: list[Weights]) -> tuple[Value, Value, Value]:
    """Through `nn.LSTM`, `nn.GRU` or `nn.RNN`: steps (time, directions, batch, hidden), last hidden, last cell."""
    size, features = weights[0].hidden.shape[-1], weights[0].inputs.shape[-1]
    options: dict[str, Any] = {"bias": weights[0].input_bias is not None, "bidirectional": len(weights) > 1}
    if call.op_type == "RNN":
        first = call.attr("activations", ["Tanh"])[0]
        options["nonlinearity"] = (first.decode() if isinstance(first, bytes) else first).lower()
    module = getattr(nn, call.op_type)(features, size, device="meta", **options)
    for suffix, part in zip(("", "_reverse"), weights, strict=False):
        tensors = {"weight_ih": part.inputs, "weight_hh": part.hidden}
        if part.input_bias is not None:
            tensors |= {"bias_ih": part.input_bias, "bias_hh": part.hidden_bias}
        for name, value in tensors.items():
            setattr(module, f"{name}_l0{suffix}", nn.Parameter(_reordered(value, call.op_type, size)))
    reverse = call.attr("direction", "forward") == "reverse"
    x = torch.flip(sequence.x, [0]) if reverse else sequence.x
    state = (sequence.hidden, sequence.cell) if call.op_type == "LSTM" else sequence.hidden
    zero = is_known(sequence.hidden, sequence.cell) and not bool(sequence.hidden.any() or sequence.cell.any())
    y, last = call.module(module, x) if zero else call.module(module, x, state)
    hidden, cell = last if call.op_type == "LSTM" else (last, None)
    if reverse:
        y = torch.flip(y, [0])
    steps = y.reshape((sequence.x.shape[0], -1, len(weights), size))
    return torch.permute(steps, (0, 2, 1, 3)), hidden, cell


def _reordered(value: Value, kind: str, size: int) -> Value:
    gates = torch.split(value, size, 0)
    return torch.cat([gates[i] for i in _GATES[kind]], 0).contiguous()


def _by_steps(call: Call, sequence: Sequence, weights: list[Weights]) -> tuple[Value, Value, Value]:
    """Step by step, for what torch's modules cannot express."""
    direction = call.attr("direction", "forward")
    ys, hiddens, cells = [], [], []
    for index, part in enumerate(weights):
        backwards = direction == "reverse" or index == 1
        start = torch.select(sequence.hidden, 0, index), torch.select(sequence.cell, 0, index)
        cell = make_cell(call, part, index)
        y, hidden, memory = _unrolled(cell, sequence.x, sequence.lengths, start, backwards)
        ys.append(y)
        hiddens.append(hidden)
        cells.append(memory)
    return torch.stack(ys, 1), torch.stack(hiddens, 0), torch.stack(cells, 0)


def _unrolled(
    cell: Cell, x: Value, lengths: Value, start: tuple[Value, Value], backwards: bool
) -> tuple[Value, Value, Value]:
    hidden, memory = start
    steps = x.shape[0]
    outputs: list[Any] = [None] * steps
    for step in reversed(range(steps)) if backwards else range(steps):
        new_hidden, new_memory = cell(torch.select(x, 0, step), hidden, memory)
        if lengths is None:
            hidden, memory = new_hidden, new_memory
            outputs[step] = hidden
            continue
        # Beyond an item's end its state stays, and its output is zero.
        alive = torch.unsqueeze(lengths > step, -1)
        hidden, memory = torch.where(alive, new_hidden, hidden), torch.where(alive, new_memory, memory)
        outputs[step] = torch.where(alive, new_hidden, torch.zeros_like(new_hidden))
    return torch.stack(outputs, 0), hidden, memory


def _outputs(call: Call, results: tuple[Value, Value, Value], batch_first: bool) -> tuple[Value, ...]:
    y, hidden, cell = results
    if batch_first:
        y = torch.permute(y, (2, 0, 1, 3))
        hidden = torch.transpose(hidden, 0, 1)
        cell = None if cell is None else torch.transpose(cell, 0, 1)
    if call.op_type == "LSTM":
        return y, hidden, cell
    if call.wants(2):
        raise Refused("it asks for a cell state, which only an LSTM has")
    return y, hidden
