"""Train adapters on a frozen model and merge them: the module that comes out is as the one that went in."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.core.attention import without_fast_path
from edgekit.core.errors import PassError
from edgekit.core.program import TorchProgram
from edgekit.core.task import Task
from edgekit.passes._lora.layers import ROOT
from edgekit.passes._lora.library import peft, torch_
from edgekit.passes._training.examples import first_examples
from edgekit.passes._training.loop import Outcome, train
from edgekit.passes._training.options import Training
from edgekit.passes._training.seeds import own_random_numbers, seed_epoch
from edgekit.passes.base import PassContext

if TYPE_CHECKING:
    from edgekit.core.task import Batch

_HELD = "model"
_APART = 1e-4
"""How far a merged model may be from the adapted one, as a share of its largest output: more is no rounding."""


@dataclass(frozen=True)
class Adapter:
    """Size of an adapter.

    Attributes:
        rank: Of its matrices, r.
        alpha: It is scaled by alpha / r.
        dropout: The share of its inputs that is dropped while it trains.
    """

    rank: int
    alpha: float
    dropout: float


@dataclass(frozen=True)
class Trained:
    """What training adapters gave.

    Attributes:
        module: The model with the adapters merged; None where no epoch was better than before.
        outcome: What training did.
        trainable: Parameters that were trained.
        parameters: All of them, the adapters' included.
        apart: How far the merged model is from the adapted one, as a share of its largest output.
    """

    module: Any
    outcome: Outcome
    trainable: int
    parameters: int
    apart: float = 0.0


def train_adapters(
    program: TorchProgram,
    task: Task,
    layers: Sequence[str],
    adapter: Adapter,
    training: Training,
    context: PassContext,
) -> Trained:
    """Put adapters into a copy of a program's module, train them alone, and merge them.

    Args:
        program: The model; it is not changed.
        task: Data, loss and metric.
        layers: Module paths.
        adapter: Their size.
        training: How.
        context: Where checkpoints are kept, the seed, and who is told.

    Raises:
        ConfigError: The task cannot be trained with.
        PassError: Training came apart, or merging did not give what was trained.
    """
    nn = torch_().nn
    # A holder: a model that is a single layer can be replaced in it.
    holder = nn.ModuleDict({_HELD: copy.deepcopy(program.module)})
    with peft() as library, own_random_numbers():
        seed_epoch(context.seed, 0)
        tuner = library.LoraModel(holder, _config(library, layers, adapter), "default")
    adapted = program.with_module(holder[_HELD])
    trainable = _freeze(holder)
    total = sum(parameter.numel() for parameter in holder.parameters())
    with without_fast_path():
        outcome = train(adapted, task, training, context, name="lora")
        if outcome.epochs and outcome.best_epoch == 0:
            return Trained(None, outcome, trainable, total)
        inputs = probe(program, task)
        expected = adapted.run(inputs)
    with peft():
        tuner.merge_and_unload(safe_merge=True)
    module = plain(program.module, holder[_HELD])
    return Trained(module, outcome, trainable, total, checked(program, module, inputs, expected))


def _config(library: Any, layers: Sequence[str], adapter: Adapter) -> Any:
    paths = [_HELD if path == ROOT else f"{_HELD}.{path}" for path in layers]
    return library.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        # As one pattern: names in a list are taken for ends of paths, too.
        target_modules="|".join(map(re.escape, paths)),
        bias="none",
    )


def _freeze(holder: Any) -> int:
    """Let nothing but the adapters change; the number of their parameters."""
    trainable = 0
    for name, parameter in holder.named_parameters():
        parameter.requires_grad = ".lora_" in name
        trainable += parameter.numel() if parameter.requires_grad else 0
    # In training mode they would go on counting, and the base would not be what it was.
    counting = [module for module in holder.modules() if getattr(module, "running_mean", None) is not None]

    def stand_still(*_: Any) -> None:
        for module in counting:
            module.eval()

    holder[_HELD].register_forward_pre_hook(stand_still)
    return trainable


def probe(program: TorchProgram, task: Task | None) -> Batch:
    """Inputs to compare by: the first validation batch; the example inputs where there is none.

    Raises:
        ConfigError: The batch lacks an input of the model, or the person's `examples` raises.
    """
    if task is None:
        return program.example_inputs
    found = first_examples(program, task, "validation", 1)
    return found[0] if found else program.example_inputs


def plain(module: Any, merged: Any) -> Any:
    """A copy of a module with the weights of one that an adapter was merged into: hooks, flags and all as they were."""
    result = copy.deepcopy(module)
    result.load_state_dict(merged.state_dict())
    for parameter in result.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()
    return result.eval()


def checked(program: TorchProgram, module: Any, inputs: Batch, expected: Mapping[str, Any]) -> float:
    """How far a merged module is from the outputs expected of it, as a share of the largest.

    Raises:
        PassError: Further than rounding explains.
    """
    import numpy as np

    worst = 0.0
    for name, now in program.with_module(module).run(inputs).items():
        was = expected[name].astype(np.float64)
        scale = float(np.max(np.abs(was), initial=0.0)) or 1.0
        apart = float(np.max(np.abs(now.astype(np.float64) - was), initial=0.0)) / scale
        if not apart <= _APART:
            raise PassError(
                f"The merged model's output '{name}' is {apart:.2g} of its largest value away from the adapted model's.",
                "A layer may be used in another way than by calling it: leave it out with `skip`.",
            )
        worst = max(worst, apart)
    return worst


__all__ = ["Adapter", "Trained", "checked", "plain", "probe", "train_adapters"]
