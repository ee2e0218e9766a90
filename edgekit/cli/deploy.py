"""`edgekit deploy`: build, push, check, switch, measure, report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import ladders, options
from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.core.device import Device
    from edgekit.core.result import Result
    from edgekit.flow.ladder import Made
    from edgekit.flow.rungs import Ladder


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "deploy",
        example="edgekit deploy --target rpi4\nedgekit deploy --target linux-x86 --html report.html\n"
        "edgekit deploy --target rpi4 --all --canary 1\n"
        "edgekit deploy build/digits/rpi4-litert-float32 --device my-pi",
    )
    def deploy(
        screen: Screen,
        source: options.Source = None,
        target: options.Targets = None,
        device: options.DeviceName = None,
        every: Annotated[bool, typer.Option("--all", help="All units of the target.")] = False,
        canary: Annotated[
            int,
            typer.Option(
                "--canary", min=0, help="With --all: so many units first; where one fails, no other is touched."
            ),
        ] = 0,
        backend: options.BackendName = None,
        recipe: options.Recipe = None,
        name: options.Name = None,
        task: options.Task = None,
        weights: options.Weights = None,
        threads: options.Threads = None,
        processes: options.Processes = 3,
        min_runs: options.MinRuns = 30,
        min_seconds: options.MinSeconds = 1.0,
        tag: Annotated[list[str] | None, typer.Option("--tag", help="A word kept with the results.")] = None,
        html: options.Html = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Build and verify; say what would be sent where.")
        ] = False,
        fail_on: options.FailOn = None,
        no_verify: options.NoVerify = False,
        timeout: options.Timeout = 1800.0,
        no_cache: options.NoCache = False,
    ) -> None:
        """Compile if stale, push, health check, switch, measure, report."""
        from edgekit.core.errors import ConfigError
        from edgekit.flow import ladder
        from edgekit.flow.deploy import deploy_made, devices_for
        from edgekit.flow.fallback import require_delegated
        from edgekit.flow.measure import new_run

        if canary and not every:
            raise ConfigError("--canary says how many of several units go first.", "edgekit deploy --all --canary 1")
        settings = options.settings_of(threads, processes, min_runs, min_seconds)
        plans: list[tuple[Made, list[Device]]] = []
        loose = artifact_at(source)
        if loose is not None:
            from edgekit.core.device import load_devices
            from edgekit.core.places import DEVICES_FILE, find_root
            from edgekit.flow.export import open_artifact

            root = find_root(Path.cwd())
            built = open_artifact(loose, root)
            plans.append(
                (ladder.Made(built), devices_for(built.target, load_devices(root / DEVICES_FILE), device, every))
            )
        else:
            project = options.project_of(source, name, task, recipe, target, weights)
            root = project.root
            builder = options.builder_of(project, screen, timeout, no_cache)
            # Where it goes is settled for every target before minutes are spent on building for the first.
            chosen = [(t, devices_for(t, project.devices(), device, every)) for t in options.targets_of(project)]
            builder.prepare([(t, backend) for t, _ in chosen if not ladder.is_auto(builder, t)])
            with ladders.shown_if_none_fits(screen):
                plans += [(ladder.make(builder, t, backend, verify=not no_verify), units) for t, units in chosen]
        if fail_on is not None:
            for made, _ in plans:
                require_delegated(made.built)
        if dry_run:
            _show_plan(screen, plans)
            return
        run, results = new_run(), []
        with options.store_of(root) as store:
            for made, units in plans:
                results += deploy_made(
                    made,
                    units,
                    settings,
                    store,
                    screen,
                    run=run,
                    command=command_line(),
                    tags=tuple(tag or ()),
                    canary=canary,
                )
        show_results(screen, results, html, ladders.of([made for made, _ in plans]))


def artifact_at(source: str | None) -> Path | None:
    """The artifact's folder that `source` names, or None where it is something else."""
    from edgekit.core.artifact import MANIFEST

    if source is None:
        return None
    path = Path(source)
    return path if (path / MANIFEST).is_file() or path.name == MANIFEST else None


def command_line() -> str:
    """What the person typed."""
    return shlex.join(["edgekit", *sys.argv[1:]])


def show_results(
    screen: Screen,
    results: list[Result],
    html: Path | None,
    climbed: Sequence[Ladder] = (),
    *,
    more: Mapping[str, Any] | None = None,
    tables: Sequence[Any] = (),
) -> None:
    """The report of some results on the terminal, as JSON, and as HTML where asked for, with the ladders climbed.

    Args:
        screen: Where to.
        results: What is shown.
        html: The file of the HTML report.
        climbed: The ladders.
        more: What the JSON document has beside the report.
        tables: What the terminal shows after it.
    """
    from edgekit.flow.rungs import document
    from edgekit.report import json as report_json
    from edgekit.report import terminal
    from edgekit.report.model import build

    report = build(results, command_line())
    if html is not None:
        from edgekit.report import html as report_html

        report_html.write(report, html)
        screen.note(f"report: {html}")
    shown = report_json.document(report) | ({"ladders": [document(one) for one in climbed]} if climbed else {})
    shown |= more or {}
    screen.answer(shown, *ladders.tables(climbed), *terminal.renderables(report, screen.report_width), *tables)


def _show_plan(screen: Screen, plans: list[tuple[Made, list[Device]]]) -> None:
    from edgekit.core.units import format_bytes
    from edgekit.flow.rungs import title

    actions: list[dict[str, Any]] = []
    lines = []
    for made, units in plans:
        built = made.built
        manifest = built.artifact.manifest
        for unit in units:
            actions.append(
                {
                    "device": unit.name,
                    "transport": unit.transport,
                    "address": unit.address,
                    "model": manifest.name,
                    "backend": manifest.backend,
                    "precision": manifest.lowering.precision,
                    "finalists": [title(rung) for rung in made.ladder.finalists] if made.ladder else [],
                    "artifact_digest": built.artifact.digest,
                    "artifact_bytes": built.artifact.bytes,
                    "runtime": dict(manifest.runtime),
                }
            )
            runtime = ", ".join(f"{name} {version}" for name, version in manifest.runtime.items())
            rivals = [title(rung) for rung in made.ladder.finalists] if made.ladder else []
            if len(rivals) > 1:
                lines.append(
                    f"{unit.name}: measure {', '.join(rivals)} there first, and keep the faster; the smallest is:"
                )
            lines.append(
                f"{unit.name} ({unit.transport} {unit.address}): push what it lacks of {format_bytes(built.artifact.bytes)}"
                f" ({manifest.backend}, {manifest.lowering.precision}) and of the runtime ({runtime}), check its outputs"
                f" there, switch '{manifest.name}' to it, measure"
            )
    climbed = ladders.of([made for made, _ in plans])
    screen.answer({"schema_version": 1, "dry_run": True, "actions": actions}, *ladders.tables(climbed), *lines)
