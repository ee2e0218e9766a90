"""The verbs as Python calls: what the command line does, one call each.

import edgekit

project = edgekit.load("examples/digits")                  # a folder with edgekit.yaml, or a source
artifact = edgekit.compile(project, target="linux-x86")
results = edgekit.deploy(project, target="linux-x86")
print(results[0].measured("latency_ms").values)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core.places import results_at
from edgekit.core.progress import Progress, Silent
from edgekit.core.target import load_target

if TYPE_CHECKING:
    from edgekit.core.artifact import Artifact
    from edgekit.core.model import Model
    from edgekit.core.result import Result
    from edgekit.flow.measure import Settings
    from edgekit.flow.project import Project
    from edgekit.flow.sensitivity import Request, Sensitivity


def load(
    source: str | Path = ".",
    *,
    name: str | None = None,
    task: str | None = None,
    recipe: str | Path | None = None,
    seed: int | None = None,
) -> Project:
    """A project: a folder with `edgekit.yaml`, or a source such as `model.py:build`, `net.pt2` or `net.onnx`.

    Args:
        source: The folder or the source.
        name: The model's name; the project's own, else the file's stem.
        task: `task.py:Name`; the project's own where none is given.
        recipe: The recipe's file; the project's own where none is given.
        seed: Of every random choice that a pass makes; the recipe's where none is given.

    Raises:
        ConfigError: There is no such project, or its files are wrong.
    """
    from edgekit.flow.project import Overrides, load_project

    said = Overrides(name=name, task=task, recipe=str(recipe) if recipe is not None else None, seed=seed)
    if Path(source).is_dir() and not (Path(source) / "checkpoint.json").is_file():
        return load_project(Path(source), said)
    return load_project(Path.cwd(), replace(said, source=str(source)))


def compress(project: Project, *, progress: Progress | None = None) -> Model:
    """The model after the passes of the project's recipe.

    Its `history` has one record a pass: metrics, parameters, MACs, bytes and zeros before and after it, how long it
    took, and whether it was kept (`budget: {on_break: roll_back}` undoes a pass that loses too much).

        for record in edgekit.compress(edgekit.load("examples/digits")).history:
            print(record.name, record.kept, record.macs_before, record.macs_after, record.metrics_after)

    Raises:
        BudgetError: A pass lost more of the metric than the recipe's budget allows.
    """
    from edgekit.flow.build import Builder
    from edgekit.flow.recipe import Recipe

    builder = Builder(project, progress or Silent())
    return builder.compressed(project.recipe or Recipe()).live()


def sensitivity(project: Project, request: Request | None = None, *, progress: Progress | None = None) -> Sensitivity:
    """What each layer costs in each precision, when it alone is quantized, after the passes of the project's recipe.

    Args:
        project: From `load`.
        request: Precisions, layers, split and number of examples; see `edgekit.flow.sensitivity.Request`.
        progress: Told what is done.

    Raises:
        ConfigError: A precision, a layer or a split is unknown.
    """
    from edgekit.flow.build import Builder
    from edgekit.flow.imported import as_torch
    from edgekit.flow.recipe import Recipe
    from edgekit.flow.sensitivity import measure as measured

    builder = Builder(project, progress or Silent())
    state = as_torch(builder.compressed(project.recipe or Recipe()), builder.tools)
    return measured(state, builder.tools, request)


def compile(
    project: Project,
    *,
    target: str,
    backend: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """The verified artifact of the project for a target.

    Args:
        project: From `load`.
        target: Name of the target.
        backend: One of the target's backends; its first where none is given.
        out: A folder to copy it to; it stays in the cache where none is given.
        progress: Told what is done.

    Raises:
        VerificationError: The artifact does not compute what the model computes.
        BudgetError: It loses more of the metric than the recipe allows; with the scheme auto, every rung of the ladder.
    """
    from edgekit.core.artifact import load_artifact
    from edgekit.flow.build import Builder
    from edgekit.flow.export import export_artifact
    from edgekit.flow.ladder import make

    chosen = load_target(target, project.root)
    built = make(Builder(project, progress or Silent()), chosen, backend).built
    return built.artifact if out is None else load_artifact(export_artifact(built, Path(out)))


def deploy(
    project: Project,
    *,
    target: str,
    device: str | None = None,
    every: bool = False,
    backend: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Build, push, check, switch and measure; one result a device.

    Args:
        project: From `load`.
        target: Name of the target.
        device: The unit; needed where `devices.yaml` has several of the target.
        every: All units of the target.
        backend: One of the target's backends.
        settings: How to measure.
        progress: Told what is done.

    Raises:
        DeviceError: A device failed.
        VerificationError: Parity or the device's health check failed; the release before stays in force.
    """
    return _visit(project, target, device, every, backend, settings, progress, release=True)


def measure(
    project: Project,
    *,
    target: str,
    device: str | None = None,
    backend: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure on a device and leave what is current there in force; see `deploy`."""
    return _visit(project, target, device, False, backend, settings, progress, release=False)


def _visit(
    project: Project,
    target: str,
    device: str | None,
    every: bool,
    backend: str | None,
    settings: Settings | None,
    progress: Progress | None,
    *,
    release: bool,
) -> list[Result]:
    from edgekit.flow.build import Builder
    from edgekit.flow.deploy import deploy as deploy_to
    from edgekit.flow.deploy import deploy_made, devices_for
    from edgekit.flow.ladder import make
    from edgekit.flow.measure import Settings as MeasureSettings
    from edgekit.flow.store import Store

    shown = progress or Silent()
    chosen = load_target(target, project.root)
    devices = devices_for(chosen, project.devices(), device, every)
    made = make(Builder(project, shown), chosen, backend)
    measuring = settings or MeasureSettings()
    with Store.open(results_at(project.root)) as store:
        if release:
            return deploy_made(made, devices, measuring, store, shown)
        return deploy_to(made.built, devices, measuring, store, shown, release=False)
