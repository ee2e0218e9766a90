"""The plots of the HTML report, as plotly figures without colours of text and ground: the page gives them its theme."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.core.extras import require
from edgekit.core.units import format_bytes, format_ms
from edgekit.report.model import Group, Report, Row
from edgekit.report.words import metric_value, number

# Okabe and Ito's palette, which people with any colour vision tell apart; black and yellow are left out because one of
# them vanishes on a dark, the other on a light ground. Baselines are grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BASELINE = "#8a9099"
_ALL_POINTS = 400
_LOG_FROM = 10.0
_LABEL = 26


@dataclass(frozen=True)
class Chart:
    """One plot.

    Attributes:
        title: What it shows.
        summary: The same in words, for those who do not see it.
        figure: Plotly's `data` and `layout`.
    """

    title: str
    summary: str
    figure: dict[str, Any]


def colours(report: Report) -> dict[str, str]:
    """A colour for each label, the same in all plots."""
    found: dict[str, str] = {}
    for row in report.rows:
        if row.is_baseline:
            found.setdefault(row.label, BASELINE)
    for row in report.rows:
        if row.label not in found:
            used = sum(colour != BASELINE for colour in found.values())
            found[row.label] = PALETTE[used % len(PALETTE)]
    return found


def bars(group: Group, palette: dict[str, str]) -> list[Chart]:
    """Before and after, one small plot a figure: size, median latency, peak memory, the task's metric."""
    rows = group.rows
    made = [
        _bar("Size", rows, [row.result.artifact_bytes / 1e6 for row in rows], palette, group, "MB"),
        _bar("Median latency", rows, [row.latency_median for row in rows], palette, group, "ms"),
        _memory(rows, palette, group),
        _metric(rows, palette),
    ]
    return [chart for chart in made if chart]


def latency(group: Group, palette: dict[str, str]) -> Chart | None:
    """How the latency samples are spread, a box an artifact; None where there are no samples."""
    go = plotly()
    rows = [row for row in group.rows if row.samples]
    if not rows:
        return None
    figure = go.Figure()
    for row in reversed(rows):
        figure.add_trace(
            go.Box(
                x=list(row.samples),
                y=[escaped(row.label)] * len(row.samples),
                orientation="h",
                boxpoints="all" if len(row.samples) <= _ALL_POINTS else "outliers",
                # The points lie in a band below their box, so that neither hides the other.
                jitter=0.5,
                pointpos=-1.5,
                width=0.34,
                line={"color": palette[row.label], "width": 1.5},
                fillcolor=faded(palette[row.label], 0.15),
                marker={"size": 3.5, "opacity": 0.5, "color": palette[row.label]},
                hoverinfo="x",
            )
        )
    medians = [row.latency_median for row in rows if row.latency_median]
    wide = bool(medians) and max(medians) / min(medians) > _LOG_FROM
    figure.update_layout(layout(len(group.rows), row_height=72, axis_height=46) | {"height": _large(group)})
    axis = {
        "title": {"text": f"ms{', logarithmic' if wide else ''}", "standoff": 6},
        "type": "log" if wide else "linear",
    }
    figure.update_xaxes(**axis, showgrid=True, ticks="", nticks=6, **({"dtick": "D2"} if wide else {}))
    spread = [
        f"{row.label}: half within {number(_quartile(row, 25))} to {number(_quartile(row, 75))} ms" for row in rows
    ]
    return Chart(f"Latency, every sample{_emulated(group)}", "; ".join(spread), as_plain(figure))


def tradeoff(group: Group, palette: dict[str, str]) -> Chart | None:
    """Latency against the task's metric, the circle's area being the size; None for fewer than two such rows."""
    go = plotly()
    rows = [
        row for row in group.rows if row.latency_median is not None and row.score and row.score.artifact is not None
    ]
    if len(rows) < 2:
        return None
    largest = max(row.result.artifact_bytes for row in rows) or 1
    figure = go.Figure()
    for row in sorted(rows, key=lambda row: -row.result.artifact_bytes):
        if row.score is None:
            continue
        size = format_bytes(row.result.artifact_bytes)
        value = _scaled(row, row.score.artifact)
        figure.add_trace(
            go.Scatter(
                x=[row.latency_median],
                y=[value],
                mode="markers",
                marker={
                    "size": 12 + 34 * (row.result.artifact_bytes / largest) ** 0.5,
                    "color": faded(palette[row.label], 0.55),
                    "line": {"color": palette[row.label], "width": 1.5},
                },
                name=escaped(f"{row.label}, {size}"),
                hovertemplate=escaped(f"{row.label}: {format_ms(row.latency_median)}, {number(value)}, {size}")
                + "<extra></extra>",
            )
        )
    share = all(row.score.share for row in rows if row.score)
    metric = rows[0].score.metric if rows[0].score else ""
    figure.update_layout(layout(1, row_height=0, axis_height=46) | {"height": _large(group)})
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"}
    )
    figure.update_xaxes(
        title={"text": "median latency, ms", "standoff": 6}, rangemode="tozero", showgrid=True, nticks=6
    )
    values = [value for row in rows if row.score and (value := _scaled(row, row.score.artifact)) is not None]
    room = max((max(values) - min(values)) * 0.6, 1.0 if share else abs(max(values)) * 0.02 or 1.0)
    figure.update_yaxes(
        title={"text": escaped(f"{metric}{', %' if share else ''}"), "standoff": 8},
        range=[min(values) - room, max(values) + room],
        showgrid=True,
        nticks=5,
        automargin=True,
    )
    points = [
        f"{row.label}: {format_ms(row.latency_median)}, {metric_value(row.score, row.score.artifact)},"
        f" {format_bytes(row.result.artifact_bytes)}"
        for row in rows
        if row.score
    ]
    return Chart(f"Latency{_emulated(group)}, {metric} and size (area)", "; ".join(points), as_plain(figure))


def dots(title: str, axis: str, rows: Sequence[str], series: Mapping[str, Mapping[str, float]]) -> Chart:
    """A dot for each row and series, such as the signal-to-noise ratio by layer and precision.

    Args:
        title: What it shows.
        axis: What the values are, with their unit.
        rows: The rows, the first on top.
        series: For each series its values by row; a row without one has no dot.
    """
    go = plotly()
    figure = go.Figure()
    for place, (name, values) in enumerate(series.items()):
        shown = [row for row in rows if row in values]
        figure.add_trace(
            go.Scatter(
                x=[values[row] for row in shown],
                y=[escaped(row) for row in shown],
                mode="markers",
                name=escaped(name),
                marker={"size": 10, "color": PALETTE[place % len(PALETTE)], "symbol": place % 5, "opacity": 0.85},
                hovertemplate="%{y}: %{x:.4g}<extra>" + escaped(name) + "</extra>",
            )
        )
    figure.update_layout(layout(len(rows), row_height=24, axis_height=46) | {"height": max(240, 24 * len(rows) + 110)})
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    figure.update_layout(margin={"l": 4, "r": 12, "t": 40, "b": 46})
    figure.update_xaxes(title={"text": escaped(axis), "standoff": 6}, showgrid=True, nticks=8)
    figure.update_yaxes(
        autorange="reversed",
        showgrid=True,
        type="category",
        categoryorder="array",
        categoryarray=[escaped(row) for row in rows],
    )
    told = [
        f"{name}: " + ", ".join(f"{row} {number(values[row])}" for row in rows if row in values)
        for name, values in series.items()
    ]
    return Chart(title, "; ".join(told), as_plain(figure))


def plotly_source() -> str:
    """The whole of plotly.js, to be put into the page."""
    source: str = require("plotly.offline", "report", "The HTML report").get_plotlyjs()
    return source


def plotly() -> Any:
    """Plotly's figures.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    return require("plotly.graph_objects", "report", "The HTML report")


def _bar(
    title: str, rows: Sequence[Row], values: Sequence[float | None], palette: dict[str, str], group: Group, unit: str
) -> Chart | None:
    go = plotly()
    if not any(value is not None for value in values):
        return None
    figure = go.Figure(
        go.Bar(
            x=[value or 0 for value in values],
            y=_names(rows),
            orientation="h",
            text=[f"{number(value)} {unit}" if value is not None else "not measured" for value in values],
            marker={"color": [palette[row.label] for row in rows], "pattern": _pattern(group, unit)},
            **_BAR,
        )
    )
    _finish_bars(figure, rows, max(value for value in values if value is not None))
    shown = [
        f"{row.label} {number(value)} {unit}" for row, value in zip(rows, values, strict=True) if value is not None
    ]
    return Chart(title + (_emulated(group) if unit != "MB" else ""), "; ".join(shown), as_plain(figure))


def _memory(rows: Sequence[Row], palette: dict[str, str], group: Group) -> Chart | None:
    peaks = [row.figure("peak_rss_mib") for row in rows]
    bases = [row.figure("runtime_baseline_mib") for row in rows]
    if None in bases or None in peaks:
        return _bar("Peak RAM", rows, peaks, palette, group, "MiB")
    go = plotly()
    figure = go.Figure()
    tops = [max((peak or 0) - (base or 0), 0) for peak, base in zip(peaks, bases, strict=True)]
    pattern = {"pattern": _pattern(group, "MiB")}
    quiet = [faded(palette[row.label], 0.4) for row in rows]
    full = [palette[row.label] for row in rows]
    common = {"y": _names(rows), "orientation": "h"}
    figure.add_trace(
        go.Bar(
            x=bases,
            marker={"color": quiet} | pattern,
            hovertemplate="runtime %{x:.1f} MiB<extra></extra>",
            **common,
            width=0.62,
        )
    )
    texts = [f"{number(peak)} MiB" for peak in peaks]
    figure.add_trace(go.Bar(x=tops, marker={"color": full} | pattern, text=texts, **common, **_BAR))
    figure.update_layout(barmode="stack")
    _finish_bars(figure, rows, max(peak for peak in peaks if peak is not None))
    shown = [
        f"{row.label} {text}, of it runtime {number(base)}" for row, text, base in zip(rows, texts, bases, strict=True)
    ]
    return Chart(f"Peak RAM{_emulated(group)} (pale: the runtime’s own)", "; ".join(shown), as_plain(figure))


def _metric(rows: Sequence[Row], palette: dict[str, str]) -> Chart | None:
    go = plotly()
    scored = [(row, row.score) for row in rows if row.score and row.score.artifact is not None]
    if not scored:
        return None
    figure = go.Figure()
    ends: list[float] = []
    for row, score in reversed(scored):
        value = _scaled(row, score.artifact) or 0.0
        error = _scaled(row, score.standard_error) or 0.0
        ends += [value - error, value + error]
        figure.add_trace(
            go.Scatter(
                x=[value],
                y=[escaped(_short(row.label))],
                error_x={"type": "data", "array": [error], "thickness": 1.5, "width": 4, "color": palette[row.label]},
                mode="markers+text",
                text=[metric_value(score, score.artifact)],
                textposition="top center",
                cliponaxis=False,
                marker={"size": 11, "color": palette[row.label], "symbol": "circle" if row.is_baseline else "diamond"},
                hoverinfo="x",
            )
        )
    _row, score = scored[0]
    source = _scaled(_row, score.source)
    if source is not None:
        ends.append(source)
        figure.add_vline(x=source, line={"dash": "dot", "width": 1.5, "color": BASELINE})
    room = max((max(ends) - min(ends)) * 0.25, abs(max(ends)) * 0.002 or 1.0)
    figure.update_layout(layout(len(scored), row_height=46, axis_height=30))
    figure.update_xaxes(
        range=[min(ends) - room, max(ends) + room], showgrid=True, nticks=5, ticksuffix=" %" if score.share else ""
    )
    figure.update_yaxes(range=[-0.6, len(scored) - 0.3])
    shown = [f"{row.label} {metric_value(each, each.artifact)}" for row, each in scored]
    where = "" if all(each.device is not None for _, each in scored) else ", partly on the host"
    dotted = ", dotted: the source model" if source is not None else ""
    return Chart(f"{score.metric}{where} (± standard error{dotted})", "; ".join(shown), as_plain(figure))


_BAR: dict[str, Any] = {"width": 0.62, "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip"}


def _finish_bars(figure: Any, rows: Sequence[Row], largest: float) -> None:
    figure.update_layout(layout(len(rows), row_height=36, axis_height=6))
    # Room for the number at the end of the longest bar.
    figure.update_xaxes(visible=False, range=[0, (largest or 1) * 1.38])
    figure.update_yaxes(autorange="reversed")


def layout(rows: int, *, row_height: int, axis_height: int) -> dict[str, Any]:
    """What all plots have: no frame, no legend, room for the axis."""
    return {
        "height": rows * row_height + axis_height + 12,
        "margin": {"l": 4, "r": 12, "t": 6, "b": axis_height},
        "showlegend": False,
        "dragmode": False,
        "xaxis": {"showgrid": False, "zeroline": False, "fixedrange": True},
        "yaxis": {
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "fixedrange": True,
            "ticks": "",
            "ticksuffix": "  ",
        },
        "hoverlabel": {"font": {"size": 12}},
    }


def _large(group: Group) -> int:
    """Height of the two large plots, which stand side by side."""
    return max(300, 72 * len(group.rows) + 58)


def _names(rows: Sequence[Row]) -> list[str]:
    return [escaped(_short(row.label)) for row in rows]


def _short(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def escaped(label: str) -> str:
    """Plotly reads a few HTML tags in texts; a label is never one."""
    return html.escape(label, quote=False).replace("%{", "%&#123;")


def _pattern(group: Group, unit: str) -> dict[str, Any]:
    return {"shape": "/" if group.emulated and unit != "MB" else "", "solidity": 0.25, "size": 6}


def _emulated(group: Group) -> str:
    return ", emulated" if group.emulated else ""


def _scaled(row: Row, value: float | None) -> float | None:
    return value if value is None or row.score is None or not row.score.share else 100 * value


def faded(colour: str, opacity: float) -> str:
    """A colour of the palette with some of the ground in it."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _quartile(row: Row, q: float) -> float:
    from edgekit.core.stats import percentile

    return percentile(row.samples, q)


def as_plain(figure: Any) -> dict[str, Any]:
    """A figure as data, without plotly's own colours."""
    # Plotly's default template colours the ground white; the page does that, in light and in dark.
    figure.update_layout(template="none")
    plain: dict[str, Any] = json.loads(figure.to_json())
    return plain
