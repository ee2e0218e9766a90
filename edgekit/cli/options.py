"""Options that several verbs have: each is written once, so that it means the same everywhere."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgekit.cli.screen import Screen
    from edgekit.core.target import Target
    from edgekit.flow.build import Builder
    from edgekit.flow.measure import Settings
    from edgekit.flow.project import Project
    from edgekit.flow.store import Store


class FailOnChoice(enum.StrEnum):
    """What a person may want a command to fail on."""

    fallback = "fallback"


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE", help="model.py:build, net.pt2, net.onnx or a checkpoint; edgekit.yaml's by default."
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="The model's name on devices and in results.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="A state dict (.pt, .pth, .safetensors) for what the factory builds.")
]
Task = Annotated[str | None, typer.Option("--task", help="The task, as task.py:NAME.")]
Recipe = Annotated[str | None, typer.Option("--recipe", "-r", help="The recipe's file.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Of every random choice that a pass makes; the recipe's by default.", min=0)
]
Targets = Annotated[list[str] | None, typer.Option("--target", "-t", help="A target; may be given several times.")]
BackendName = Annotated[str | None, typer.Option("--backend", "-b", help="One of the target's backends.")]
DeviceName = Annotated[str | None, typer.Option("--device", "-d", help="A unit in devices.yaml, or local.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds after which one conversion is stopped.", min=1)]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Make everything anew.")]
FailOn = Annotated[
    FailOnChoice | None,
    typer.Option(
        "--fail-on", help="Exit 1 where this is found: `fallback`, operators that left the runtime's delegate."
    ),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare the artifact with the model.")]
MinSnr = Annotated[
    float | None,
    typer.Option("--min-snr-db", help="Least signal-to-noise ratio of outputs; the precision's own by default."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="Threads of the runtime; the target's number by default.", min=1)
]
Processes = Annotated[int, typer.Option("--processes", help="Fresh processes that repeat the measurement.", min=1)]
MinRuns = Annotated[int, typer.Option("--min-runs", help="Timed inferences at least, in each process.", min=2)]
MinSeconds = Annotated[
    float, typer.Option("--min-seconds", help="Timing lasts at least this long, in each process.", min=0)
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained HTML report to this file.")]


def project_of(
    source: str | None,
    name: str | None,
    task: str | None,
    recipe: str | None,
    targets: list[str] | None,
    weights: str | None = None,
    seed: int | None = None,
) -> Project:
    """The project that a command works on."""
    from edgekit.flow.project import Overrides, load_project

    return load_project(Path.cwd(), Overrides(source, name, task, recipe, tuple(targets or ()), weights, seed))


def targets_of(project: Project, default: str | None = None) -> list[Target]:
    """The targets asked for.

    Raises:
        ConfigError: None is asked for, or one is unknown.
    """
    from edgekit.core.errors import ConfigError
    from edgekit.core.target import load_target

    names = project.targets or ((default,) if default else ())
    if not names:
        raise ConfigError(
            "No target was given, and edgekit.yaml names none.", "--target linux-x86    (edgekit targets lists them)"
        )
    return [load_target(name, project.root) for name in names]


def builder_of(
    project: Project,
    screen: Screen,
    timeout: float = 1800.0,
    no_cache: bool = False,
    min_snr_db: float | None = None,
) -> Builder:
    """The builder of a project."""
    from edgekit.flow.build import Builder
    from edgekit.flow.cache import Cache
    from edgekit.flow.recipe import Verify

    return Builder(project, screen, Cache(enabled=not no_cache), timeout, Verify(min_snr_db=min_snr_db))


def store_of(root: Path) -> Store:
    """The results: where `EDGEKIT_RESULTS` says (a file or a database's URL), else in the project."""
    from edgekit.core.places import results_at
    from edgekit.flow.store import Store

    return Store.open(results_at(root))


def settings_of(
    threads: int | None, processes: int, min_runs: int, min_seconds: float, accuracy: bool = True
) -> Settings:
    """How to measure."""
    from edgekit.flow.measure import Settings

    longest = max(Settings.max_seconds, 2 * min_seconds)
    return Settings(
        threads, processes, min_runs=min_runs, min_seconds=min_seconds, max_seconds=longest, accuracy=accuracy
    )
