"""Zeros that pruning left, kept while a later pass trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.core.extras import require
from edgekit.core.model import Model, PassRecord
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Batch, TrainableTask
from edgekit.passes._training.hooks import Hooks

PRUNING = "prune_magnitude"
"""The pass whose zeros are kept; its record says which layers it pruned."""


@dataclass(frozen=True)
class Zeros:
    """Weights that were pruned, and where they are zero.

    Attributes:
        masks: True where a weight is zero, by the parameter's name; empty where nothing was pruned.
    """

    masks: Mapping[str, Any]

    def share(self, parameter: str) -> float:
        """The share of a parameter's weights that are zero; 0 where it was not pruned."""
        mask = self.masks.get(parameter)
        return 0.0 if mask is None else float(mask.float().mean())

    def around(self, hooks: Hooks, module: Any) -> Hooks:
        """Hooks that do the same, and put pruned weights back to zero after each step.

        Args:
            hooks: What the pass adds to the loop.
            module: The module that trains; its weights may be parametrized.
        """
        return KeepZeros(hooks, self, module) if self.masks else hooks

    def put(self, module: Any) -> None:
        """Make what was pruned zero again, whatever it has become."""
        with require("torch", TORCH_EXTRA, "training").no_grad():
            for name, held in self.held(module).items():
                held.masked_fill_(self.masks[name], 0.0)

    def held(self, module: Any) -> dict[str, Any]:
        """The parameters that hold the pruned weights, by the names that they had when they were pruned."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        found = {}
        for name in self.masks:
            path, _, last = name.rpartition(".")
            parametrized = f"{path}.parametrizations.{last}.original".lstrip(".")
            found[name] = parameters[name] if name in parameters else parameters[parametrized]
        return found


def zeros_of(model: Model) -> Zeros:
    """What the model's history says was pruned, and is zero now."""
    assert isinstance(model.program, TorchProgram)  # noqa: S101 - passes that train require it; tells the type checker
    parameters = dict(model.program.module.named_parameters(remove_duplicate=False))
    masks = {}
    for name in _names(model.history):
        full = name if name in parameters else f"{name}.weight".lstrip(".")
        if full in parameters and bool((parameters[full] == 0).any()):
            masks[full] = parameters[full].detach() == 0
    return Zeros(masks)


def _names(history: tuple[PassRecord, ...]) -> list[str]:
    records = [record for record in history if record.name == PRUNING and record.kept]
    return list(dict.fromkeys(path for record in records for path in record.structure.get("sparsity", {})))


class KeepZeros(Hooks):
    """Another pass's hooks, and zeros that stay zero.

    Args:
        inner: The other hooks.
        zeros: What is zero.
        module: The module that trains.
    """

    def __init__(self, inner: Hooks, zeros: Zeros, module: Any) -> None:
        self._inner, self._zeros, self._module = inner, zeros, module

    def groups(self, module: Any, weight_decay: float) -> list[dict[str, Any]]:
        """See `Hooks.groups`."""
        return self._inner.groups(module, weight_decay)

    def before_epoch(self, program: TorchProgram, epoch: int) -> None:
        """See `Hooks.before_epoch`."""
        self._inner.before_epoch(program, epoch)

    def after_step(self, module: Any) -> None:
        """See `Hooks.after_step`."""
        self._inner.after_step(module)
        self._zeros.put(self._module)

    def loss(self, task: TrainableTask, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """See `Hooks.loss`."""
        return self._inner.loss(task, outputs, batch)

    def counts(self, epoch: int) -> bool:
        """See `Hooks.counts`."""
        return self._inner.counts(epoch)
