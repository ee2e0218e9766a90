"""`edgekit bench`: measure artifacts on devices, and change nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options
from edgekit.cli.common import verb
from edgekit.cli.deploy import command_line, show_results
from edgekit.cli.screen import Screen


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(app, "bench", example="edgekit bench build/digits/linux-x86-litert-float32 --device local")
    def bench(
        screen: Screen,
        artifacts: Annotated[
            list[Path], typer.Argument(metavar="ARTIFACT", help="Folders that `edgekit compile` wrote.")
        ],
        device: options.DeviceName = None,
        threads: options.Threads = None,
        processes: options.Processes = 3,
        min_runs: options.MinRuns = 30,
        min_seconds: options.MinSeconds = 1.0,
        html: options.Html = None,
    ) -> None:
        """Measure only; several artifacts take turns."""
        from edgekit.core.device import load_devices
        from edgekit.core.places import DEVICES_FILE, find_root
        from edgekit.flow.deploy import deploy, devices_for
        from edgekit.flow.export import open_artifact
        from edgekit.flow.measure import new_run

        root = find_root(Path.cwd())
        known = load_devices(root / DEVICES_FILE)
        opened = [open_artifact(path, root) for path in artifacts]
        placed = [(built, devices_for(built.target, known, device)) for built in opened]
        run, results = new_run(), []
        settings = options.settings_of(threads, processes, min_runs, min_seconds)
        with options.store_of(root) as store:
            for built, units in placed:
                results += deploy(built, units, settings, store, screen, run=run, command=command_line(), release=False)
        show_results(screen, results, html)
