"""One step of an RNN, GRU or LSTM with everything ONNX allows: peepholes, clipping, any activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.frontends._onnx_import.call import Call
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import F, Value, torch

Activation = Callable[[Value], Value]
Cell = Callable[[Value, Value, Value], tuple[Value, Value]]
"""Input, hidden state and cell state of a step; the new states."""

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_WITH_ALPHA = {
    "leakyrelu": 0.01,
    "elu": 1.0,
    "thresholdedrelu": 1.0,
    "hardsigmoid": 0.2,
    "affine": 1.0,
    "scaledtanh": 1.0,
}
_WITH_BETA = {"hardsigmoid": 0.5, "affine": 0.0, "scaledtanh": 1.0}


def _activation(name: str, alpha: float, beta: float) -> Activation:
    known: dict[str, Activation] = {
        "affine": lambda x: x * alpha + beta,
        "elu": lambda x: F.elu(x, alpha),
        "hardsigmoid": lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0),
        "leakyrelu": lambda x: F.leaky_relu(x, alpha),
        "relu": torch.relu,
        "scaledtanh": lambda x: torch.tanh(x * beta) * alpha,
        "sigmoid": torch.sigmoid,
        "softplus": F.softplus,
        "softsign": F.softsign,
        "tanh": torch.tanh,
        "thresholdedrelu": lambda x: F.threshold(x, alpha, 0.0),
    }
    if name not in known:
        raise Refused(f"it has an unknown activation '{name}'")
    return known[name]


def _activations(call: Call, direction: int) -> list[Activation]:
    defaults = _DEFAULTS[call.op_type]
    names = [n.decode() if isinstance(n, bytes) else n for n in call.attr("activations", defaults * 2)]
    alphas, betas = list(call.attr("activation_alpha", [])), list(call.attr("activation_beta", []))
    result = []
    for position, name in enumerate(names):
        key = name.lower()
        # The lists of parameters hold one entry for each activation that has one, in order.
        alpha = (alphas.pop(0) if alphas else _WITH_ALPHA[key]) if key in _WITH_ALPHA else 0.0
        beta = (betas.pop(0) if betas else _WITH_BETA[key]) if key in _WITH_BETA else 0.0
        if position // len(defaults) == direction:
            result.append(_activation(key, alpha, beta))
    return result


def make_cell(call: Call, weights: Any, direction: int) -> Cell:
    """The step function of one direction.

    Args:
        call: The node.
        weights: That direction's `Weights`.
        direction: 0, or 1 for the second of two.
    """
    functions = _activations(call, direction)
    limit = call.attr("clip", 0.0)

    def clipped(x: Value) -> Value:
        return torch.clamp(x, -limit, limit) if limit else x

    def affine(x: Value, weight: Value, bias: Value) -> Value:
        y = torch.matmul(x, weight.t())
        return y if bias is None else y + bias

    def rnn(x: Value, hidden: Value, memory: Value) -> tuple[Value, Value]:
        total = affine(x, weights.inputs, weights.input_bias) + affine(hidden, weights.hidden, weights.hidden_bias)
        new = functions[0](clipped(total))
        return new, memory

    def gru(x: Value, hidden: Value, memory: Value) -> tuple[Value, Value]:
        size = hidden.shape[-1]
        gate, last = functions
        update_x, reset_x, new_x = torch.split(affine(x, weights.inputs, weights.input_bias), size, -1)
        bias = weights.hidden_bias
        first_two = affine(hidden, weights.hidden[: 2 * size], None if bias is None else bias[: 2 * size])
        update_h, reset_h = torch.split(first_two, size, -1)
        update, reset = gate(clipped(update_x + update_h)), gate(clipped(reset_x + reset_h))
        tail, tail_bias = weights.hidden[2 * size :], None if bias is None else bias[2 * size :]
        if call.attr("linear_before_reset", 0):
            recurrent = reset * affine(hidden, tail, tail_bias)
        else:
            recurrent = affine(reset * hidden, tail, tail_bias)
        candidate = last(clipped(new_x + recurrent))
        new = (1.0 - update) * candidate + update * hidden
        return new, memory

    def lstm(x: Value, hidden: Value, memory: Value) -> tuple[Value, Value]:
        size = hidden.shape[-1]
        gate, cell_in, cell_out = functions
        total = affine(x, weights.inputs, weights.input_bias) + affine(hidden, weights.hidden, weights.hidden_bias)
        in_, out, forget, candidate = torch.split(total, size, -1)
        peep = None if weights.peepholes is None else torch.split(weights.peepholes, size, -1)
        if peep is not None:
            in_, forget = in_ + peep[0] * memory, forget + peep[2] * memory
        in_ = gate(clipped(in_))
        forget = 1.0 - in_ if call.attr("input_forget", 0) else gate(clipped(forget))
        new_memory = forget * memory + in_ * cell_in(clipped(candidate))
        if peep is not None:
            out = out + peep[1] * new_memory
        return gate(clipped(out)) * cell_out(new_memory), new_memory

    return {"RNN": rnn, "GRU": gru, "LSTM": lstm}[call.op_type]
