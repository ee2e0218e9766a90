"""Project: `edgekit.yaml`, completed by environment variables and flags."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.core import schema
from edgekit.core.device import Device, load_devices
from edgekit.core.errors import ConfigError
from edgekit.core.places import DEVICES_FILE, PROJECT_FILE, find_root
from edgekit.core.target import Target
from edgekit.flow.recipe import Recipe, load_recipe, parse_recipe
from edgekit.frontends.base import InputDeclaration, OutputDeclaration, SourceRequest, split_source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class _ProjectFile:
    schema_version: int
    source: str | None = None
    name: str | None = None
    inputs: tuple[InputDeclaration, ...] = ()
    outputs: tuple[OutputDeclaration, ...] = ()
    weights: str | None = None
    task: str | None = None
    recipe: str | Mapping[str, Any] | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Project:
    """What a command works on.

    Attributes:
        root: The folder that relative paths start from.
        name: The model's name on devices and in results.
        source: What is compiled.
        inputs: What the person says about inputs.
        outputs: What the person says about outputs.
        task: `task.py:Name`, or None.
        recipe: The recipe, or None for the target's own.
        targets: Names of the targets.
        weights: A file with a state dict for what the factory builds, or None.
        seed: In place of the recipe's, or None.
    """

    root: Path
    name: str
    source: str
    inputs: tuple[InputDeclaration, ...] = ()
    outputs: tuple[OutputDeclaration, ...] = ()
    task: str | None = None
    recipe: Recipe | None = None
    targets: tuple[str, ...] = ()
    weights: str | None = None
    seed: int | None = None

    @property
    def source_request(self) -> SourceRequest:
        """The request for a frontend."""
        return SourceRequest(self.source, self.root, self.name, self.inputs, self.outputs, self.weights)

    def recipe_for(self, target: Target) -> Recipe:
        """The recipe used for a target: the person's, else the target's own, else nothing at all."""
        if self.recipe is not None:
            return self.recipe
        if target.recipe is not None:
            own = parse_recipe(schema.Document(dict(target.recipe), f"targets/{target.name}.yaml: recipe"))
            return own if self.seed is None else replace(own, seed=self.seed)
        return Recipe()

    def devices(self) -> dict[str, Device]:
        """The units in the project's `devices.yaml`."""
        return load_devices(self.root / DEVICES_FILE)


@dataclass(frozen=True)
class Overrides:
    """What flags say; each takes the place of the file's and the environment's value.

    A source or task on the command line is relative to the current folder, not to the project's.
    """

    source: str | None = None
    name: str | None = None
    task: str | None = None
    recipe: str | None = None
    targets: tuple[str, ...] = field(default=())
    weights: str | None = None
    seed: int | None = None


def load_project(start: Path, overrides: Overrides | None = None, environ: Mapping[str, str] | None = None) -> Project:
    """The project of a folder.

    Args:
        start: The current folder.
        overrides: What flags say.
        environ: Environment variables; `EDGEKIT_SOURCE`, `_NAME`, `_TASK`, `_RECIPE`, `_TARGETS`, `_WEIGHTS` count.

    Raises:
        ConfigError: A file is wrong, or there is neither a project file nor a source.
    """
    environ = os.environ if environ is None else environ
    root = find_root(start.resolve())
    path = root / PROJECT_FILE
    document = schema.load_yaml(path) if path.exists() else None
    file = schema.versioned(_ProjectFile, document) if document else _ProjectFile(schema.SCHEMA_VERSION)
    said = _combined(overrides or Overrides(), environ, start.resolve())
    source = said.source or file.source
    if not source:
        raise ConfigError(
            f"There is no {PROJECT_FILE} in '{start}' or above it, and no source was given.",
            "edgekit init    (or name a source: edgekit compile model.py:build --target linux-x86)",
        )
    # A source of one's own choosing has nothing to do with what the file declares for another.
    own_source = said.source is None or file.source is None or _same(said.source, file.source, root)
    name = said.name or (file.name if own_source else None) or _default_name(source)
    if not _NAME.fullmatch(name):
        where = document.where("name") if document and name == file.name else "--name"
        raise ConfigError(
            f"{where}: the name '{name}' cannot be used on devices: letters, digits, '.', '_' and '-', at most 64.",
        )
    seed = overrides.seed if overrides else None
    recipe = _recipe(said.recipe, file.recipe if own_source else None, root, document)
    return Project(
        root=root,
        name=name,
        source=source,
        inputs=file.inputs if own_source else (),
        outputs=file.outputs if own_source else (),
        task=said.task or (file.task if own_source else None),
        recipe=recipe if recipe is None or seed is None else replace(recipe, seed=seed),
        targets=said.targets or file.targets,
        weights=said.weights or (file.weights if own_source else None),
        seed=seed,
    )


def _combined(flags: Overrides, environ: Mapping[str, str], start: Path) -> Overrides:
    """Flags, else environment variables; paths made absolute, so that they mean what the person meant."""
    targets = tuple(part.strip() for part in environ.get("EDGEKIT_TARGETS", "").split(",") if part.strip())
    merged = Overrides(
        source=flags.source or environ.get("EDGEKIT_SOURCE") or None,
        name=flags.name or environ.get("EDGEKIT_NAME") or None,
        task=flags.task or environ.get("EDGEKIT_TASK") or None,
        recipe=flags.recipe or environ.get("EDGEKIT_RECIPE") or None,
        targets=flags.targets or targets,
        weights=flags.weights or environ.get("EDGEKIT_WEIGHTS") or None,
    )
    return replace(
        merged,
        source=_absolute(merged.source, start),
        task=_absolute(merged.task, start),
        recipe=_absolute(merged.recipe, start),
        weights=_absolute(merged.weights, start),
    )


def _absolute(reference: str | None, start: Path) -> str | None:
    if reference is None:
        return None
    file, name = split_source(reference)
    path = os.path.normpath(start / file)
    return f"{path}:{name}" if name else path


def _same(absolute: str, relative: str, root: Path) -> bool:
    (one, one_name), (other, other_name) = split_source(absolute), split_source(relative)
    return one_name == other_name and Path(one).resolve() == (root / other).resolve()


def _default_name(source: str) -> str:
    stem = Path(split_source(source)[0]).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"


def _recipe(
    flag: str | None, given: str | Mapping[str, Any] | None, root: Path, document: schema.Document | None
) -> Recipe | None:
    if flag is not None:
        return load_recipe(Path(flag))
    if isinstance(given, str):
        return load_recipe(root / given)
    if given is not None and document is not None:
        inline = document.at("recipe")
        value = {"schema_version": schema.SCHEMA_VERSION, **inline.value}
        return parse_recipe(replace(inline, value=value))
    return None
