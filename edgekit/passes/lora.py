"""Low-rank adapters: merge one that exists, or train one on a frozen model and merge it.

Beside a weight that stays as it is, the product of two thin matrices is learned (E. Hu et al., "LoRA: Low-Rank Adaptation
of Large Language Models", 2021)::

    while it trains   y = W x + (alpha / r) · B (A dropout(x))      A: r × in, B: out × r, B = 0 at first
    afterwards        y = (W + (alpha / r) · B A) x

Only A and B are trained: a few percent of the parameters, and no optimizer state for the others. Merged, the model is an
ordinary one of the same structure, which costs on a device what it cost before. Adapters are peft's, on disk and in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core.errors import PassError
from edgekit.core.model import Model
from edgekit.core.program import TorchProgram
from edgekit.core.task import Task, trainable
from edgekit.passes._graph import shortened
from edgekit.passes._lora.adapter import files_of, merge
from edgekit.passes._lora.layers import chosen, layers_of
from edgekit.passes._lora.training import Adapter, Trained, train_adapters
from edgekit.passes._training.options import Training
from edgekit.passes._training.own_loop import own_files
from edgekit.passes.base import Pass, PassContext, PassResult

_SHOWN = 4


@dataclass(frozen=True)
class LoraOptions:
    """An adapter that exists (`adapter`, alone), or the size of one to train (`r`, and what else it needs).

    Attributes:
        adapter: The folder of a peft adapter. It is looked for beside the task's file, then in the current folder.
        r: The rank of the matrices that are trained.
        alpha: They are scaled by alpha / r; r where None.
        dropout: The share of a layer's inputs that its adapter does not see while it trains.
        targets: The layers to adapt, by module path; `*` stands for any part of it. All linear layers where none are
            given; embeddings and convolutions can be named.
        skip: Layers that stay as they are.
        finetune: How the adapters are trained; see `finetune`.

    Raises:
        ValueError: Options that exclude each other or cannot be; a recipe's error says the line.
    """

    adapter: str | None = None
    r: int | None = None
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    finetune: Training | None = None

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if (self.adapter is None) == (self.r is None):
            said = "neither" if self.r is None else "both"
            raise ValueError(f"lora takes `adapter`, a folder to merge, or `r`, a rank to train; it was given {said}")
        if self.adapter is not None:
            others = [name for name in ("alpha", "dropout", "targets", "skip", "finetune") if getattr(self, name)]
            if others:
                raise ValueError(f"{others[0]} says how an adapter is trained; `adapter` names one that is trained")
            return
        if self.r is not None and self.r < 1:
            raise ValueError(f"r has to be at least 1, not {self.r}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha has to be above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout has to be at least 0 and below 1, not {self.dropout}")


class Lora(Pass):
    """Merges a low-rank adapter into the model, or trains one first."""

    summary: ClassVar[str] = "merge a low-rank adapter, or train one on the frozen model and merge it"
    Options: ClassVar[type[Any]] = LoraOptions
    before: ClassVar[tuple[str, ...]] = ("learned_rounding", "prune_magnitude", "quantize_aware")

    @property
    def trains(self) -> bool:
        """See `Pass.trains`."""
        return self.options.adapter is None

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """See `Pass.own_files`: the adapter, or the person's own training loop."""
        options = self.options
        if options.adapter is not None:
            return files_of(options.adapter, task)
        return own_files(options.finetune, task) if options.finetune is not None else ()

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: The adapter is none or not one of this model; or targets that fit nothing, a rank larger than
                a layer, or a task that cannot be trained with.
            PassError: Training came apart, or the merged model does not compute what the adapted one does.
        """
        program = model.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        if self.options.adapter is not None:
            return self._merged(model, program, task)
        options = self.options
        able = trainable(task, f"The pass '{self.name}'")
        layers, notes = chosen(layers_of(program), options.targets, options.skip, options.r)
        adapter = Adapter(options.r, options.alpha or options.r, options.dropout)
        trained = train_adapters(program, able, layers, adapter, options.finetune or Training(), context)
        told = (*_sizes(len(layers), adapter, trained), *shortened(notes, _SHOWN, "stay"), *trained.outcome.notes())
        return _result(model, program, trained.module, told)

    def ensures(self, before: Model, after: Model) -> None:
        """See `Pass.ensures`; the module must have the parameters that it had, by name and shape."""
        super().ensures(before, after)
        was, now = (_shapes(one.program) for one in (before, after))
        if was != now:
            other = min(was.items() ^ now.items())[0]
            raise PassError(f"The pass '{self.name}' left a model of another structure: '{other}' is not what it was.")

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`; a merged adapter changes weights only."""
        return module

    def _merged(self, model: Model, program: TorchProgram, task: Task | None) -> PassResult:
        merged = merge(program, self.options.adapter, task)
        where = f", into '{merged.prefix}'" if merged.prefix else ""
        size = f"of rank {merged.rank} and alpha {merged.alpha:g}"
        notes = (
            f"the adapter '{Path(self.options.adapter).name}' {size} merged into {merged.layers} layers{where}",
            _apart(merged.apart),
        )
        return _result(model, program, merged.module, notes)


def _result(model: Model, program: TorchProgram, module: Any, notes: tuple[str, ...]) -> PassResult:
    if module is None:
        return PassResult(model, modified=False, notes=notes)
    result = program.with_module(module)
    if result.weights_digest() == program.weights_digest():
        return PassResult(model, modified=False, notes=(*notes, "the adapter adds nothing: no weight has changed"))
    return PassResult(replace(model, program=result, digest=result.digest()), modified=True, notes=notes)


def _sizes(layers: int, adapter: Adapter, trained: Trained) -> tuple[str, ...]:
    share = trained.trainable / trained.parameters
    lines = [
        f"{layers} layers adapted with rank {adapter.rank}, alpha {adapter.alpha:g}, dropout {adapter.dropout:g}",
        f"trainable parameters: {trained.trainable:,} of {trained.parameters:,} ({share:.2%})",
    ]
    if trained.module is not None:
        lines.append(_apart(trained.apart))
    return tuple(lines)


def _apart(share: float) -> str:
    return f"merged and adapted outputs differ by {share:.1g} of the largest"


def _shapes(program: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in program.module.state_dict().items()}


__all__ = ["Lora", "LoraOptions"]
