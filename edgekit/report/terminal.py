"""A report for a terminal, or for a pipe that a terminal would have been."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.report.model import Group, Report
from edgekit.report.words import ACCURACY, DASH, SPEED, Column, headline, notes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_ROOMY = 100
_LABEL = 18
_SIZE_COLUMNS = ("Size", "Download", "Times smaller", "Peak RAM", "Runtime’s baseline", "Model’s RAM")


def render(report: Report, console: Console) -> None:
    """Print the report: per device a headline, speed and memory, accuracy; then what to know of the figures.

    Args:
        report: What to show.
        console: Where to; its width decides how the tables are split.
    """
    for renderable in renderables(report, console.width):
        console.print(renderable)


def renderables(report: Report, width: int) -> list[RenderableType]:
    """The parts of the report, for a console of `width` columns."""
    from rich.text import Text

    parts: list[RenderableType] = []
    for group in report.groups:
        title = Text(f"{group.model} on {group.device}", style="bold")
        title.append(f"  {', '.join(group.targets)}", style="dim")
        if group.emulated:
            title.append("  emulated", style="yellow")
        parts += [Text(), title, Text(headline(group))]
        released = [row.label for row in group.rows if row.result.released]
        if released:
            parts.append(Text(f"Now the release in use there: {released[-1]}", style="dim"))
        parts += [
            table for title_, columns in _sections(group, width) for table in (Text(), _table(title_, columns, group))
        ]
    found = notes(report)
    if found:
        parts += [Text(), Text("To know", style="bold")]
        parts += [Text(f"  • {note}") for note in found]
    return parts


def _sections(group: Group, width: int) -> list[tuple[str, tuple[Column, ...]]]:
    task = tuple(c for c in ACCURACY if not c.name.startswith("Parity") and _says_something(c, group))
    parity = tuple(c for c in ACCURACY if c.name.startswith("Parity") and _says_something(c, group))
    scored, title = (
        {(row.score.metric, row.score.examples, row.score.split) for row in group.rows if row.score},
        "Accuracy",
    )
    if len(scored) == 1:
        ((metric, examples, split),) = scored
        title = f"Accuracy: {metric} on {examples:,} {split} examples"
        task = tuple(column for column in task if column.name not in ("Metric", "Examples"))
    if width >= _ROOMY:
        speed = [("Speed and memory", tuple(c for c in SPEED if c.name != "Runtime’s baseline"))]
        accuracy = [(title, task + parity)] if scored else [("Parity with the source model", parity)]
    else:
        size = tuple(column for column in SPEED if column.name in _SIZE_COLUMNS)
        speed = [("Size and memory", size), ("Speed", tuple(column for column in SPEED if column not in size))]
        accuracy = [*([(title, task)] if scored else []), ("Parity with the source model", parity)]
    return [(name, columns) for name, columns in speed + accuracy if columns]


def _says_something(column: Column, group: Group) -> bool:
    return any(column.cell(row) not in (DASH, "baseline") for row in group.rows)


def _table(title: str, columns: tuple[Column, ...], group: Group) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="dim",
        title=Text(title, style="bold"),
        title_justify="left",
        title_style="",
    )
    longest = max(len(row.label) for row in group.rows)
    table.add_column("", min_width=min(longest, _LABEL), overflow="fold", vertical="top")
    for column in columns:
        table.add_column(Text(column.short), justify="right", no_wrap=True, vertical="top")
    for row in group.rows:
        table.add_row(Text(row.label), *(_cell(column.cell(row)) for column in columns))
    return table


def _cell(text: str) -> RenderableType:
    from rich.text import Text

    return Text("base" if text == "baseline" else text, style="dim" if text in (DASH, "baseline") else "")
