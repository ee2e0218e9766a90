"""Train a model further: what pruning, factorization or a change of data cost is learned back.

Weights that `prune_magnitude` has made zero stay zero.

The weights of the epoch that scores best on the validation split are kept; where no epoch beats the model as it came,
nothing is changed and the pass says so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core.model import Model
from edgekit.core.program import TorchProgram
from edgekit.core.task import Task
from edgekit.passes._training.hooks import Hooks
from edgekit.passes._training.loop import train
from edgekit.passes._training.masks import zeros_of
from edgekit.passes._training.options import Training
from edgekit.passes._training.own_loop import own_files
from edgekit.passes.base import Pass, PassContext, PassResult


class Finetune(Pass):
    """Trains the model with the task's batches and loss."""

    summary: ClassVar[str] = "train the model further with the task's batches and loss"
    Options: ClassVar[type[Any]] = Training
    before: ClassVar[tuple[str, ...]] = ("quantize_aware", "learned_rounding")

    @property
    def trains(self) -> bool:
        """See `Pass.trains`."""
        return True

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """See `Pass.own_files`: the person's own training loop."""
        return own_files(self.options, task)

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: The task cannot be trained with.
            PassError: The loss or the weights became infinite or no number.
        """
        program = model.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        trained = program.with_module(copy.deepcopy(program.module))
        zeros = zeros_of(model)
        outcome = train(trained, task, self.options, context, zeros.around(Hooks(), trained.module), name=self.name)
        # The project's own loop knows of no zeros.
        zeros.put(trained.module)
        # Another program around the same module: the one that trained may have exported what is old by now.
        result = program.with_module(trained.module)
        changed = result.weights_digest() != program.weights_digest()
        if not changed:
            return PassResult(model, modified=False, notes=outcome.notes())
        return PassResult(replace(model, program=result, digest=result.digest()), modified=True, notes=outcome.notes())

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`; training changes weights only."""
        return module
