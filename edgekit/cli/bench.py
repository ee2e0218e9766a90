"""`edgekit bench`: measure artifacts on devices, and change nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import measuring, options
from edgekit.cli.common import verb
from edgekit.cli.deploy import command_line, show_results
from edgekit.cli.screen import Screen


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "bench",
        example="edgekit bench build/digits/linux-x86-litert-float32 --device local\n"
        "edgekit bench build/digits/linux-x86-litert-float32 build/digits/linux-x86-litert-static_wi8_ai8",
    )
    def bench(
        screen: Screen,
        artifacts: Annotated[
            list[Path], typer.Argument(metavar="ARTIFACT", help="Folders that `edgekit compile` wrote.")
        ],
        device: options.DeviceName = None,
        threads: options.Threads = None,
        processes: Annotated[
            int | None,
            typer.Option(
                "--processes",
                help="Fresh processes of each artifact; 3 by default, and 16 rounds where several take turns.",
                min=1,
            ),
        ] = None,
        min_runs: options.MinRuns = 30,
        min_seconds: options.MinSeconds = 1.0,
        max_seconds: measuring.MaxSeconds = None,
        ci: measuring.Ci = None,
        governor: measuring.Governor = None,
        cool_below: measuring.CoolBelow = None,
        sweep: measuring.Sweep = None,
        sustained: measuring.Sustained = None,
        html: options.Html = None,
    ) -> None:
        """Measure only; several artifacts take turns, and each is compared with the first."""
        from edgekit.core.device import load_devices
        from edgekit.core.places import DEVICES_FILE, find_root
        from edgekit.flow.asked import settings_with
        from edgekit.flow.compare import in_run
        from edgekit.flow.deploy import devices_for
        from edgekit.flow.export import open_artifact
        from edgekit.flow.interleave import ROUNDS
        from edgekit.flow.interleave import bench as measured
        from edgekit.flow.measure import Settings, new_run
        from edgekit.report import comparison as report

        root = find_root(Path.cwd())
        known = load_devices(root / DEVICES_FILE)
        opened = [open_artifact(path, root) for path in artifacts]
        placed = [(built, devices_for(built.target, known, device)) for built in opened]
        usual = ROUNDS if len(opened) > 1 else Settings.processes
        settings = settings_with(
            options.settings_of(threads, processes or usual, min_runs, min_seconds),
            ci=ci,
            max_seconds=max_seconds,
            governor=governor,
            cool_below=cool_below,
            sweep=sweep,
            sustained=sustained,
        )
        with options.store_of(root) as store:
            results = measured(placed, settings, store, screen, run=new_run(), command=command_line())
        comparisons = in_run(results)
        more = report.document(comparisons)["comparisons"]
        show_results(
            screen, results, html, more={"in_turns": more} if more else None, tables=report.renderables(comparisons)
        )
