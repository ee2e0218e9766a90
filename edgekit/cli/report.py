"""`edgekit report`: show any earlier run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import options
from edgekit.cli.common import verb
from edgekit.cli.deploy import show_results
from edgekit.cli.screen import Screen


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "report",
        example="edgekit report\nedgekit report --list\nedgekit report 20261124T0930 --html report.html",
    )
    def report(
        screen: Screen,
        run: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Runs, by their first characters.")] = None,
        list_: Annotated[bool, typer.Option("--list", help="List the stored runs.")] = False,
        html: options.Html = None,
        markdown: Annotated[
            Path | None, typer.Option("--markdown", help="Write a Markdown report to this file.")
        ] = None,
    ) -> None:
        """Render what is stored; the latest run where none is named."""
        from edgekit.core.errors import ConfigError
        from edgekit.core.files import write_atomic
        from edgekit.core.places import find_root

        with options.store_of(find_root(Path.cwd())) as store:
            if list_:
                runs = store.runs()
                screen.answer({"schema_version": 1, "runs": runs}, _table(runs))
                return
            latest = store.latest_run()
            if latest is None:
                raise ConfigError("No result is stored here yet.", "edgekit deploy --target linux-x86")
            names = [store.run(name).run for name in run] if run else [latest.run]
            results = [result for name in names for result in store.results(run=name, oldest_first=True)]
        if markdown is not None:
            from edgekit.report import markdown as report_markdown
            from edgekit.report.model import build

            write_atomic(markdown, report_markdown.render(build(results)))
            screen.note(f"report: {markdown}")
        show_results(screen, results, html)


def _table(runs: list[Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "when", "results", "models", "devices"):
        table.add_column(column, overflow="fold")
    for run in runs:
        table.add_row(run.run, run.first, str(run.results), ", ".join(run.models), ", ".join(run.devices))
    return table
