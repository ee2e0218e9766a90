"""Accuracy in a line, and the ladder as a table: what `compile` and `deploy` show of what an artifact costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.core.result import Accuracy
from edgekit.core.units import format_bytes
from edgekit.flow.rungs import Ladder, Rung, title
from edgekit.report.words import DASH, percent, times

if TYPE_CHECKING:
    from rich.console import RenderableType


def metric_text(accuracy: Accuracy | None) -> str:
    """`top1 0.9944 → 0.9917 ± 0.0048 (360 validation)`; a dash where it is not known."""
    if accuracy is None or accuracy.metric not in accuracy.host:
        return DASH
    metric, error = accuracy.metric, accuracy.host_standard_error
    spread = f" ± {error:.2g}" if error is not None else ""
    return (
        f"{metric} {accuracy.source[metric]:.4g} → {accuracy.host[metric]:.4g}{spread}"
        f" ({accuracy.examples:,} {accuracy.split})"
    )


def agreement_text(accuracy: Accuracy | None) -> str:
    """The agreement of the worst output on this host; a dash where no output is scores over classes."""
    if accuracy is None or not accuracy.host_agreement:
        return DASH
    return percent(min(accuracy.host_agreement.values()))


def ladder_table(ladder: Ladder) -> RenderableType:
    """A row for each rung: what it gained and cost, and whether it is kept."""
    from rich.table import Table
    from rich.text import Text

    budget = " (the recipe has no budget)" if ladder.default_budget else ""
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=Text(f"Ladder: judged by {ladder.judged_by}; at most {ladder.allowed:.4g} lost{budget}", style="bold"),
        title_justify="left",
        title_style="",
    )
    for column in ("rung", "size", "smaller", "download", "metric", "agreement", "lost", "budget"):
        table.add_column(column, overflow="fold")
    for rung in (ladder.baseline, *ladder.rungs):
        table.add_row(*(Text(cell) for cell in _cells(rung, ladder)))
    return table


def _cells(rung: Rung, ladder: Ladder) -> list[str]:
    if rung.built is None:
        return [title(rung), DASH, DASH, DASH, DASH, DASH, DASH, f"not possible: {rung.refused}"]
    build = rung.built.artifact.build
    verdict = "inside" if rung.inside else rung.why_not
    if rung is ladder.baseline:
        verdict = "baseline"
    return [
        title(rung),
        format_bytes(rung.bytes),
        times(ladder.baseline.bytes / rung.bytes) if rung.bytes else DASH,
        format_bytes(build.download_bytes) if build else DASH,
        metric_text(rung.accuracy),
        agreement_text(rung.accuracy),
        DASH if rung.loss is None else f"{rung.loss:.4g}",
        "kept" if rung is ladder.kept else verdict,
    ]
