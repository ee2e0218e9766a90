"""Optimizers and learning rates."""

from __future__ import annotations

import math
from typing import Any

from edgekit.core.errors import PassError
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA
from edgekit.passes._training.hooks import Hooks
from edgekit.passes._training.options import Schedule, Training

_CYCLE_RISE = 0.3
"""Share of the steps in which one cycle rises, and its first and last learning rate as shares of the largest: those
of Smith and Topin, "Super-Convergence", 2018, as torch's OneCycleLR has them."""
_CYCLE_START = 1 / 25
_CYCLE_END = 1e-4 / 25


def optimizer_of(module: Any, training: Training, hooks: Hooks) -> Any:
    """The optimizer of a module.

    Raises:
        PassError: The module has no parameter that may change.
    """
    torch = require("torch", TORCH_EXTRA, "training")
    groups = hooks.groups(module, training.weight_decay)
    if not groups:
        raise PassError("The model has no weights to train: none of its parameters has requires_grad.")
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=training.learning_rate)


def set_learning_rate(optimizer: Any, training: Training, at: float) -> None:
    """Set each group's learning rate for the point `at`, in epochs from the start of training."""
    rate = training.learning_rate * factor(training.schedule, at, training.epochs, training.warmup)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def factor(schedule: Schedule, at: float, epochs: float, warmup: float) -> float:
    """The learning rate at a point of a schedule, as a share of the largest.

    A pure function of the point: a resumed run has no schedule to restore.

    Args:
        schedule: Which.
        at: Epochs from the start of training.
        epochs: All of them.
        warmup: Epochs in which it rises from zero.
    """
    if at < warmup:
        return at / warmup
    done = min((at - warmup) / (epochs - warmup), 1.0)
    if schedule == "cosine":
        return _cosine(1.0, 0.0, done)
    if schedule == "linear":
        return 1.0 - done
    if schedule == "one_cycle":
        if done < _CYCLE_RISE:
            return _cosine(_CYCLE_START, 1.0, done / _CYCLE_RISE)
        return _cosine(1.0, _CYCLE_END, (done - _CYCLE_RISE) / (1 - _CYCLE_RISE))
    return 1.0


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def clip(optimizer: Any, norm: float) -> None:
    """Shorten the gradient to a norm, over all groups that are clipped together."""
    torch = require("torch", TORCH_EXTRA, "training")
    clipped = [p for group in optimizer.param_groups if group.get("clip", True) for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(clipped, norm)
