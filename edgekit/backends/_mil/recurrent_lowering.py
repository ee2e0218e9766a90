"""Lowering of torch's LSTM and GRU to Core ML's own sequence operators.

coremltools translates an exported program only after torch has unrolled its recurrent layers: thirty operators for
each step, and a conversion that takes minutes. Here the layers are kept whole, one Core ML operator for each layer
(and, for a GRU, each direction). It is the converter's side; the evaluator does not use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

_WHY = "the coreml backend"


@dataclass(frozen=True)
class Direction:
    """The weights of one direction of one layer, as torch has them: (gates · hidden, …)."""

    into: Array
    across: Array
    into_bias: Array | None
    across_bias: Array | None


def directions(parameters: Sequence[Array], layers: int, per_layer: int, biased: bool) -> list[list[Direction]]:
    """The flat list of parameters that torch has, by layer and direction.

    Raises:
        UnsupportedModelError: There are more or fewer of them than the layer has (projections, for one).
    """
    step = 4 if biased else 2
    if len(parameters) != layers * per_layer * step:
        raise UnsupportedModelError(
            f"A recurrent layer has {len(parameters)} parameters where {layers * per_layer * step} are known.",
            "LSTM layers with projections cannot be taken.",
        )
    flat = []
    for start in range(0, len(parameters), step):
        into, across = parameters[start], parameters[start + 1]
        biases = (parameters[start + 2], parameters[start + 3]) if biased else (None, None)
        flat.append(Direction(into, across, *biases))
    return [flat[start : start + per_layer] for start in range(0, len(flat), per_layer)]


def reorder(parameter: Array, order: Sequence[int]) -> Array:
    """A parameter's gates, which lie along the first axis, in another order."""
    import numpy as np

    pieces = np.split(parameter, len(order))
    return np.ascontiguousarray(np.concatenate([pieces[gate] for gate in order]))


# torch: input, forget, cell, output. Core ML: input, forget, output, cell.
_LSTM_ORDER = (0, 1, 3, 2)
# torch: reset, update, new. Core ML: reset, new, update.
_GRU_ORDER = (0, 2, 1)


def register(gru: bool) -> None:
    """Teach coremltools, in this process, to translate LSTM (and, where told, GRU) nodes of an exported program."""
    registry = require("coremltools.converters.mil.frontend.torch.torch_op_registry", "coreml", _WHY)
    registry.register_torch_op(_func=_lstm_input, torch_alias=["lstm.input"], override=True)
    if gru:
        registry.register_torch_op(_func=_gru_input, torch_alias=["gru.input"], override=True)


def _lstm_input(context: Any, node: Any) -> None:
    """`aten.lstm.input`: input, (h, c), parameters, biased, layers, dropout, train, bidirectional, batch first."""
    import numpy as np

    mb = require("coremltools.converters.mil.mil", "coreml", _WHY).Builder
    call = _Call(context, node)
    hidden_state, cell_state = call.states
    x, lasts, cells = call.steps_first(mb), [], []
    for layer, pair in enumerate(call.layers()):
        width = len(pair)
        arguments = {
            "x": x,
            "initial_h": _joined_states(mb, hidden_state, layer, width),
            "initial_c": _joined_states(mb, cell_state, layer, width),
            "direction": "bidirectional" if width == 2 else "forward",
            "output_sequence": True,
        }
        for side, suffix in zip(pair, ("", "_back"), strict=False):
            arguments[f"weight_ih{suffix}"] = reorder(side.into, _LSTM_ORDER)
            arguments[f"weight_hh{suffix}"] = reorder(side.across, _LSTM_ORDER)
            if side.into_bias is not None and side.across_bias is not None:
                arguments[f"bias{suffix}"] = reorder(np.add(side.into_bias, side.across_bias), _LSTM_ORDER)
        x, last, cell = mb.lstm(**arguments)
        lasts += _split_states(mb, last, width)
        cells += _split_states(mb, cell, width)
    context.add((call.back(mb, x), _stacked(mb, lasts), _stacked(mb, cells)), torch_name=node.name)


def _gru_input(context: Any, node: Any) -> None:
    """`aten.gru.input`: input, h, parameters, biased, layers, dropout, train, bidirectional, batch first."""
    mb = require("coremltools.converters.mil.mil", "coreml", _WHY).Builder
    call = _Call(context, node)
    x, lasts = call.steps_first(mb), []
    for layer, pair in enumerate(call.layers()):
        found = []
        for place, side in enumerate(pair):
            start = _state(mb, call.states, layer * len(pair) + place)
            sequence, last = _gru_direction(mb, x, start, side, backwards=place == 1)
            lasts.append(mb.expand_dims(x=last, axes=[0]))
            found.append(mb.reverse(x=sequence, axes=[0]) if place == 1 else sequence)
        x = found[0] if len(found) == 1 else mb.concat(values=found, axis=2)
    context.add((call.back(mb, x), _stacked(mb, lasts)), torch_name=node.name)


def _gru_direction(mb: Any, x: Any, start: Any, side: Direction, backwards: bool) -> Any:
    arguments: dict[str, Any] = {
        "x": x,
        "initial_h": start,
        "weight_ih": reorder(side.into, _GRU_ORDER),
        "weight_hh": reorder(side.across, _GRU_ORDER),
        "direction": "reverse" if backwards else "forward",
        "output_sequence": True,
        "reset_after": True,
    }
    if side.into_bias is not None and side.across_bias is not None:
        arguments["input_bias"] = reorder(side.into_bias, _GRU_ORDER)
        arguments["bias"] = reorder(side.across_bias, _GRU_ORDER)
    return mb.gru(**arguments)


class _Call:
    """The arguments of a recurrent node of the exported program."""

    def __init__(self, context: Any, node: Any) -> None:
        helpers = require("coremltools.converters.mil.frontend.torch.ops", "coreml", _WHY)
        given = helpers._get_inputs(context, node, expected=9)
        self._x, self.states, self._parameters = given[:3]
        self._biased, layers, _dropout, _train, both, batch_first = (_plain(item) for item in given[3:])
        self._layers, self._directions, self._batch_first = int(layers), 2 if both else 1, bool(batch_first)

    def layers(self) -> list[list[Direction]]:
        """The weights by layer and direction."""
        arrays = [_array(item) for item in self._parameters]
        return directions(arrays, self._layers, self._directions, bool(self._biased))

    def steps_first(self, mb: Any) -> Any:
        """The input as (steps, batch, features)."""
        return mb.transpose(x=self._x, perm=[1, 0, 2]) if self._batch_first else self._x

    def back(self, mb: Any, sequence: Any) -> Any:
        """The sequence with its axes as torch gives them."""
        return mb.transpose(x=sequence, perm=[1, 0, 2]) if self._batch_first else sequence


def _plain(item: Any) -> Any:
    return getattr(item, "val", item)


def _array(item: Any) -> Array:
    value: Array | None = _plain(item)
    if value is None:
        raise UnsupportedModelError("A recurrent layer has weights that are computed; Core ML wants constants.")
    return value


def _state(mb: Any, states: Any, place: int) -> Any:
    """The (batch, hidden) state at one place of torch's (layers · directions, batch, hidden)."""
    batch, hidden = states.shape[1:]
    piece = mb.slice_by_size(x=states, begin=[place, 0, 0], size=[1, batch, hidden])
    return mb.squeeze(x=piece, axes=[0])


def _joined_states(mb: Any, states: Any, layer: int, width: int) -> Any:
    pieces = [_state(mb, states, layer * width + place) for place in range(width)]
    return pieces[0] if width == 1 else mb.concat(values=pieces, axis=1)


def _split_states(mb: Any, state: Any, width: int) -> list[Any]:
    pieces = [state] if width == 1 else mb.split(x=state, num_splits=width, axis=1)
    return [mb.expand_dims(x=piece, axes=[0]) for piece in pieces]


def _stacked(mb: Any, pieces: list[Any]) -> Any:
    return pieces[0] if len(pieces) == 1 else mb.concat(values=pieces, axis=0)
