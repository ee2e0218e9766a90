"""Pass: Model → Model, one compression or clean-up step."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core.errors import PassError, UnsupportedModelError
from edgekit.core.model import Model
from edgekit.core.program import TorchProgram
from edgekit.core.progress import Progress, Silent
from edgekit.core.registry import Registry
from edgekit.core.task import Task


@dataclass(frozen=True)
class PassContext:
    """What a pass may use beside the model and the task.

    Attributes:
        work: A folder for what it wants to keep between runs (a teacher's logits, training checkpoints).
        seed: Seed of every random choice.
        progress: Where it tells what it does.
    """

    work: Path
    seed: int = 0
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class PassResult:
    """What a pass made.

    Attributes:
        model: The new model; the one passed in is untouched.
        modified: Whether anything changed. A pass that changed nothing says so here, and is reported so.
        notes: What it found and did, for people.
        structure: What it changed in the module tree, as plain data that `replay` understands.
    """

    model: Model
    modified: bool
    notes: tuple[str, ...] = ()
    structure: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NoOptions:
    """A pass that has no options."""


class Pass(abc.ABC):
    """One step on a model.

    Args:
        options: An instance of the class's `Options`.
    """

    summary: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    """Dataclass of what a recipe may give it."""
    after: ClassVar[tuple[str, ...]] = ()
    """Passes that must not come later than this one."""
    before: ClassVar[tuple[str, ...]] = ()
    """Passes that must not come earlier than this one."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def name(self) -> str:
        """The name that a recipe calls it by: its module's stem."""
        return type(self).__module__.rpartition(".")[2]

    def requires(self, model: Model) -> None:
        """Refuse, before any work, a model that this pass cannot take.

        Raises:
            UnsupportedModelError: It cannot; the message says why.
        """
        if not isinstance(model.program, TorchProgram):
            raise UnsupportedModelError(
                f"The pass '{self.name}' needs a live torch module; {model.source} gives a"
                f" {model.program.format} program.",
                "Point `source` at the factory that builds the module: model.py:build",
            )

    @property
    def trains(self) -> bool:
        """Whether, with these options, it needs a task to train with. Known before any pass runs."""
        return False

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """Files of the person's own that decide what it does, beside the task's and the model's."""
        return ()

    @abc.abstractmethod
    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """Do the step on a copy of the model."""

    @abc.abstractmethod
    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """Give a fresh module from the factory the structure that `apply` made; weights are loaded afterwards.

        Args:
            module: The `nn.Module`; may be changed in place.
            structure: What `apply` left in `PassResult.structure`.

        Returns:
            The module with that structure.
        """

    def ensures(self, before: Model, after: Model) -> None:
        """Check what must hold after the pass; by default that the interface is unchanged.

        Raises:
            PassError: It does not hold.
        """
        for kind in ("inputs", "outputs"):
            was = [(spec.shape, spec.dtype) for spec in getattr(before, kind)]
            now = [(spec.shape, spec.dtype) for spec in getattr(after, kind)]
            if was != now:
                raise PassError(f"The pass '{self.name}' changed the model's {kind} from {was} to {now}.")


registry: Registry[Pass] = Registry("pass", "edgekit.passes", Pass)  # type: ignore[type-abstract]
