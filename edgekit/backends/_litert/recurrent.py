"""torch's LSTM, GRU and RNN kept whole on their way through litert-torch, which would unroll them step by step.

The layers of the exported program are rewritten before the conversion: what does not depend on the step before (the
input's projection, both directions' concatenation) becomes ordinary torch, which the converter turns into one matrix
product for the whole sequence; the recurrence itself becomes one opaque operator for each layer and direction. It
arrives in the file as a placeholder, in whose place `loops` then puts a loop.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from edgekit.backends._litert.rewriting import replace_calls
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

PLACEHOLDER = "edgekit.recurrence"
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_EXTRA = "litert-convert"
_WHY = "the backend litert"
_SCHEMA = (
    "recurrence(Tensor x, Tensor h, Tensor c, Tensor weight, Tensor bias, Tensor? projection, str kind, bool reverse)"
    " -> (Tensor, Tensor, Tensor)"
)


def keep_whole(module: Any) -> int:
    """Rewrite the recurrent layers of an exported program's module, in place; how many there were."""
    torch = require("torch", _EXTRA, _WHY)
    aten = torch.ops.aten
    replaced = {aten.lstm.input: _lstm}
    replaced |= {getattr(aten, kind).input: _cell(kind) for kind in ("gru", "rnn_tanh", "rnn_relu")}
    count = replace_calls(module, replaced)
    if count:
        operator()
    return count


@functools.cache
def operator() -> Any:
    """The opaque operator, registered with torch and with litert-torch, once in a process.

    Its tensors: x (T, B, gates · H), the projected input; h (B, P), c (B, H), the state before the first step; weight
    (gates · H, P), bias (gates · H), projection (P, H). Returns y (T, B, P) and the state after the last step.
    """
    torch = require("torch", _EXTRA, _WHY)
    registry = require("litert_torch.backend.lowerings.registry", _EXTRA, _WHY)
    utils = require("litert_torch.backend.lowerings.utils", _EXTRA, _WHY)
    ir = require("litert_converter.mlir.ir", _EXTRA, _WHY)
    stablehlo = require("litert_converter.mlir.dialects.stablehlo", _EXTRA, _WHY)
    library = torch.library.Library("edgekit_litert", "DEF")
    library.define(_SCHEMA)

    def shapes(x: Any, h: Any, c: Any, *_: Any) -> tuple[Any, Any, Any]:
        return x.new_empty((*x.shape[:2], h.shape[-1])), torch.empty_like(h), torch.empty_like(c)

    library.impl("recurrence", shapes, "Meta")
    opaque = torch.ops.edgekit_litert.recurrence.default

    def lower(context: Any, *arguments: Any) -> Any:
        *tensors, kind, reverse = arguments
        return stablehlo.custom_call(
            result=utils.node_meta_to_ir_types(context.node),
            inputs=[tensor for tensor in tensors if tensor is not None],
            call_target_name=ir.StringAttr.get(PLACEHOLDER),
            has_side_effect=ir.BoolAttr.get(False),
            backend_config=ir.StringAttr.get(f"{kind} {'reverse' if reverse else 'forward'}"),
        )

    registry.lower(opaque)(lower)
    torch.library.register_vmap("edgekit_litert::recurrence", _batched)
    # The library's registrations end with the object: it is kept beside the operator for the life of the process.
    opaque.edgekit_library = library
    return opaque


def _batched(
    info: Any,
    places: Sequence[Any],
    x: Any,
    h: Any,
    c: Any,
    weight: Any,
    bias: Any,
    projection: Any,
    kind: str,
    reverse: bool,
) -> tuple[tuple[Any, Any, Any], tuple[int, int, int]]:
    """The operator on several batches at once: they are one larger batch. The weights are the same for all."""
    count = info.batch_size

    def folded(tensor: Any, place: int | None, axis: int) -> Any:
        if place is None:
            tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], count, *tensor.shape[axis:])
        else:
            tensor = tensor.movedim(place, axis)
        return tensor.reshape(*tensor.shape[:axis], -1, *tensor.shape[axis + 2 :])

    def unfolded(tensor: Any, axis: int) -> Any:
        return tensor.reshape(*tensor.shape[:axis], count, -1, *tensor.shape[axis + 1 :])

    if any(place is not None for place in places[3:6]):
        raise UnsupportedModelError(
            f"The weights of a recurrent layer ({kind}) are computed from the model's input: they differ from example to"
            " example.",
            "Leave out `batch_sizes`.",
        )
    y, h_n, c_n = operator()(
        folded(x, places[0], 1),
        folded(h, places[1], 0),
        folded(c, places[2], 0),
        weight,
        bias,
        projection,
        kind,
        reverse,
    )
    return (unfolded(y, 1), unfolded(h_n, 0), unfolded(c_n, 0)), (1, 0, 0)


def _lstm(
    x: Any,
    state: Sequence[Any],
    parameters: Sequence[Any],
    has_biases: bool,
    layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any, Any]:
    """What stands in the place of `aten.lstm.input`."""
    y, h, c = _stack("lstm", x, state[0], state[1], parameters, has_biases, layers, bidirectional, batch_first)
    return y, h, c


def _cell(kind: str) -> Any:
    """What stands in the place of `aten.gru.input`, `aten.rnn_tanh.input` and `aten.rnn_relu.input`."""

    def layer(
        x: Any,
        state: Any,
        parameters: Sequence[Any],
        has_biases: bool,
        layers: int,
        _dropout: float,
        _train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        y, h, _ = _stack(kind, x, state, state, parameters, has_biases, layers, bidirectional, batch_first)
        return y, h

    return layer


def _stack(
    kind: str,
    x: Any,
    h: Any,
    c: Any,
    parameters: Sequence[Any],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any, Any]:
    torch = require("torch", _EXTRA, _WHY)
    if x.dtype != torch.float32:
        raise UnsupportedModelError(
            f"The model has a recurrent layer ({kind}) in {x.dtype}; for LiteRT it must be float32.",
            "Convert the model to float32 first; a quantization scheme is the recipe's business.",
        )
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    if batch_first:
        x = x.transpose(0, 1)
    last_h, last_c = [], []
    for layer in range(layers):
        parts = []
        for direction in range(directions):
            place = layer * directions + direction
            own = parameters[place * each : (place + 1) * each]
            y, h_n, c_n = _direction(kind, x, h[place], c[place], own, has_biases, reverse=direction == 1)
            parts.append(y)
            last_h.append(h_n)
            last_c.append(c_n)
        x = torch.cat(parts, dim=-1) if bidirectional else parts[0]
    y = x.transpose(0, 1) if batch_first else x
    return y, torch.stack(last_h), torch.stack(last_c)


def _direction(
    kind: str, x: Any, h: Any, c: Any, parameters: Sequence[Any], has_biases: bool, *, reverse: bool
) -> tuple[Any, Any, Any]:
    """One direction of one layer: its parameters are w_ih, w_hh, then b_ih and b_hh, then w_hr, where it has them."""
    torch = require("torch", _EXTRA, _WHY)
    weight_in, weight, *rest = parameters
    bias_in, bias = rest[:2] if has_biases else (None, weight.new_zeros(weight.shape[0]))
    projection = rest[2 if has_biases else 0] if len(rest) in (1, 3) else None
    projected = torch.nn.functional.linear(x, weight_in, bias_in)
    y, h_n, c_n = operator()(projected, h, c, weight, bias, projection, kind, reverse)
    return y, h_n, c_n
