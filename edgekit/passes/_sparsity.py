"""Which weights become zero: the patterns in which they do, their saliency, and the share that a schedule asks for.

Patterns run along a layer's input channels, innermost, as runtimes store weights: a linear layer's (out, in), a
convolution's (out, height, width, in).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.core.errors import PassError
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import TrainableTask
from edgekit.core.user_code import blame_user
from edgekit.passes._graph import layers_in
from edgekit.passes._training import examples
from edgekit.passes._training.seeds import own_random_numbers, seed_epoch

Schedule = Literal["polynomial", "constant"]

_PATTERN = re.compile(r"(\d+)([:x])(\d+)")
_BATCHES = 16
"""Batches that curvature is estimated from: enough to tell weights apart, cheap enough for each epoch."""
_FLOOR, _TINY = 1e-6, 1e-20
_EPSILON = 1e-6
"""What a share times a count may be short of a whole number by, for being a float."""


@dataclass(frozen=True)
class Pattern:
    """How zeros lie in a weight.

    Attributes:
        kind: Anywhere, `kept` of each `columns` along the input channels (N:M), or in whole blocks.
        rows: Output channels of a block.
        columns: Input channels of a block, or of a group of N:M.
        kept: Of N:M, N: how many of a group stay.
    """

    kind: Literal["single", "ratio", "block"] = "single"
    rows: int = 1
    columns: int = 1
    kept: int = 0

    @property
    def share(self) -> float | None:
        """The share of zeros that the pattern itself says; None where it leaves that open."""
        return 1 - self.kept / self.columns if self.kind == "ratio" else None


def parse_pattern(text: str | int) -> Pattern:
    """`none`, `2:4` (two of each four stay) or `1x4` (blocks of one output and four input channels).

    Raises:
        ValueError: It is none of them.
    """
    # YAML 1.1 reads an unquoted 2:4 as a number of base 60.
    said = f"{text // 60}:{text % 60}" if isinstance(text, int) else text
    if said == "none":
        return Pattern()
    match = _PATTERN.fullmatch(said)
    if match is None:
        raise ValueError(f"pattern cannot be '{said}'; choices: none, N:M as 2:4, blocks as 1x4")
    first, second = int(match[1]), int(match[3])
    if match[2] == "x":
        if first < 1 or second < 1 or first * second < 2:
            raise ValueError(f"pattern '{said}' has blocks of no more than one weight; write none, or 1x4")
        return Pattern("block", rows=first, columns=second)
    if not 0 < first < second:
        raise ValueError(f"pattern '{said}' keeps {first} of {second}; N:M keeps at least one and not all")
    return Pattern("ratio", columns=second, kept=first)


@dataclass(frozen=True)
class Weight:
    """One parameter that layers multiply by.

    Attributes:
        parameter: Its name in the module; one of them where it has several.
        layers: The paths of the layers that read it: more than one where it is tied.
        axis: Its axis that counts output channels.
        grouped: Whether a layer has its channels in groups.
    """

    parameter: str
    layers: tuple[str, ...]
    axis: int
    grouped: bool

    def misfit(self, shape: Sequence[int], pattern: Pattern) -> str:
        """Why a pattern cannot be laid over it; empty where it can."""
        if pattern.kind == "single":
            return ""
        given, out = shape[1 - self.axis], shape[self.axis]
        if self.grouped and self.axis == 1:
            return "it is a grouped transposed convolution"
        if given % pattern.columns:
            return f"{pattern.columns} does not divide its {given} input channels"
        if out % pattern.rows:
            return f"{pattern.rows} does not divide its {out} output channels"
        return ""


def weights_in(program: TorchProgram) -> tuple[list[Weight], list[str]]:
    """The weights of a program's layers, each once, in calling order, and a note for each that has to stay.

    A weight that several layers share is one. One that something else reads too (an embedding) stays as it is.
    """
    exported = program.exported
    identity = {name: id(held) for name, held in program.module.named_parameters(remove_duplicate=False)}
    readers: dict[int, set[Any]] = {}
    names = exported.graph_signature.inputs_to_parameters
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            readers.setdefault(identity[names[node.name].removeprefix("inner.")], set()).update(node.users)
    by_weight: dict[int, list[Any]] = {}
    for layer in layers_in(program):
        by_weight.setdefault(identity[layer.weight], []).append(layer)
    found, notes = [], []
    for key, layers in by_weight.items():
        # Of a tied weight the graph has one name only.
        paths = tuple(name.removesuffix(".weight") for name, held in identity.items() if held == key)
        if readers[key] - {layer.node for layer in layers}:
            notes.append(f"'{paths[0]}' stays: something that is no layer reads its weight too")
        elif len({layer.axis for layer in layers}) > 1:
            notes.append(f"'{paths[0]}' stays: its layers read its weight along different axes")
        else:
            grouped = any(layer.groups > 1 for layer in layers)
            found.append(Weight(layers[0].weight, paths, layers[0].axis, grouped))
    return found, notes


def units_of(saliency: Any, axis: int, pattern: Pattern) -> Any:
    """The saliency of what becomes zero together: of each weight, or the mean of each block.

    Args:
        saliency: One value a weight, in the weight's shape.
        axis: The weight's axis that counts output channels.
        pattern: How zeros lie.
    """
    inner = saliency.movedim(1 - axis, -1)
    if pattern.kind != "block":
        return inner
    out, given = inner.shape[0], inner.shape[-1]
    blocks = inner.reshape(
        out // pattern.rows, pattern.rows, *inner.shape[1:-1], given // pattern.columns, pattern.columns
    )
    return blocks.mean(dim=(1, -1))


def spread(kept: Any, axis: int, pattern: Pattern) -> Any:
    """A mask in the weight's shape from one of its units, as `units_of` gives them."""
    if pattern.kind == "block":
        kept = kept.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, -1)
    return kept.movedim(-1, 1 - axis).contiguous()


def zeros_for(share: float, units: int) -> int:
    """How many of a number of units become zero."""
    return int(share * units + 0.5)


def keep_by_ratio(units: Any, share: float, pattern: Pattern) -> Any:
    """Of each group of M, those that stay: not less than N."""
    torch = require("torch", TORCH_EXTRA, "pruning")
    size = pattern.columns
    groups = units.reshape(*units.shape[:-1], units.shape[-1] // size, size)
    zeros = min(int(share * size + _EPSILON), size - pattern.kept)
    kept = torch.ones_like(groups, dtype=torch.bool)
    kept.scatter_(-1, groups.topk(zeros, dim=-1, largest=False).indices, value=False)
    return kept.reshape(units.shape)


def keep_by_layer(units: Any, share: float) -> Any:
    """Of one layer, what stays."""
    return _keep(units.flatten(), zeros_for(share, units.numel())).reshape(units.shape)


def keep_globally(units: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Of all layers together, what stays; a layer may lose everything."""
    torch = require("torch", TORCH_EXTRA, "pruning")
    every = torch.cat([values.flatten() for values in units.values()])
    kept = _keep(every, zeros_for(share, every.numel()))
    parts = kept.split([values.numel() for values in units.values()])
    return {name: part.reshape(units[name].shape) for name, part in zip(units, parts, strict=True)}


def _keep(saliency: Any, zeros: int) -> Any:
    torch = require("torch", TORCH_EXTRA, "pruning")
    kept = torch.ones_like(saliency, dtype=torch.bool)
    kept[saliency.topk(zeros, largest=False, sorted=False).indices] = False
    return kept


def share_at(point: float, schedule: Schedule, *, initial: float, final: float, begin: float, end: float) -> float:
    """The share of zeros at a point of training.

    Args:
        point: The share of the training that is done, 0 to 1.
        schedule: At once at `begin`, or rising from `begin` to `end` as Zhu and Gupta have it: steeply first.
        initial: The share that a rising schedule starts from.
        final: The share that it reaches.
        begin: Where it begins, as a share of the training.
        end: Where it ends.
    """
    if point < begin:
        return 0.0
    if schedule == "constant" or point >= end:
        return final
    left = 1 - (point - begin) / (end - begin)
    return final + (initial - final) * left**3


def curvature_of(program: TorchProgram, task: TrainableTask, held: Mapping[str, Any]) -> dict[str, Any]:
    """How the loss bends along each weight: the mean square of the gradient of a batch, the module in evaluation mode.

    That is the diagonal of the empirical Fisher matrix, up to a factor that all weights have in common.

    Args:
        program: The program around the module.
        task: Its batches of the split `train`, and its loss.
        held: The parameters, by name.

    Raises:
        ConfigError: The task yields nothing, or raises.
        PassError: The loss is no number.
    """
    torch = require("torch", TORCH_EXTRA, "pruning")
    frozen = [parameter for parameter in held.values() if not parameter.requires_grad]
    sums = {name: torch.zeros_like(parameter) for name, parameter in held.items()}
    program.flat.eval()
    with own_random_numbers():
        seed_epoch(0, 0)
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            for inputs, extra in itertools.islice(examples.training_batches(program, task), _BATCHES):
                with blame_user("prune_magnitude: the saliency of a batch"):
                    loss = task.loss(examples.named_outputs(program, inputs), (inputs, extra))
                    examples.check_loss(loss, task)
                if not bool(torch.isfinite(loss)):
                    raise PassError(f"prune_magnitude: the loss is {loss.item()}: no saliency can be judged by it.")
                gradients = torch.autograd.grad(loss, list(held.values()), allow_unused=True)
                for name, gradient in zip(held, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += gradient.square()
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
    # Weights that no batch moved are told apart by their size, and from those that are zero already.
    return {name: total + total.mean() * _FLOOR + _TINY for name, total in sums.items()}
