"""Recurrent layers: sequences of (steps, batch, features)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.backends._mil.operators import Args, operator

Function = Callable[[Any], Any]


def _activation(torch: Any, args: Args, name: str, default: str) -> Function:
    kind = args.text(name, default).lower()
    known: dict[str, Function] = {
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "linear": lambda x: x,
        # A recurrent operator has no place for the parameters of a scaled tanh: both are 1.
        "scaled_tanh": torch.tanh,
        "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
        "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    }
    if kind not in known:
        raise args.refuse(f"activation '{kind}'")
    return known[kind]


def _steps(x: Any, backwards: bool) -> list[int]:
    places = list(range(x.shape[0]))
    return places[::-1] if backwards else places


def _sequence(torch: Any, args: Args, states: list[Any]) -> Any:
    """The states of all steps in the order in which they were computed, or the last one.

    Also a layer that runs backwards gives them in that order, as Core ML's own tests have it; only the backward half
    of a bidirectional layer is turned round to the order of the input.
    """
    return torch.stack(states) if args.flag("output_sequence") else states[-1].unsqueeze(0)


class _Lstm:
    """One direction of an LSTM; gates in MIL's order: input, forget, output, cell."""

    def __init__(self, torch: Any, args: Args, suffix: str) -> None:
        self._torch = torch
        self._args = args
        self._into = args.tensor(f"weight_ih{suffix}")
        self._across = args.tensor(f"weight_hh{suffix}")
        self._bias = args.optional(f"bias{suffix}")
        self._peephole = args.optional(f"peephole{suffix}")
        self._gate = _activation(torch, args, "recurrent_activation", "sigmoid")
        self._cell = _activation(torch, args, "cell_activation", "tanh")
        self._out = _activation(torch, args, "activation", "tanh")

    def run(self, x: Any, hidden: Any, cell: Any, backwards: bool) -> tuple[list[Any], Any]:
        linear = self._torch.nn.functional.linear
        projected = linear(x, self._into, self._bias)
        states = []
        for step in _steps(x, backwards):
            gates = projected[step] + linear(hidden, self._across)
            hidden, cell = self._step(gates, cell)
            states.append(hidden)
        return states, cell

    def _step(self, gates: Any, cell: Any) -> tuple[Any, Any]:
        pre_in, pre_forget, pre_out, pre_cell = gates.chunk(4, dim=-1)
        peep = self._peephole.chunk(3) if self._peephole is not None else (0.0, 0.0, 0.0)
        kept = self._gate(pre_forget + peep[1] * cell) * cell
        cell = kept + self._gate(pre_in + peep[0] * cell) * self._cell(pre_cell)
        if self._args.has("clip"):
            limit = self._args.number("clip")
            cell = self._torch.clamp(cell, -limit, limit)
        return self._gate(pre_out + peep[2] * cell) * self._out(cell), cell


@operator("lstm")
def lstm(torch: Any, args: Args) -> Any:
    """An LSTM, forward, backward or both; gives the sequence, the last hidden and the last cell state."""
    x, hidden, cell = args.tensor("x"), args.tensor("initial_h"), args.tensor("initial_c")
    direction = args.text("direction", "forward")
    if direction in ("forward", "reverse"):
        backwards = direction == "reverse"
        states, last = _Lstm(torch, args, "").run(x, hidden, cell, backwards)
        return _sequence(torch, args, states), states[-1], last
    if direction != "bidirectional":
        raise args.refuse(f"direction '{direction}'")
    width = hidden.shape[-1] // 2
    ahead, cell_ahead = _Lstm(torch, args, "").run(x, hidden[:, :width], cell[:, :width], backwards=False)
    back, cell_back = _Lstm(torch, args, "_back").run(x, hidden[:, width:], cell[:, width:], backwards=True)
    both = [_sequence(torch, args, ahead), torch.flip(_sequence(torch, args, back), (0,))]
    last_hidden = torch.cat([ahead[-1], back[-1]], dim=-1)
    return torch.cat(both, dim=-1), last_hidden, torch.cat([cell_ahead, cell_back], dim=-1)


@operator("gru")
def gru(torch: Any, args: Args) -> Any:
    """A GRU; gates in MIL's order: reset, candidate, update. Gives the sequence and the last state.

    Without `reset_after` the reset gate acts on the state before the matrix product, as Core ML's own tests have it;
    with it, on the product and its bias, as torch does.
    """
    x, hidden = args.tensor("x"), args.tensor("initial_h")
    linear = torch.nn.functional.linear
    gate, out = (
        _activation(torch, args, "recurrent_activation", "sigmoid"),
        _activation(torch, args, "activation", "tanh"),
    )
    after, backwards = args.flag("reset_after"), args.text("direction", "forward") == "reverse"
    projected = linear(x, args.tensor("weight_ih"), args.optional("input_bias"))
    reset_w, candidate_w, update_w = args.tensor("weight_hh").chunk(3)
    bias = args.tensor("bias").chunk(3) if args.has("bias") else (0.0, 0.0, 0.0)
    states = []
    for step in _steps(x, backwards):
        pre_reset, pre_candidate, pre_update = projected[step].chunk(3, dim=-1)
        reset = gate(pre_reset + linear(hidden, reset_w) + bias[0])
        update = gate(pre_update + linear(hidden, update_w) + bias[2])
        if after:
            recurrent = reset * (linear(hidden, candidate_w) + bias[1])
        else:
            recurrent = linear(reset * hidden, candidate_w) + bias[1]
        hidden = (1 - update) * out(pre_candidate + recurrent) + update * hidden
        states.append(hidden)
    return _sequence(torch, args, states), states[-1]


@operator("rnn")
def rnn(torch: Any, args: Args) -> Any:
    """A plain recurrent layer; gives the sequence and the last state."""
    x, hidden = args.tensor("x"), args.tensor("initial_h")
    linear = torch.nn.functional.linear
    out, backwards = _activation(torch, args, "activation", "tanh"), args.text("direction", "forward") == "reverse"
    projected = linear(x, args.tensor("weight_ih"), args.optional("bias"))
    states = []
    for step in _steps(x, backwards):
        hidden = out(projected[step] + linear(hidden, args.tensor("weight_hh")))
        states.append(hidden)
    return _sequence(torch, args, states), states[-1]
