"""The person's own training loop."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA
from edgekit.core.task import TrainableTask
from edgekit.core.user_code import blame_user, load_name
from edgekit.passes._training.options import Training


def run_own_loop(module: Any, task: TrainableTask, training: Training, reference: str) -> None:
    """Train a module in place with `FILE.py:NAME`, called with the module, the task and the options as a dict.

    A relative file is looked for beside the task's file, then in the current folder.

    Raises:
        ConfigError: There is no such function, it raises, or returns what is not a module of the same structure.
        PassError: It leaves weights that are not finite.
    """
    torch = require("torch", TORCH_EXTRA, "training")
    loop = _load(reference, task)
    module.train()
    with blame_user(f"the training loop {reference}"):
        # Not to_plain: of what was read from a recipe it leaves out the defaults.
        returned = loop(module, task, dataclasses.asdict(training))
    if returned is not None and returned is not module:
        if not isinstance(returned, torch.nn.Module):
            raise ConfigError(
                f"The training loop {reference} returns a {type(returned).__name__}.",
                "Return the module that it was given, or nothing.",
            )
        try:
            module.load_state_dict(returned.state_dict())
        except RuntimeError as error:
            raise ConfigError(
                f"The training loop {reference} returns a module of another structure than it was given.",
                "Train the module in place; what changes the structure is a pass of its own.",
            ) from error
    module.eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise PassError(f"The training loop {reference} leaves '{name}' with values that are not finite.")


def file_of(reference: str, task: object) -> tuple[Path, str]:
    """The file that a reference names, beside the task's own where it is there, and the name in it.

    Raises:
        ConfigError: The reference is not of the form FILE:NAME.
    """
    file, _, name = reference.rpartition(":")
    if not file or not name:
        raise ConfigError(f"`loop` is '{reference}'; it should name a file and a function.", "loop: train.py:my_loop")
    origin = getattr(sys.modules.get(type(task).__module__), "__file__", None)
    beside = Path(origin).parent / file if origin else Path(file)
    return (beside if beside.is_file() else Path(file)), name


def own_files(training: Training, task: object) -> tuple[Path, ...]:
    """The file of the person's own loop, where they have one and it is there."""
    if training.loop is None:
        return ()
    path, _ = file_of(training.loop, task)
    return (path,) if path.is_file() else ()


def _load(reference: str, task: TrainableTask) -> Any:
    path, name = file_of(reference, task)
    loop = load_name(path, name)
    if not callable(loop):
        raise ConfigError(f"'{name}' in {path.name} cannot be called; `loop` names a function.")
    return loop
