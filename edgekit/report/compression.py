"""A compression shown stage by stage: a table for the terminal, a JSON document, and a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit._version import __version__
from edgekit.core import schema
from edgekit.core.cost import Cost
from edgekit.core.extras import is_installed, require
from edgekit.core.files import write_atomic
from edgekit.core.model import PassRecord
from edgekit.core.stats import share_error
from edgekit.core.units import format_bytes, format_duration
from edgekit.flow.cost import Timing, Timings
from edgekit.flow.pipeline import Compressed, Stage
from edgekit.report import charts, paths
from edgekit.report.html import page
from edgekit.report.words import DASH, percent, times

if TYPE_CHECKING:
    from rich.console import RenderableType

_LIBRARIES = ("plotly", "jinja2")
_ZEROS_SHOWN = 0.005
DEFINITIONS = {
    "MACs": "Multiply-accumulates of one inference of the example inputs.",
    "Size": "Parameters and buffers as a float file stores them; zeros count like any other weight.",
    "Zeros": "Share of parameters that are exactly zero. They make a file smaller only where it stores them as such.",
    "Metric": "On the validation split, which decides; ± is the standard error of a share of examples. The test split is"
    " only reported.",
    "Latency": "Against the source's: of torch the least processor time of all turns, in a target's runtime the median."
    " All stages by turns.",
    "File": "The stage converted for the target, weights as float32 unless pruning's zeros are left out of it.",
    "Time": "How long the pass took when it ran; a pass found in the cache keeps that time.",
    "Rolled back": "The pass broke the budget and was undone: its row is what the model would have been.",
}
"""What each figure means."""


@dataclass(frozen=True)
class Shown:
    """What is shown of one run.

    Attributes:
        name: The model's name.
        made: What the passes made.
        timings: How fast the stages are; None where that was not measured.
        metric: The metric that decides; empty where there is no task.
        direction: Whether larger or smaller is better.
        examples: Number of validation examples.
        test: Metrics of the source and of the result on the test split; empty where there is none.
        test_examples: Number of test examples.
        budget: The budget in words; empty where there is none.
    """

    name: str
    made: Compressed
    timings: Timings | None = None
    metric: str = ""
    direction: str = "larger"
    examples: int = 0
    test: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    test_examples: int = 0
    budget: str = ""

    def metrics(self, stage: Stage) -> Mapping[str, float]:
        """The validation metrics of a stage."""
        if stage.record is not None:
            return stage.record.metrics_after
        first = self._first
        return first.metrics_before if first else {}

    def cost(self, stage: Stage) -> Cost:
        """What a stage's program costs."""
        record, first = stage.record, self._first
        if record is not None:
            return Cost(record.macs_after, record.parameters_after, record.weight_bytes_after, record.zeros_after)
        if first is None:
            return Cost(parameters=stage.state.info.parameters)
        return Cost(first.macs_before, first.parameters_before, first.weight_bytes_before, first.zeros_before)

    def timing(self, place: int) -> Timing | None:
        """The latency of the stage at a place."""
        return self.timings.stages[place] if self.timings else None

    @property
    def result(self) -> Stage:
        """The last stage that was kept."""
        return next(stage for stage in reversed(self.made.stages) if stage.kept)

    @property
    def _first(self) -> PassRecord | None:
        return self.made.stages[1].record if len(self.made.stages) > 1 else None


def can_write_html() -> bool:
    """Whether the extra `report` is installed."""
    return all(is_installed(library) for library in _LIBRARIES)


def require_html() -> None:
    """Find out before the work whether the page can be written after it.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    for library in _LIBRARIES:
        require(library, "report", "The HTML report")


def document(shown: Shown) -> dict[str, Any]:
    """As JSON shows it: the history, every stage with its figures, and the test split's metrics."""
    info, timings = shown.made.state.info, shown.timings
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "kind": "compression",
        "model": shown.name,
        "digest": info.digest,
        "parameters": info.parameters,
        "metric": shown.metric or None,
        "direction": shown.direction if shown.metric else None,
        "validation_examples": shown.examples,
        "stages": [_plain_stage(shown, place) for place in range(len(shown.made.stages))],
        "latency": {
            "of": timings.of,
            "rounds": timings.rounds,
            "again": schema.to_plain(timings.again),
            "lowered": schema.to_plain(timings.lowered) if timings.lowered else None,
        }
        if timings
        else None,
        "test": {"source": dict(shown.test[0]), "result": dict(shown.test[1]), "examples": shown.test_examples}
        if shown.test[0]
        else None,
        "history": schema.to_plain(info.history),
    }


def headline(shown: Shown) -> str:
    """What the passes did, in one sentence."""
    before, after = shown.cost(shown.made.stages[0]), shown.cost(shown.result)
    parts = [
        f"{times(was / now)} {what}"
        for was, now, what in (
            (before.weight_bytes, after.weight_bytes, "smaller"),
            (before.macs, after.macs, "fewer MACs"),
        )
        if 0 < now < was
    ]
    said = " and ".join(parts) if parts else "Neither smaller nor with fewer MACs"
    changes = _metric_change(shown)
    return f"{said}{f'; {changes}' if changes else ''}."


def renderables(shown: Shown) -> list[RenderableType]:
    """For a terminal."""
    from rich.table import Table
    from rich.text import Text

    columns, rows = table(shown)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        words = column in ("pass", "changed", "notes")
        made.add_column(column, overflow="fold", justify="left" if words else "right")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return [made, *(Text(line) for line in lines(shown))]


def table(shown: Shown) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the source, then each pass."""
    chosen = _columns(shown)
    rows = [[cell(stage, place) for _, cell in chosen] for place, stage in enumerate(shown.made.stages)]
    return [name for name, _ in chosen], rows


def lines(shown: Shown) -> list[str]:
    """What is said below the table."""
    said = []
    if shown.timings:
        said.append(f"latency: {shown.timings.of}; the source timed a second time: {times(shown.timings.again.ratio)}")
        said += _lowered(shown.timings)
    if shown.test[0]:
        changes = [
            f"{name} {_value(value, share_error(value, shown.test_examples))} →"
            f" {_value(shown.test[1].get(name), share_error(shown.test[1].get(name), shown.test_examples))}"
            for name, value in shown.test[0].items()
        ]
        said.append(f"test split ({shown.test_examples:,} examples, only reported): {', '.join(changes)}")
    if shown.budget:
        said.append(shown.budget)
    return said


def _lowered(timings: Timings) -> list[str]:
    source, lowered = timings.stages[0], timings.lowered
    if source is None or lowered is None or not (lowered.file_bytes and source.file_bytes):
        return []
    size = f"{format_bytes(lowered.file_bytes)}, {times(source.file_bytes / lowered.file_bytes)} smaller"
    return [f"lowered as the recipe says: {times(lowered.ratio)} the source's latency; {size}"]


def write_html(shown: Shown, path: Path) -> None:
    """Write the page.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    (columns, rows), stages = table(shown), shown.made.stages
    figures = [
        {"id": f"chart-{place}", "title": chart.title, "summary": chart.summary, "figure": chart.figure}
        for place, chart in enumerate(_charts(shown), 1)
    ]
    text = page(
        "compression.html.j2",
        title=shown.name,
        lead=headline(shown),
        figures=figures,
        charts={one["id"]: one["figure"] for one in figures},
        columns=columns[:-1],
        rows=[{"cells": row[:-1], "kept": stage.kept} for row, stage in zip(rows, stages, strict=True)],
        notes={row[0]: s.record.notes for row, s in zip(rows, stages, strict=True) if s.record and s.record.notes},
        lines=lines(shown),
        definitions=DEFINITIONS,
        version=__version__,
    )
    write_atomic(path, text)


Cell = Callable[[Stage, int], str]


def _columns(shown: Shown) -> list[tuple[str, Cell]]:
    names = list(shown.metrics(shown.made.stages[0]))
    names.sort(key=lambda name: name != shown.metric)
    some_zeros = any(_zeros(shown.cost(stage)) >= _ZEROS_SHOWN for stage in shown.made.stages)
    columns: list[tuple[str, Cell | None]] = [
        ("pass", lambda stage, place: f"{place} {stage.name}" if place else stage.name),
        ("changed", lambda stage, _: _changed(stage)),
        ("parameters", lambda stage, _: f"{shown.cost(stage).parameters:,}"),
        ("zeros", (lambda stage, _: percent(_zeros(shown.cost(stage)))) if some_zeros else None),
        ("MACs", lambda stage, _: f"{shown.cost(stage).macs:,}" if shown.cost(stage).macs else DASH),
        ("size", lambda stage, _: format_bytes(shown.cost(stage).weight_bytes)),
        ("file", (lambda _, place: _file(shown.timing(place))) if _has_files(shown) else None),
        *((f"{name} (validation)", _metric_cell(shown, name)) for name in names),
        ("latency", (lambda _, place: _ratio(shown.timing(place))) if shown.timings else None),
        ("time", lambda stage, _: format_duration(stage.record.seconds) if stage.record else ""),
        ("notes", lambda stage, _: "; ".join(stage.record.notes) if stage.record else ""),
    ]
    if not names:
        columns.insert(-3, ("metric", lambda *_: "no task"))
    return [(name, cell) for name, cell in columns if cell is not None]


def _metric_cell(shown: Shown, name: str) -> Cell:
    def cell(stage: Stage, _: int) -> str:
        value = shown.metrics(stage).get(name)
        return _value(value, share_error(value, shown.examples) if name == shown.metric else None)

    return cell


def _value(value: float | None, error: float | None = None) -> str:
    return DASH if value is None else f"{value:.4g}{f' ± {error:.2g}' if error else ''}"


def _has_files(shown: Shown) -> bool:
    first = shown.timing(0)
    return first is not None and first.file_bytes is not None


def _file(timing: Timing | None) -> str:
    return DASH if timing is None or timing.file_bytes is None else format_bytes(timing.file_bytes)


def _ratio(timing: Timing | None) -> str:
    return DASH if timing is None else times(timing.ratio)


def _zeros(cost: Cost) -> float:
    return cost.zeros / cost.parameters if cost.parameters else 0.0


def _changed(stage: Stage) -> str:
    if stage.record is None:
        return ""
    if not stage.kept:
        return "rolled back"
    return "yes" if stage.record.modified else "no"


def _metric_change(shown: Shown) -> str:
    before = shown.metrics(shown.made.stages[0]).get(shown.metric)
    after = shown.metrics(shown.result).get(shown.metric)
    if before is None or after is None:
        return ""
    return f"{shown.metric} {before:.4g} → {after:.4g} on {shown.examples:,} validation examples"


def _plain_stage(shown: Shown, place: int) -> dict[str, Any]:
    stage, timing = shown.made.stages[place], shown.timing(place)
    value = shown.metrics(stage).get(shown.metric)
    return {
        "name": stage.name,
        "kept": stage.kept,
        "changed": stage.record is not None and (stage.record.modified or not stage.kept),
        "digest": stage.state.info.digest,
        **schema.to_plain(shown.cost(stage)),
        "metrics": dict(shown.metrics(stage)),
        "standard_error": share_error(value, shown.examples),
        "latency": schema.to_plain(timing) if timing else None,
        "seconds": stage.record.seconds if stage.record else None,
        "notes": list(stage.record.notes) if stage.record else [],
    }


def _charts(shown: Shown) -> list[charts.Chart]:
    if not shown.metric:
        return []
    sizes = [shown.cost(stage).weight_bytes / 1e6 for stage in shown.made.stages]
    ratios = [timing.ratio if (timing := shown.timing(place)) else None for place in range(len(sizes))]
    made = [_path(shown, f"{shown.metric} and size", "size of the weights, MB", sizes)]
    if shown.timings:
        made.append(
            _path(
                shown, f"{shown.metric} and latency", f"latency against the source’s ({_where(shown.timings)})", ratios
            )
        )
    return made


def _where(timings: Timings) -> str:
    return timings.of.partition(",")[0]


def _path(shown: Shown, title: str, axis: str, places: list[float | None] | list[float]) -> charts.Chart:
    points = [
        paths.Point(
            label=f"{place} {stage.name}" if place else stage.name,
            mark=str(place),
            x=x,
            y=value,
            error=share_error(value, shown.examples) or 0.0,
            kept=stage.kept,
        )
        for place, (stage, x) in enumerate(zip(shown.made.stages, places, strict=True))
        if x is not None and (value := shown.metrics(stage).get(shown.metric)) is not None
    ]
    better = f"{shown.metric} ({shown.direction} is better)"
    return paths.path(title, axis, better, points)
