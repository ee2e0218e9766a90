"""How dear each unit of a group is.

    magnitude  mean squared weight of all that makes and reads a channel, relative to the group's mean: Li et al.,
               "Pruning Filters for Efficient ConvNets", ICLR 2017, over groups as in DepGraph
    bn_scale   |γ| of its batch norms: Liu et al., "Learning Efficient Convolutional Networks through Network
               Slimming", ICCV 2017
    taylor     what the loss changes to first order without it, squared, mean over batches: Molchanov et al.,
               "Importance Estimation for Neural Network Pruning", CVPR 2019
    hessian    the same to second order, ½ Σ h·w², with the mean squared gradient of single examples for the diagonal
               h: LeCun et al., "Optimal Brain Damage", NIPS 1990

Taylor and Hessian look at the weights that read a channel: without these it is gone, whatever makes it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.program import TorchProgram
from edgekit.core.task import Batch, Task, TrainableTask
from edgekit.core.user_code import blame_user
from edgekit.passes._channels.groups import Group, Slice, torch_
from edgekit.passes._training import examples as task_part

Importance = Literal["magnitude", "taylor", "hessian", "bn_scale"]
NEEDS_LOSS = ("taylor", "hessian")
_SINGLES = 32
"""Examples of a batch that the Hessian looks at."""


def check_task(task: Task | None, importance: Importance) -> None:
    """Refuse a task without a loss where the importance needs one.

    Raises:
        ConfigError: It does.
    """
    lacking = [part for part in ("batches", "loss") if not callable(getattr(task, part, None))]
    if importance in NEEDS_LOSS and lacking:
        what = (
            f"the task '{type(task).__name__}' lacks: {', '.join(lacking)}" if task is not None else "there is no task"
        )
        raise ConfigError(
            f"importance '{importance}' of prune_channels is measured by the task's loss, but {what}.",
            "Give the task batches(split) and loss(outputs, batch), or choose importance: magnitude.",
        )


def scores_of(
    program: TorchProgram, groups: Sequence[Group], importance: Importance, task: Task | None, batches: int
) -> list[Any]:
    """For each group the importance of its units, a tensor (units,); None where it cannot be told.

    Raises:
        ConfigError: The task yields nothing, or raises.
        PassError: The loss is no finite number.
    """
    module = program.module
    weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
    if importance == "magnitude":
        squares = {name: tensor.square() for name, tensor in weights.items()}
        found = [_mean(group, _weighted(group), module, squares) for group in groups]
        return [_by_unit(group, one / one.mean().clamp_min(1e-30)) for group, one in zip(groups, found, strict=True)]
    if importance == "bn_scale":
        sizes = {name: tensor.abs() for name, tensor in weights.items()}
        return [_scale(group, module, sizes) for group in groups]
    assert isinstance(task, TrainableTask)  # noqa: S101 - `check_task` has checked; this tells the type checker
    totals = [torch_().zeros(group.size, dtype=torch_().float64) for group in groups]
    count = 0
    for gradients in _gradients(program, task, batches, singles=importance == "hessian"):
        count += 1
        change = {name: weights[name] * gradient for name, gradient in gradients.items()}
        if importance == "hessian":
            change = {name: value.square() / 2 for name, value in change.items()}
        for number, group in enumerate(groups):
            # Embeddings and norms alone have no reader: then all that the channel consists of.
            readers = [one for one in group.slices if one.role == "in"] or _weighted(group)
            lost = _sum(group, readers, module, change)
            totals[number] += lost.square() if importance == "taylor" else lost
    if not count:
        raise ConfigError(
            f"{type(task).__name__}.batches('train') yields nothing: there is nothing to measure importance by."
        )
    return [_by_unit(group, total / count) for group, total in zip(groups, totals, strict=True)]


def _weighted(group: Group) -> list[Slice]:
    return [one for one in group.slices if one.role != "parameter"]


def _scale(group: Group, module: Any, sizes: Mapping[str, Any]) -> Any:
    kind = torch_().nn.modules.batchnorm._BatchNorm
    norms = [one for one in group.slices if one.role == "norm" and isinstance(module.get_submodule(one.path), kind)]
    norms = [one for one in norms if f"{one.path}.weight" in sizes]
    return _by_unit(group, _mean(group, norms, module, sizes)) if norms else None


def _by_unit(group: Group, channels: Any) -> Any:
    return torch_().stack([channels[list(unit)].mean() for unit in group.units])


def _mean(group: Group, slices: Sequence[Slice], module: Any, values: Mapping[str, Any]) -> Any:
    return _sum(group, slices, module, values) / max(len(slices), 1)


def _sum(group: Group, slices: Sequence[Slice], module: Any, values: Mapping[str, Any]) -> Any:
    """The sum of a value of each weight over a group's channels: a tensor (channels of the group,)."""
    torch = torch_()
    total = torch.zeros(group.size, dtype=torch.float64)
    for one in slices:
        value = values.get(f"{one.path}.weight")
        if value is None:
            continue
        sums = _along(module.get_submodule(one.path), one.role, value)
        if len(sums) > 1:
            total.index_add_(0, torch.tensor(one.roots), sums[list(one.indices)].to(torch.float64))
    return total


def _along(layer: Any, role: str, value: Any) -> Any:
    """Sums over all axes but that of the channels, counted as the layer counts them."""
    transposed = getattr(layer, "transposed", False)
    if role == "in" and not transposed and getattr(layer, "groups", 1) > 1:
        out, given = value.shape[:2]
        return value.reshape(layer.groups, out // layer.groups, given, -1).sum((1, 3)).flatten()
    second = (role == "in") != transposed if role != "norm" else False
    second = second or isinstance(layer, torch_().nn.Embedding)
    first = value.movedim(1, 0) if second else value
    return first.reshape(first.shape[0], -1).sum(1)


def _gradients(program: TorchProgram, task: TrainableTask, batches: int, *, singles: bool) -> Iterator[dict[str, Any]]:
    """The gradient of the loss by each weight, for one batch or example after another, in evaluation mode."""
    module = copy.deepcopy(program.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    traced = program.with_module(module)
    given = itertools.islice(task_part.training_batches(traced, task), batches)
    for batch in given:
        for part in _singles(batch) if singles else [batch]:
            module.zero_grad(set_to_none=True)
            with torch_().enable_grad(), blame_user("prune_channels: the task's loss"):
                loss = task.loss(task_part.named_outputs(traced, part[0]), part)
                task_part.check_loss(loss, task)
                loss.backward()
            if not math.isfinite(float(loss.detach())):
                raise PassError(f"{type(task).__name__}.loss is {float(loss.detach())} before anything is pruned.")
            yield {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def _singles(batch: tuple[Batch, Any]) -> list[tuple[Batch, Any]]:
    """The examples of a batch one by one, where what belongs to the loss can be taken apart; else the batch."""
    inputs, extra = batch
    count = len(next(iter(inputs.values())))
    if not hasattr(extra, "shape") or not extra.shape or len(extra) != count:
        return [batch]
    rows = range(min(count, _SINGLES))
    return [({name: value[row : row + 1] for name, value in inputs.items()}, extra[row : row + 1]) for row in rows]
