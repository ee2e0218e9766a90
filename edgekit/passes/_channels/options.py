"""Options of the pass prune_channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit.passes._channels.importance import Importance
from edgekit.passes._training.options import Training


@dataclass(frozen=True)
class PruneChannelsOptions:
    """Options of `prune_channels`.

    Attributes:
        ratio: The share of the channels that go; multiplications fall by about the square of it.
        importance: What tells which: `magnitude` needs no data, `bn_scale` batch norms, `taylor` and `hessian` the
            task's loss.
        scope: `local` takes the share from each layer, `global` the least important of all layers.
        steps: In how many steps, with the importance measured anew before each.
        round_to: The channels that stay are a multiple of it, as fast kernels want them; `auto` is the largest of 8,
            4, 2 and 1 with which the multiplications fall as they would without rounding, and less in a layer that it
            would make much wider or narrower than asked for.
        max_ratio: No layer loses more than this share.
        layers: Layers to prune, by module path; `*` stands for any part of it, a module's path for all within it. All
            where none are given.
        skip: Layers whose outputs stay.
        heads: The share of the heads of attention that go; for attention whose projections are linear layers of its
            own.
        examples: Batches that `taylor` and `hessian` look at.
        finetune: Training after each step, its epochs shared between the steps; see `finetune`. None where it does
            not train.

    Raises:
        ValueError: An option has a value that cannot be; a recipe's error says the line.
    """

    ratio: float = 0.5
    importance: Importance = "magnitude"
    scope: Literal["local", "global"] = "local"
    steps: int = 1
    round_to: Literal["auto"] | int = "auto"
    max_ratio: float = 0.9
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    heads: float = 0.0
    examples: int = 8
    finetune: Training | None = None

    def __post_init__(self) -> None:
        if not 0 < self.max_ratio < 1:
            raise ValueError(f"max_ratio has to be above 0 and below 1, not {self.max_ratio}")
        for name in ("ratio", "heads"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is a share: at least 0 and below 1, not {value}")
            if value > self.max_ratio:
                raise ValueError(f"{name} is {value}, but max_ratio lets no layer lose more than {self.max_ratio}")
        if not self.ratio and not self.heads:
            raise ValueError("ratio and heads are both 0: nothing would be pruned")
        if isinstance(self.round_to, str) and self.round_to != "auto":
            raise ValueError(f"round_to is `auto` or a number, not '{self.round_to}'")
        for name in ("steps", "examples", "round_to"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"{name} has to be at least 1, not {value}")
        training = self.finetune
        if training is not None and training.epochs < self.steps:
            raise ValueError(f"steps is {self.steps}, which takes finetune: {{epochs: {self.steps}}} or more")
        if training is not None and training.warmup >= training.epochs // self.steps:
            raise ValueError(f"warmup takes {training.warmup:g} epochs, but a step has {training.epochs // self.steps}")
