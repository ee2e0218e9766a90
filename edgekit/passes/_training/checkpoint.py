"""What a training run leaves on disk after each epoch, so that a killed one goes on.

One file, so that weights and optimizer are always of the same epoch. Read with `weights_only`: tensors and plain
values, no code.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.core.extras import require
from edgekit.core.files import write_atomic
from edgekit.core.program import TORCH_EXTRA, first_line
from edgekit.core.progress import Progress


@dataclass
class State:
    """A training run after an epoch.

    Attributes:
        epoch: Epochs that are finished.
        losses: Mean training loss of each.
        metrics: The validation metric before training and after each epoch; None where there is no such data.
        best_epoch: The epoch whose weights are kept; 0 is before training, -1 none yet.
        best: The module's state after that epoch; empty where it is the last.
        module: The module's state.
        optimizer: The optimizer's state.
    """

    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    metrics: list[float | None] = field(default_factory=list)
    best_epoch: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    @property
    def best_metric(self) -> float | None:
        """The validation metric of the weights that are kept."""
        return self.metrics[self.best_epoch] if self.best_epoch >= 0 else None


def save(state: State, key: str, path: Path) -> None:
    """Write a state whole or not at all.

    Args:
        state: The run.
        key: Identity of the run: a checkpoint of another is never gone on with.
        path: The file.
    """
    torch = require("torch", TORCH_EXTRA, "training")
    buffer = io.BytesIO()
    parts = {part.name: getattr(state, part.name) for part in dataclasses.fields(state)}
    torch.save({"key": key, **parts}, buffer)
    write_atomic(path, buffer.getvalue())


def load(key: str, path: Path, progress: Progress) -> State | None:
    """The state of a run of that key; None where there is none, or only another's, or the file is damaged."""
    torch = require("torch", TORCH_EXTRA, "training")
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found.pop("key") != key:
            progress.note(f"'{path}' is of another training; this one starts anew.")
            return None
        return State(**found)
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch raise anything
        progress.warn(f"'{path}' cannot be read ({first_line(error)}): training starts anew.")
        return None
