"""LSTM and GRU of an exported program as OpenVINO's own sequence operators.

OpenVINO's reader of exported programs lets torch unroll recurrent layers: thirty operators a step. Here the layers are
kept whole and translated to one LSTMSequence or GRUSequence a layer, both directions in one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

EXTRA = "openvino"
WHY = "the backend openvino"
_LSTM, _GRU = "aten.lstm.input", "aten.gru.input"
# torch: input, forget, cell, output. OpenVINO: forget, input, cell, output.
_LSTM_ORDER = (1, 0, 2, 3)
# torch: reset, update, new. OpenVINO: update, reset, new.
_GRU_ORDER = (1, 0, 2)


def has_recurrent(exported: Any) -> bool:
    """Whether an exported program has recurrent layers, and none with projections: those stay unrolled."""
    found = [node for node in exported.graph.nodes if node.op == "call_function" and str(node.target) in (_LSTM, _GRU)]
    return bool(found) and not any(_projected(node) for node in found)


def _projected(node: Any) -> bool:
    _, _, weights, biased, layers, _, _, both, _ = node.args
    return bool(len(weights) != layers * (2 if both else 1) * (4 if biased else 2))


def decoded(exported: Any) -> tuple[Any, list[Any]]:
    """What `openvino.convert_model` takes in the program's place, and the extensions that it needs for it."""
    torch = require("torch", "torch", WHY)
    pytorch = require("openvino.frontend.pytorch", EXTRA, WHY)
    decoder = require("openvino.frontend.pytorch.fx_decoder", EXTRA, WHY)
    kept = require("openvino.frontend.pytorch.torchdynamo.export_decompositions", EXTRA, WHY).ops_to_not_decompose()
    table = torch.export.default_decompositions()
    for op in (*kept, torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        table.pop(op, None)
    module = exported.run_decompositions(table).module()
    _one_output_each(module)
    made: dict[int, Sequence[Any]] = {}
    extensions = [
        pytorch.ConversionExtension(_LSTM, _translator(made, _lstm, states=2)),
        pytorch.ConversionExtension(_GRU, _translator(made, _gru, states=1)),
    ]
    return decoder.TorchFXPythonDecoder(module, dynamic_shapes=False), extensions


def _one_output_each(module: Any) -> None:
    """Turn `getitem(lstm(…), k)` into `lstm(…, k, number)`: a translation gives one output, and never a tuple."""
    found = [node for node in module.graph.nodes if node.op == "call_function" and str(node.target) in (_LSTM, _GRU)]
    for number, node in enumerate(found):
        for user in list(node.users):
            if user.target is not operator.getitem:
                raise UnsupportedModelError(f"The outputs of {node.name} are used as one; OpenVINO wants them apart.")
            place = user.args[1]
            user.target, user.args = node.target, (*node.args, place, number)
        module.graph.erase_node(node)


@dataclass(frozen=True)
class _Layer:
    """One layer: its weights with OpenVINO's order of gates, the directions along the first axis."""

    into: Array
    across: Array
    into_bias: Array
    across_bias: Array
    first: int
    directions: int
    hidden: int

    @property
    def direction(self) -> str:
        return "bidirectional" if self.directions == 2 else "forward"


@dataclass(frozen=True)
class _Flags:
    layers: int
    directions: int
    batch_first: bool


def _translator(made: dict[int, Sequence[Any]], layer_of: Callable[..., Any], states: int) -> Callable[[Any], Any]:
    order = _LSTM_ORDER if states == 2 else _GRU_ORDER

    def translate(context: Any) -> list[Any]:
        place, number = (int(context.get_values_from_const_input(index)) for index in (9, 10))
        if number not in made:
            made[number] = _sequence(context, layer_of, order, states)
        return [made[number][place]]

    return translate


def _sequence(context: Any, layer_of: Callable[..., Any], order: Sequence[int], states: int) -> Sequence[Any]:
    """The outputs of a recurrent node: the sequence, then each of its last states as (layers · directions, batch, hidden)."""
    ops = require("openvino.opset13", EXTRA, WHY)
    biased, layers, _, _, both, batch_first = (context.get_values_from_const_input(index) for index in range(3, 9))
    flags = _Flags(int(layers), 2 if both else 1, bool(batch_first))
    given = context.get_input(1)
    starts = [given] if states == 1 else [given.get_node().input_value(index) for index in range(states)]
    # OpenVINO: (batch, steps, features), and states as (batch, directions, hidden).
    x = context.get_input(0) if flags.batch_first else _swapped(ops, context.get_input(0), (1, 0, 2))
    starts = [_swapped(ops, start, (1, 0, 2)) for start in starts]
    batch, steps = (x.get_partial_shape()[axis].get_length() for axis in (0, 1))
    lengths = ops.constant(_full(batch, steps))
    lasts: list[list[Any]] = [[] for _ in range(states)]
    for layer in _layers(_weights(context), flags, bool(biased), order):
        own = [_slice(ops, start, layer) for start in starts]
        sequence, *ends = layer_of(ops, x, own, lengths, layer)
        for kept, end in zip(lasts, ends, strict=True):
            kept.append(end)
        # (batch, directions, steps, hidden) → (batch, steps, directions · hidden)
        swapped = _swapped(ops, sequence, (0, 2, 1, 3))
        x = ops.reshape(swapped, _shape(batch, steps, layer.directions * layer.hidden), special_zero=False).output(0)
    stacked = [kept[0] if len(kept) == 1 else ops.concat(kept, 1).output(0) for kept in lasts]
    result = x if flags.batch_first else _swapped(ops, x, (1, 0, 2))
    return [result, *(_swapped(ops, state, (1, 0, 2)) for state in stacked)]


def _lstm(ops: Any, x: Any, starts: Sequence[Any], lengths: Any, layer: _Layer) -> Sequence[Any]:
    import numpy as np

    node = ops.lstm_sequence(
        x,
        *starts,
        lengths,
        ops.constant(layer.into),
        ops.constant(layer.across),
        ops.constant(np.add(layer.into_bias, layer.across_bias)),
        layer.hidden,
        layer.direction,
    )
    return list(node.outputs())


def _gru(ops: Any, x: Any, starts: Sequence[Any], lengths: Any, layer: _Layer) -> Sequence[Any]:
    import numpy as np

    gates = (layer.directions, 3, layer.hidden)
    into, across = layer.into_bias.reshape(gates), layer.across_bias.reshape(gates)
    # The new gate keeps its two biases apart: one of them is multiplied by the reset gate.
    bias = np.concatenate([np.add(into[:, :2], across[:, :2]), into[:, 2:], across[:, 2:]], axis=1)
    node = ops.gru_sequence(
        x,
        *starts,
        lengths,
        ops.constant(layer.into),
        ops.constant(layer.across),
        ops.constant(np.ascontiguousarray(bias.reshape(layer.directions, 4 * layer.hidden))),
        layer.hidden,
        layer.direction,
        linear_before_reset=True,
    )
    return list(node.outputs())


def _weights(context: Any) -> list[Array]:
    listed = context.get_input(2).get_node()
    nodes = [listed.input_value(index).get_node() for index in range(listed.get_input_size())]
    if any(node.get_type_name() != "Constant" for node in nodes):
        raise UnsupportedModelError("A recurrent layer has weights that are computed; OpenVINO wants constants here.")
    return [node.get_data() for node in nodes]


def _layers(weights: Sequence[Array], flags: _Flags, biased: bool, order: Sequence[int]) -> Sequence[_Layer]:
    """The flat list of weights that torch has, by layer, with OpenVINO's order of gates."""
    import numpy as np

    step = 4 if biased else 2
    found = []
    for layer in range(flags.layers):
        sides = [weights[place * step : (place + 1) * step] for place in _places(layer, flags.directions)]
        hidden = sides[0][1].shape[1]
        none = np.zeros(len(order) * hidden, sides[0][0].dtype)
        parts = [[side[index] if index < step else none for side in sides] for index in range(4)]
        into, across, into_bias, across_bias = (
            np.stack([_reordered(part, order) for part in column]) for column in parts
        )
        first = layer * flags.directions
        found.append(_Layer(into, across, into_bias, across_bias, first, flags.directions, hidden))
    return found


def _places(layer: int, directions: int) -> range:
    return range(layer * directions, (layer + 1) * directions)


def _reordered(weight: Array, order: Sequence[int]) -> Array:
    import numpy as np

    pieces = np.split(weight, len(order))
    return np.ascontiguousarray(np.concatenate([pieces[gate] for gate in order]))


def _slice(ops: Any, states: Any, layer: _Layer) -> Any:
    """The states of one layer, of all layers' (batch, layers · directions, hidden)."""
    if states.get_partial_shape()[1] == layer.directions:
        return states
    start, stop = _shape(layer.first), _shape(layer.first + layer.directions)
    return ops.slice(states, start, stop, _shape(1), _shape(1)).output(0)


def _swapped(ops: Any, value: Any, axes: Sequence[int]) -> Any:
    return ops.transpose(value, _shape(*axes)).output(0)


def _shape(*sizes: int) -> Any:
    import numpy as np

    return require("openvino.opset13", EXTRA, WHY).constant(np.array(sizes, np.int64))


def _full(count: int, value: int) -> Array:
    import numpy as np

    return np.full(count, value, np.int32)
