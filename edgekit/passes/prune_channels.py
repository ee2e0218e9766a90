"""Prune channels: take the least important channels, and heads of attention, out of a model that stays an ordinary one.

Channels that only go together - of layers that are added up, joined, or read through depthwise convolutions - are found
by torch-pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023). How dear they are is told by weights, batch
norms, gradients or second derivatives (`_channels.importance` gives each method and its source)::

    before   conv1 (3 → 16) ──▶ batch_norm (16) ──▶ conv2 (16 → 32) ──▶ … ──▶ fc (64 → 10)
    after    conv1 (3 →  8) ──▶ batch_norm  (8) ──▶ conv2  (8 → 16) ──▶ … ──▶ fc (32 → 10)

The outputs of the model and its inputs stay as they are. Each cut is checked by arithmetic: the smaller network has to
compute what the whole one does where nothing reads the removed channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core.errors import PassError
from edgekit.core.model import Model
from edgekit.core.program import TorchProgram
from edgekit.core.task import Task, trainable
from edgekit.passes._channels.cut import rebuild, structure_of
from edgekit.passes._channels.importance import check_task
from edgekit.passes._channels.options import PruneChannelsOptions
from edgekit.passes._channels.run import Run
from edgekit.passes._training.loop import train
from edgekit.passes._training.own_loop import own_files
from edgekit.passes.base import Pass, PassContext, PassResult


class PruneChannels(Pass):
    """Removes channels and heads, and leaves a smaller ordinary module."""

    summary: ClassVar[str] = "remove the least important channels and heads, with training between the steps"
    Options: ClassVar[type[Any]] = PruneChannelsOptions
    before: ClassVar[tuple[str, ...]] = ("learned_rounding", "quantize_aware")

    @property
    def trains(self) -> bool:
        """See `Pass.trains`."""
        return self.options.finetune is not None

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """See `Pass.own_files`: the person's own training loop."""
        return own_files(self.options.finetune, task) if self.options.finetune is not None else ()

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: `layers` or `skip` name no layer, or the task lacks what importance or training need.
            PassError: The ratio would leave nothing of a layer, the model's code counts on all channels of one, or
                training came apart.
        """
        program, options = model.program, self.options
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        check_task(task, options.importance)
        if options.finetune is not None:
            trainable(task, f"The pass '{self.name}'")
        run = Run(program, task, options, context)
        notes: list[str] = []
        waiting = 0
        for step in range(1, options.steps + 1):
            waiting += _epochs_of(step, options)
            changed = run.step(step / options.steps)
            if options.finetune is not None and waiting and run.modified and (changed or step == options.steps):
                # Another program around the module: the one that is trained may export what is old by then.
                training = replace(options.finetune, epochs=waiting)
                trained = program.with_module(run.module)
                outcome = train(trained, task, training, context, name=f"{self.name}.{step}")
                notes += [f"step {step}: {line}" if options.steps > 1 else line for line in outcome.notes()]
                waiting = 0
        if not run.modified:
            return PassResult(model, modified=False, notes=(run.nothing(),))
        result = program.with_module(run.module.eval())
        return PassResult(
            replace(model, program=result, digest=result.digest()),
            modified=True,
            notes=(*run.notes(result), *notes),
            structure=structure_of(program.module, run.module),
        )

    def ensures(self, before: Model, after: Model) -> None:
        """See `Pass.ensures`; the model must not have become larger."""
        super().ensures(before, after)
        was, now = before.program.parameter_count(), after.program.parameter_count()
        if now > was:
            raise PassError(f"The pass '{self.name}' took the model from {was} to {now} parameters.")

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`."""
        return rebuild(module, structure)


def _epochs_of(step: int, options: PruneChannelsOptions) -> int:
    """The training epochs of a step; the last has what is over."""
    if options.finetune is None:
        return 0
    share, over = divmod(options.finetune.epochs, options.steps)
    return share + (over if step == options.steps else 0)


__all__ = ["PruneChannels", "PruneChannelsOptions"]
