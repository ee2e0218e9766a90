"""The training loop: seeded, kept after each epoch, stopped early, and gone on with after it was killed.

Every epoch is seeded for itself and the learning rate depends on nothing but the point in the schedule, so that a run
that was killed ends with the same bits as one that was not. A task that keeps random numbers of its own between epochs
breaks that; one with `set_epoch(epoch)`, as torch's samplers have it, is told which epoch comes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core import schema
from edgekit.core.errors import ConfigError, PassError
from edgekit.core.extras import require, versions_of
from edgekit.core.files import sha256_text, write_atomic
from edgekit.core.program import TORCH_EXTRA, TorchProgram, tensors_digest
from edgekit.core.progress import Step
from edgekit.core.task import Task, TrainableTask, trainable
from edgekit.core.user_code import blame_user
from edgekit.passes._training import checkpoint, examples
from edgekit.passes._training.checkpoint import State
from edgekit.passes._training.hooks import Hooks
from edgekit.passes._training.optimizers import clip, optimizer_of, set_learning_rate
from edgekit.passes._training.options import Training
from edgekit.passes._training.own_loop import run_own_loop
from edgekit.passes._training.precision import computing, in_float32, laid_out
from edgekit.passes._training.seeds import own_random_numbers, seed_epoch
from edgekit.passes.base import PassContext


@dataclass(frozen=True)
class Outcome:
    """What training did.

    Attributes:
        epochs: Epochs that were run, those of a run before included; 0 for the person's own loop.
        best_epoch: The epoch whose weights the module has now; 0 where none was better than before training.
        metric: The metric's name.
        before: Its value on the validation split before training; None where there are no such examples.
        after: Its value for the weights that the module has now.
        losses: Mean training loss of each epoch.
        stopped_early: Whether patience ran out.
        resumed_after: The epoch after which an earlier run was gone on with; 0 where none was.
    """

    epochs: int
    best_epoch: int
    metric: str
    before: float | None
    after: float | None
    losses: tuple[float, ...] = ()
    stopped_early: bool = False
    resumed_after: int = 0

    def notes(self) -> tuple[str, ...]:
        """What happened, for people."""
        if not self.epochs:
            return ("trained by the project's own loop",)
        kept = "the weights of before training are kept: no epoch was better" if self.best_epoch == 0 else ""
        kept = kept or (f"the weights of epoch {self.best_epoch} are kept" if self.best_epoch < self.epochs else "")
        lines = [
            f"{self.epochs} epochs, training loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}",
            "stopped early: no better for as many epochs as `patience` says" if self.stopped_early else "",
            kept,
            f"went on after epoch {self.resumed_after} of an earlier run" if self.resumed_after else "",
        ]
        return tuple(line for line in lines if line)


def train(
    program: TorchProgram,
    task: Task | None,
    training: Training,
    context: PassContext,
    hooks: Hooks | None = None,
    name: str = "training",
) -> Outcome:
    """Train a module in place.

    Args:
        program: The program around the module; the module is the caller's own copy. It is left in evaluation mode,
            with the weights of the epoch whose validation metric was best; those of the last where there is none.
        task: The data, the loss and the metric.
        training: How.
        context: Where checkpoints are kept, the seed, and who is told.
        hooks: What the pass adds to the loop.
        name: What this training is called; a pass that trains twice gives two names.

    Raises:
        ConfigError: The task cannot be trained with, yields nothing, or raises.
        PassError: The loss or the weights became infinite or no number.
    """
    hooks = hooks or Hooks()
    able = trainable(task, f"'{name}'")
    with own_random_numbers():
        if training.loop is not None:
            seed_epoch(context.seed, 0)
            hooks.before_epoch(program, training.epochs)
            before = examples.metric_of(program, able)
            run_own_loop(program.module, able, training, training.loop)
            return Outcome(0, 0, able.metric, before, examples.metric_of(program, able))
        with laid_out(program.module, training.precision):
            return _Run(program, able, training, context, hooks, name).finish()


class _Run:
    """One training run and what it works with."""

    def __init__(
        self,
        program: TorchProgram,
        task: TrainableTask,
        training: Training,
        context: PassContext,
        hooks: Hooks,
        name: str,
    ) -> None:
        self.program, self.module = program, program.module
        self.task, self.training, self.context, self.hooks, self.name = task, training, context, hooks, name
        self.optimizer = optimizer_of(self.module, training, hooks)
        self.path = context.work / f"{name}.checkpoint.pt"
        self.key = self._key()
        self.resumed_after = 0

    def finish(self) -> Outcome:
        """Run what is left of the epochs, and give the module its best weights."""
        seed_epoch(self.context.seed, 0)
        steps = examples.count_batches(self.task)
        state = self._begin()
        began, total = time.monotonic(), self.training.epochs
        with self.context.progress.step(self.name, total=steps * total) as step:
            step.advance(steps * state.epoch)
            while state.epoch < total and not self._is_stale(state):
                self._epoch(state, steps, step)
                left = (time.monotonic() - began) / (state.epoch - self.resumed_after) * (total - state.epoch)
                step.say(self._told(state, left))
        stopped = state.epoch < total
        if state.best_epoch >= 0 and state.best:
            self.module.load_state_dict(state.best)
        self.module.eval()
        # Without validation examples the last weights are what is kept.
        best = state.best_epoch if state.best_epoch >= 0 else state.epoch
        metric, losses = self.task.metric, tuple(state.losses)
        return Outcome(
            state.epoch, best, metric, state.metrics[0], state.metrics[best], losses, stopped, self.resumed_after
        )

    def _key(self) -> str:
        parts = {
            # Not to_plain: of what was read from a recipe it leaves out the defaults.
            "training": dataclasses.asdict(self.training),
            "seed": self.context.seed,
            "from": tensors_digest(self.module.state_dict()),
            "torch": versions_of(("torch",)),
        }
        return sha256_text(schema.canonical_json(parts).decode())

    def _begin(self) -> State:
        """The state that an earlier run left, put into module and optimizer; else that before the first epoch."""
        state = checkpoint.load(self.key, self.path, self.context.progress)
        if state is not None:
            self.module.load_state_dict(state.module)
            self.optimizer.load_state_dict(state.optimizer)
            self.resumed_after = state.epoch
            self.context.progress.note(f"{self.name} goes on after epoch {state.epoch} of {self.training.epochs}")
            return state
        state = State()
        self._judge(state)
        if state.metrics[0] is None and self.training.patience is not None:
            raise ConfigError(
                "`patience` watches the validation metric, but the task has no examples in the split 'validation'.",
                "Give the task such examples, or leave patience out.",
            )
        return state

    def _judge(self, state: State) -> None:
        """Score the module as it is, and remember it where it is the best so far."""
        value = examples.metric_of(self.program, self.task)
        state.metrics.append(value)
        if value is None or not self.hooks.counts(state.epoch):
            return
        if state.best_epoch < 0 or examples.is_better(self.task, value, state.best_metric):
            state.best_epoch = state.epoch
            state.best = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def _is_stale(self, state: State) -> bool:
        since = sum(self.hooks.counts(epoch) for epoch in range(state.best_epoch + 1, state.epoch + 1))
        return self.training.patience is not None and since >= self.training.patience

    def _epoch(self, state: State, steps: int, step: Step) -> None:
        epoch = state.epoch + 1
        # Before the epoch changes anything: what a failure in it leaves to the person.
        good = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        seed_epoch(self.context.seed, epoch)
        if callable(told := getattr(self.task, "set_epoch", None)):
            told(epoch)
        self.hooks.before_epoch(self.program, epoch)
        self.program.flat.train()
        losses = []
        for number, batch in enumerate(examples.training_batches(self.program, self.task)):
            set_learning_rate(self.optimizer, self.training, epoch - 1 + min((number + 0.5) / steps, 1.0))
            loss = self._step(batch, f"epoch {epoch}, step {number + 1}")
            if not math.isfinite(loss):
                raise self._diverged(good, epoch, f"the loss is {loss} in epoch {epoch}, step {number + 1}")
            losses.append(loss)
            step.advance(1 if number < steps else 0)
        if not losses:
            raise ConfigError(f"{type(self.task).__name__}.batches('train') yields nothing in epoch {epoch}.")
        if broken := _not_finite(self.module):
            raise self._diverged(good, epoch, f"'{broken}' is no longer finite after epoch {epoch}, step {len(losses)}")
        state.epoch = epoch
        state.losses.append(sum(losses) / len(losses))
        self._judge(state)
        state.module, state.optimizer = self.module.state_dict(), self.optimizer.state_dict()
        checkpoint.save(state, self.key, self.path)

    def _step(self, batch: Any, where: str) -> float:
        with blame_user(f"{self.name}: {where}"):
            with computing(self.training.precision):
                outputs = in_float32(examples.named_outputs(self.program, batch[0]))
            loss = self.hooks.loss(self.task, outputs, batch)
            examples.check_loss(loss, self.task)
            value = float(loss.detach())
            if math.isfinite(value):
                self.optimizer.zero_grad()
                loss.backward()
                if self.training.clip_norm is not None:
                    clip(self.optimizer, self.training.clip_norm)
                self.optimizer.step()
                self.hooks.after_step(self.module)
        return value

    def _diverged(self, good: dict[str, Any], epoch: int, what: str) -> PassError:
        """The error of a training that came apart; the weights of before the epoch go back into the module."""
        self.module.load_state_dict(good)
        self.module.eval()
        path = self.context.work / f"{self.name}.last_good.safetensors"
        _write_weights(good, path)
        return PassError(
            f"{self.name}: {what}. The last good weights, those after epoch {epoch - 1}, are kept in '{path}'.",
            f"Try a lower learning rate (learning_rate: {self.training.learning_rate / 10:.2g}), clip_norm: 1.0, or a"
            " warmup.",
        )

    def _told(self, state: State, left: float) -> str:
        value, best = state.metrics[-1], state.best_metric
        score = "" if value is None else f", {self.task.metric} {value:.4g}"
        score += "" if best is None else f" (best {best:.4g})"
        remaining = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        return f"epoch {state.epoch}/{self.training.epochs}, loss {state.losses[-1]:.4g}{score}, {remaining} left"


def _not_finite(module: Any) -> str | None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return str(name)
    return None


def _write_weights(state: dict[str, Any], path: Path) -> None:
    safetensors = require("safetensors.torch", TORCH_EXTRA, "training")
    write_atomic(path, safetensors.save({name: tensor.contiguous() for name, tensor in state.items()}))
