"""Keras' LSTM and GRU layers computed by torch's own layers.

Keras' torch backend runs them step by step, which an export unrolls: thirty operators a step. Where a layer computes
what torch's computes, its weights are put into a torch layer, which converters turn into a sequence operator.
"""

from __future__ import annotations

from typing import Any

# Keras: update, reset, new. torch: reset, update, new. The gates of an LSTM have the same order in both.
_GRU_ORDER = (1, 0, 2)


def use_torch_layers(torch: Any, network: Any) -> list[Any]:
    """Let the recurrent layers of a Keras network be computed by torch's.

    Returns:
        The torch layers; the caller's module has to own them.
    """
    return [_replace(torch, layer) for layer in _recurrent(network) if _computes_the_same(layer)]


def drop_replaced(network: Any, layers: Any) -> None:
    """Once the network has run: forget the weights that no longer compute, Keras' own or, where steps are masked, torch's.

    Args:
        network: The Keras network.
        layers: The `ModuleList` of what `use_torch_layers` gave.
    """
    unused = {id(variable.value) for layer in layers if layer.used for variable in layer.instead_of.variables}
    for module in network.modules():
        # Keras keeps the weights of a layer in a dictionary of parameters, and again in those of all that hold it.
        for name in [name for name, value in module._parameters.items() if id(value) in unused]:
            del module[name]
    kept = [layer for layer in layers if layer.used]
    del layers[:]
    layers.extend(kept)


def _recurrent(network: Any) -> list[Any]:
    return [layer for layer in network._flatten_layers() if type(layer).__name__ in ("LSTM", "GRU")]


def _computes_the_same(layer: Any) -> bool:
    cell = layer.cell
    return (
        cell.activation.__name__ == "tanh"
        and cell.recurrent_activation.__name__ == "sigmoid"
        and not (layer.stateful or cell.dropout or cell.recurrent_dropout)
        and (type(layer).__name__ == "LSTM" or cell.reset_after)
        and layer.compute_dtype == "float32"
    )


def _replace(torch: Any, layer: Any) -> Any:
    own = _torch_layer(torch, layer)
    stepwise, lstm = layer.inner_loop, type(layer).__name__ == "LSTM"

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if mask is not None:
            # torch has no steps to skip: Keras' own loop has.
            return stepwise(sequences, initial_state, mask, training=training)
        own.used = True
        states = initial_state if isinstance(initial_state, list | tuple) else [initial_state]
        if layer.go_backwards:
            sequences = torch.flip(sequences, [1])
        given = tuple(state.unsqueeze(0) for state in states)
        outputs, ends = own(sequences, given if lstm else given[0])
        last = [end.squeeze(0) for end in (ends if lstm else (ends,))]
        return last[0], outputs, last

    own.used = False
    # Neither side watches these: the loop is no weight of Keras', and the cell no part of the torch layer.
    object.__setattr__(own, "instead_of", layer.cell)
    object.__setattr__(layer, "inner_loop", inner_loop)
    return own


def _torch_layer(torch: Any, layer: Any) -> Any:
    """A torch layer with a Keras layer's weights: (features, gates · units) becomes (gates · units, features)."""
    cell, lstm = layer.cell, type(layer).__name__ == "LSTM"
    features = int(cell.kernel.shape[0])
    kind = torch.nn.LSTM if lstm else torch.nn.GRU
    own = kind(features, cell.units, bias=bool(cell.use_bias), batch_first=True)

    def gates(tensor: Any) -> Any:
        pieces = list(torch.tensor_split(tensor.detach().clone(), 4 if lstm else 3, dim=0))
        return torch.cat(pieces if lstm else [pieces[gate] for gate in _GRU_ORDER]).contiguous()

    with torch.no_grad():
        own.weight_ih_l0.copy_(gates(cell.kernel.value.T))
        own.weight_hh_l0.copy_(gates(cell.recurrent_kernel.value.T))
        if cell.use_bias and lstm:
            own.bias_ih_l0.copy_(gates(cell.bias.value))
            own.bias_hh_l0.zero_()
        elif cell.use_bias:
            own.bias_ih_l0.copy_(gates(cell.bias.value[0]))
            own.bias_hh_l0.copy_(gates(cell.bias.value[1]))
    return own
