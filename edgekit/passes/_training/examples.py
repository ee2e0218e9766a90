"""The task's part in training: its batches, its loss and its metric, each checked and blamed by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

from edgekit.core.errors import ConfigError
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Batch, Split, Task, TrainableTask
from edgekit.core.user_code import blame_user


def count_batches(task: TrainableTask) -> int:
    """How many batches the training split has; those without a length are gone through once.

    Raises:
        ConfigError: There are none.
    """
    with blame_user(f"{_name(task)}.batches('train')"):
        found = task.batches("train")
        count = len(found) if isinstance(found, Sized) else sum(1 for _ in found)
    if not count:
        raise ConfigError(
            f"{_name(task)}.batches('train') yields nothing: there is nothing to train with.",
            "Yield (inputs, whatever the loss needs) for each batch of the split 'train'.",
        )
    return count


def training_batches(program: TorchProgram, task: TrainableTask) -> Iterator[tuple[Batch, Any]]:
    """The batches of one epoch, checked.

    Raises:
        ConfigError: One is not (inputs, extra), or lacks an input of the model.
    """
    who = f"{_name(task)}.batches('train')"
    with blame_user(who):
        batches = iter(task.batches("train"))
    while True:
        with blame_user(who):
            batch: Any = next(batches, None)
        if batch is None:
            return
        if not isinstance(batch, tuple) or len(batch) != 2 or not isinstance(batch[0], Mapping):
            raise ConfigError(
                f"{who} yields a {type(batch).__name__}; it should yield (dict of inputs, whatever the loss needs)."
            )
        _check_inputs(program, batch[0], who)
        yield batch


def named_outputs(program: TorchProgram, inputs: Batch) -> dict[str, Any]:
    """The tensors that the module answers with, by output name; gradients flow through them.

    Raises:
        ConfigError: The module in training mode has other outputs than in evaluation.
    """
    values = program.flat(*program.tensors(inputs))
    if len(values) != len(program.output_names):
        raise ConfigError(
            f"The module gives {len(values)} outputs while it trains, but {len(program.output_names)} in evaluation"
            f" ({', '.join(program.output_names)}).",
            "Let forward return the same outputs in both modes.",
        )
    return dict(zip(program.output_names, values, strict=True))


def check_loss(loss: Any, task: TrainableTask) -> None:
    """Check that a loss is a scalar tensor that depends on the weights.

    Raises:
        ConfigError: It is not.
    """
    who = f"{_name(task)}.loss"
    if not hasattr(loss, "backward"):
        raise ConfigError(f"{who} gives a {type(loss).__name__}; it should give a scalar torch tensor.")
    if loss.numel() != 1:
        raise ConfigError(f"{who} gives a tensor of the shape {list(loss.shape)}; it should be one number: its mean.")
    if not loss.requires_grad:
        raise ConfigError(
            f"{who} gives a tensor without a gradient: it does not depend on the outputs that it was given.",
            "Compute it from the tensors in `outputs`, without .numpy(), .item() or .detach().",
        )


def metric_of(program: TorchProgram, task: Task, split: Split = "validation") -> float | None:
    """The task's metric of a module as it is, in evaluation mode; None where the split is empty.

    Raises:
        ConfigError: The person's `examples` or `score` raises, or `score` does not give the metric.
    """
    torch = require("torch", TORCH_EXTRA, "training")
    outputs: list[Batch] = []
    program.flat.eval()
    who = f"{_name(task)}.examples('{split}')"
    with torch.no_grad(), blame_user(who):
        for inputs in task.examples(split):
            _check_inputs(program, inputs, who)
            outputs.append({name: value.numpy().copy() for name, value in named_outputs(program, inputs).items()})
    if not outputs:
        return None
    with blame_user(f"{_name(task)}.score(…, '{split}')"):
        scores = task.score(outputs, split)
        if task.metric not in scores:
            raise ConfigError(f"{_name(task)}.score gives {sorted(scores)}, but the metric is '{task.metric}'.")
        return float(scores[task.metric])


def first_examples(program: TorchProgram, task: Task, split: Split, count: int) -> list[Batch]:
    """The first batches of inputs of a split, checked; none where it is empty.

    Raises:
        ConfigError: One lacks an input of the model, or the person's `examples` raises.
    """
    who = f"{_name(task)}.examples('{split}')"
    with blame_user(who):
        found = list(islice(task.examples(split), count))
    for batch in found:
        _check_inputs(program, batch, who)
    return found


def is_better(task: Task, value: float, than: float | None) -> bool:
    """Whether a metric beats another; what is not finite beats nothing."""
    if not math.isfinite(value):
        return False
    if than is None or not math.isfinite(than):
        return True
    return value > than if task.direction == "larger" else value < than


def _check_inputs(program: TorchProgram, inputs: Batch, who: str) -> None:
    missing = [name for name in program.input_names if name not in inputs]
    if missing:
        raise ConfigError(f"{who} lacks the input '{missing[0]}' of the model; it has: {', '.join(inputs)}.")


def _name(task: object) -> str:
    return type(task).__name__
