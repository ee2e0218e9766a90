"""The user's data and metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

from edgekit.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Batch = Mapping[str, Array]
    """Arrays by input (or output) name; the first axis of each counts the examples of the batch."""
else:
    Array = Any
    Batch = Mapping[str, Any]

Split = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "validation", "test")
Direction = Literal["larger", "smaller"]


@runtime_checkable
class Task(Protocol):
    """What a model is for: its data and how good its outputs are.

    `calibration` sets ranges, `validation` makes every decision, `test` is only ever reported, and `train` is for
    passes that train. A split that the task does not have yields nothing.

    Attributes:
        metric: The name of the metric that decides, one of the keys that `score` returns.
        direction: Whether a larger or a smaller value of it is better.
    """

    metric: str
    direction: Direction

    def examples(self, split: Split) -> Iterable[Batch]:
        """The inputs of a split, in batches, in the same order each time it is called."""

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """Metrics of the outputs for all batches of `examples(split)`, in that order."""


@runtime_checkable
class TrainableTask(Task, Protocol):
    """A task whose model can be trained further by passes."""

    def batches(self, split: Split) -> Iterable[tuple[Batch, Any]]:
        """Inputs and whatever `loss` needs beside the outputs."""

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """A scalar torch tensor to minimise."""


def joined(outputs: Sequence[Batch], name: str) -> Array:
    """One output of all batches, joined along the first axis: what most metrics start from."""
    import numpy as np

    return np.concatenate([np.asarray(batch[name]) for batch in outputs], axis=0)


def trainable(task: Task | None, who: str) -> TrainableTask:
    """The task as one that a model can be trained with.

    Raises:
        ConfigError: There is none, or it lacks what training needs.
    """
    hint = "Give the task batches(split), which yields (inputs, whatever the loss needs), and loss(outputs, batch)."
    if task is None:
        raise ConfigError(
            f"{who} trains the model, but there is no task to train it for.", f"task: task.py:NAME. {hint}"
        )
    lacking = [part for part in ("batches", "loss") if not callable(getattr(task, part, None))]
    if lacking:
        raise ConfigError(
            f"{who} trains the model, but the task '{type(task).__name__}' lacks: {', '.join(lacking)}.", hint
        )
    return cast("TrainableTask", task)
