"""Which layers of a model can have an adapter, which were chosen, and why the others cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.core.attention import without_fast_path
from edgekit.core.errors import ConfigError
from edgekit.core.layer_paths import fits, fits_any, no_layer
from edgekit.core.program import TorchProgram
from edgekit.passes._graph import tied_parameters
from edgekit.passes._lora.library import torch_

ROOT = "(the model itself)"
"""What a model that is one layer is called."""


@dataclass(frozen=True)
class Layers:
    """The layers of a model.

    Attributes:
        adaptable: The largest rank that makes sense, by module path.
        linear: Those of them that are linear layers: what is adapted where nothing is named.
        refused: Why a layer cannot be adapted, by module path.
    """

    adaptable: Mapping[str, int]
    linear: tuple[str, ...]
    refused: Mapping[str, str]


def layers_of(program: TorchProgram) -> Layers:
    """Look at each module that has weights of its own."""
    module = program.module
    called = _called(program)
    tied = tied_parameters(module)
    adaptable, linear, refused = {}, [], {}
    for path, layer in module.named_modules():
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        if not own:
            continue
        name = path or ROOT
        if (reason := _unfit(layer)) is not None:
            refused[name] = reason
        elif any(f"{path}.{parameter}".lstrip(".") in tied for parameter in own):
            refused[name] = "it shares its weights with another layer, which merging would change too"
        elif path not in called:
            refused[name] = "the model's forward does not call it: it reads its weights in another way, or not at all"
        else:
            adaptable[name] = largest_rank(layer)
            linear += [name] if isinstance(layer, torch_().nn.Linear) else []
    return Layers(adaptable, tuple(linear), refused)


def largest_rank(layer: Any) -> int:
    """The rank of a layer's weight as a matrix, at most: beyond it an adapter is larger than what it adapts."""
    rows = int(layer.weight.shape[0])
    return min(rows, math.prod(int(size) for size in layer.weight.shape[1:]))


def chosen(layers: Layers, targets: Sequence[str], skip: Sequence[str], rank: int) -> tuple[list[str], list[str]]:
    """The layers to adapt, and notes on those that were named but stay as they are.

    Raises:
        ConfigError: A pattern fits no layer, or only such that cannot be adapted, a layer is smaller than the rank,
            or none is left.
    """
    for option, patterns in (("targets", targets), ("skip", skip)):
        for pattern in patterns:
            _check(layers, option, pattern)
    wanted = [
        path
        for path in (layers.adaptable if targets else layers.linear)
        if (not targets or fits_any(path, targets)) and not fits_any(path, skip)
    ]
    small = [path for path in wanted if layers.adaptable[path] < rank]
    if targets and small:
        raise ConfigError(
            f"lora: r is {rank}, but the weight of '{small[0]}' has at most the rank {layers.adaptable[small[0]]}.",
            f"Lower r, or leave the layer out: skip: [{', '.join(small)}]",
        )
    found = [path for path in wanted if path not in small]
    if not found:
        raise ConfigError(
            f"lora: there is no layer to adapt: {'`skip` names all of them' if skip else _none(layers, small, rank)}.",
            'Name layers: targets: ["*.q", "*.v"]',
        )
    notes = [f"'{path}' stays: it has at most the rank {layers.adaptable[path]}" for path in small]
    named = [path for path in layers.refused if targets and fits_any(path, targets) and not fits_any(path, skip)]
    return found, notes + [f"'{path}' stays: {layers.refused[path]}" for path in named]


def _none(layers: Layers, small: Sequence[str], rank: int) -> str:
    if small:
        return f"r is {rank}, and every linear layer is smaller, as '{small[0]}' of {layers.adaptable[small[0]]}"
    return "the model has no linear layer that could have an adapter"


def _check(layers: Layers, option: str, pattern: str) -> None:
    if any(fits(path, pattern) for path in layers.adaptable):
        return
    refused = [path for path in layers.refused if fits(path, pattern)]
    if not refused:
        raise no_layer(f"lora: {option}: '{pattern}' fits no layer", pattern, list(layers.adaptable))
    if option == "targets":
        raise ConfigError(
            f"lora: targets: '{pattern}' fits '{refused[0]}', which cannot be adapted: {layers.refused[refused[0]]}.",
            f"Layers that can: {', '.join(list(layers.adaptable)[:12]) or 'none'}.",
        )


def _unfit(layer: Any) -> str | None:
    """Why a layer of this kind cannot have an adapter; None where it can."""
    nn = torch_().nn
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    # Exactly these: a class of its own may do more, and attention reads its layers' weights past their forward.
    if type(layer) not in kinds:
        return (
            f"it is a {type(layer).__name__}; adapters are for torch's own {', '.join(kind.__name__ for kind in kinds)}"
        )
    if type(layer) in {nn.Linear, nn.Embedding}:
        renormalizing = type(layer) is nn.Embedding and layer.max_norm is not None
        return "it shortens its vectors while it runs (max_norm)" if renormalizing else None
    if layer.groups > 1:
        return f"it is a convolution of {layer.groups} groups, whose adapter cannot be merged"
    # peft 0.21 leaves both out of the adapter, which then computes something that is no convolution of the layer's.
    if any(step != 1 for step in layer.dilation) or layer.padding_mode != "zeros":
        return "it is a convolution with dilation, or that pads with other than zeros"
    return None


def _called(program: TorchProgram) -> set[str]:
    """The paths of the modules whose forward is called for the example inputs."""
    found: set[str] = set()
    handles = []
    for path, module in program.module.named_modules():

        def note(*_: Any, path: str = path) -> None:
            found.add(path)

        handles.append(module.register_forward_pre_hook(note))
    try:
        with without_fast_path():
            program.run(program.example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
