"""How a model is trained: the options that every pass which trains has in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "linear", "one_cycle", "constant"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: How often the training examples are gone through, at most.
        learning_rate: The largest learning rate of the schedule.
        optimizer: AdamW and SGD decay weights by themselves, Adam through the gradient.
        momentum: Of SGD.
        weight_decay: Of weights of two dimensions and more; biases and norms are never decayed.
        schedule: How the learning rate goes on: down to zero as half a cosine or in a line, up and down (one cycle),
            or not at all.
        warmup: Epochs, or a part of one, over which the learning rate rises from zero.
        clip_norm: Largest norm of the gradient; longer ones are shortened. Not limited where None.
        patience: Training stops after this many epochs without a better validation metric. Never where None.
        precision: `bfloat16` computes convolutions and products of matrices in it, forward and backward, and keeps weights,
            losses and scores in float32: two to three times as fast on a processor with such instructions, slower on
            one without.
        loop: The person's own loop as FILE.py:NAME, called with the module, the task and these options as a dict. It
            trains the module in place, or returns it. The other options are then what it makes of them.

    Raises:
        ValueError: An option has a value that cannot be; a recipe's error says the line.
    """

    epochs: int = 5
    learning_rate: float = 1e-3
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = None
    patience: int | None = None
    precision: Precision = "float32"
    loop: str | None = None

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate has to be above 0, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum has to be at least 0 and below 1, not {self.momentum}")
        _at_least("weight_decay", self.weight_decay, 0)
        _at_least("warmup", self.warmup, 0)
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup takes {self.warmup:g} epochs, but epochs is {self.epochs}")
        if self.warmup and self.schedule == "one_cycle":
            raise ValueError("warmup and schedule one_cycle exclude each other: one_cycle rises by itself")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm has to be above 0, not {self.clip_norm}")
        if self.patience is not None:
            _at_least("patience", self.patience, 1)


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ValueError(f"{name} has to be at least {least}, not {value}")
