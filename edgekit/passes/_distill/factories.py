"""Students and teachers that a factory of the person's builds: `student.py:build`."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit.core.errors import ConfigError
from edgekit.core.extras import require
from edgekit.core.files import sha256_file, sha256_text
from edgekit.core.program import TORCH_EXTRA
from edgekit.core.user_code import blame_user, fresh_modules, load_name
from edgekit.passes._training.seeds import own_random_numbers, seed_epoch

Role = Literal["student", "teacher"]


@dataclass(frozen=True)
class Factory:
    """A function that builds a module.

    Attributes:
        role: What it builds; the name of the option that names it.
        reference: As the person wrote it.
        arguments: Keyword arguments that it is called with.
    """

    role: Role
    reference: str
    arguments: Mapping[str, float]

    @property
    def file(self) -> str:
        """The file, as it was written."""
        return self.reference.rpartition(":")[0]

    @property
    def name(self) -> str:
        """The function's name in the file."""
        return self.reference.rpartition(":")[2]

    def path(self, task: object | None) -> Path | None:
        """Where the file is: beside the task's, else in the current folder; None where it is in neither."""
        origin = getattr(sys.modules.get(type(task).__module__), "__file__", None)
        folders = [Path(origin).parent] if origin and task is not None else []
        return next((found for folder in (*folders, Path()) if (found := folder / self.file).is_file()), None)

    def found(self, task: object | None) -> Path:
        """As `path`.

        Raises:
            ConfigError: It is in neither.
        """
        path = self.path(task)
        if path is None:
            raise ConfigError(
                f"distill: {self.role}: there is no file '{self.file}', neither beside the task's file nor in"
                f" '{Path.cwd()}'.",
                f"{self.role}: {self.role}.py:build, a function that returns an nn.Module.",
            )
        return path

    def replayed(self, digest: str) -> Path:
        """Where the file is that had a digest: in the current folder, or beside what was imported (source and task).

        Raises:
            ConfigError: It is gone, or has changed.
        """
        candidates = [folder / self.file for folder in (Path(), *map(Path, sys.path))]
        there = [path for path in candidates if path.is_file()]
        for path in there:
            if digest_of(path) == digest:
                return path
        what = f"has changed since: '{there[0]}'" if there else "is not there any more"
        raise ConfigError(
            f"The {self.role} of this checkpoint was built by {self.reference}, which {what}.",
            "edgekit compress distils anew.",
        )

    def build(self, path: Path, seed: int) -> Any:
        """The module that the function returns, alone or as (module, example_inputs); random weights by the seed.

        Raises:
            ConfigError: There is no such function, it raises, lacks an argument, or returns something else.
        """
        nn = require("torch", TORCH_EXTRA, "distillation").nn
        with own_random_numbers(), fresh_modules():
            seed_epoch(seed, 0)
            function = load_name(path, self.name)
            if not callable(function):
                raise ConfigError(f"'{self.name}' in {path.name} cannot be called; `{self.role}` names a function.")
            self._check_arguments(function)
            with blame_user(f"calling {self.reference}()"):
                made = function(**self.arguments)
        module = made[0] if isinstance(made, tuple) and len(made) == 2 else made
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.reference} returned {type(module).__name__!r}, not an nn.Module.",
                "Return the module, or (module, example_inputs).",
            )
        return module.eval()

    def _check_arguments(self, function: Any) -> None:
        taken = inspect.signature(function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            return
        lacking = [name for name in self.arguments if name not in taken]
        if lacking:
            raise ConfigError(
                f"distill: {lacking[0]} is handed to the {self.role}'s factory, but {self.reference} takes"
                f" {', '.join(taken) or 'no arguments'}.",
                f"def {self.name}({lacking[0]}=1.0): …, or leave {lacking[0]} out.",
            )


def files_of(path: Path) -> list[Path]:
    """A file and those beside it that it imports, and so on: what decides which module comes out."""
    found: list[Path] = []
    waiting = [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.append(file)
        waiting += [beside for name in _imports(file) if (beside := file.parent / f"{name}.py").is_file()]
    return sorted(found)


def _imports(file: Path) -> set[str]:
    with blame_user(f"reading '{file.name}'"):
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def digest_of(path: Path) -> str:
    """Hash of `files_of`."""
    return sha256_text("\n".join(f"{file.name} {sha256_file(file)}" for file in files_of(path)))
