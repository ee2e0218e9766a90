"""What a pass adds to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.core.program import TorchProgram
from edgekit.core.task import Batch, TrainableTask


class Hooks:
    """Where a pass takes part in the loop. This base adds nothing; a pass overrides what it needs."""

    def groups(self, module: Any, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters in groups, as torch's optimizers take them.

        Beside the optimizer's own keys, a group may have `rate` (factor on the learning rate, 1.0 where it is not
        given) and `clip` (whether `clip_norm` counts and shortens its gradients, true where it is not given).
        """
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": weight_decay},
            {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def before_epoch(self, program: TorchProgram, epoch: int) -> None:
        """Called before each epoch, counted from 1; a resumed run calls it for the epochs still to come only."""

    def after_step(self, module: Any) -> None:
        """Called after each step of the optimizer; a pruned weight is put back to zero here."""

    def loss(self, task: TrainableTask, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """The loss of one batch, a scalar tensor; the task's own unless a teacher has a say in it."""
        return task.loss(outputs, batch)

    def counts(self, epoch: int) -> bool:
        """Whether the weights after that epoch (0: before training) may be what is kept."""
        return True
