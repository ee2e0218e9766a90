"""The plot of a compression: what each pass costs and gains, as points joined in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekit.report import charts
from edgekit.report.words import number

_LOG_FROM = 10.0
_NEAR = 0.06
"""Points nearer to each other than this share of a plot have one mark."""
_OUT = ("triangle-down-open", "triangle-up-open")


@dataclass(frozen=True)
class Point:
    """One stage of a path.

    Attributes:
        label: What it is.
        mark: A short mark beside the point.
        x: Where it lies across.
        y: Where it lies up.
        error: Standard error of y; 0 where there is none.
        kept: Whether the path goes on from it; a point that was given up is hollow.
    """

    label: str
    mark: str
    x: float
    y: float
    error: float = 0.0
    kept: bool = True


def path(title: str, across: str, up: str, points: Sequence[Point]) -> charts.Chart:
    """Points joined in their order: what each step of a compression costs and gains.

    Args:
        title: What it shows.
        across: What x is, with its unit.
        up: What y is.
        points: In order; those that lie on top of one another share their mark.
    """
    go = charts.plotly()
    figure = go.Figure()
    kept = [point for point in points if point.kept]
    figure.add_trace(
        go.Scatter(
            x=[point.x for point in kept],
            y=[point.y for point in kept],
            mode="lines",
            line={"color": charts.BASELINE, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        )
    )
    low, high = _room(points)
    for point in points:
        inside = low <= point.y <= high
        symbol = ("circle" if point.kept else "circle-open") if inside else _OUT[point.y > high]
        colour = charts.PALETTE[0] if point.kept else charts.PALETTE[1]
        figure.add_trace(
            go.Scatter(
                x=[point.x],
                y=[_clipped(point, low, high).y],
                error_y={
                    "type": "data",
                    "array": [point.error if inside else 0.0],
                    "thickness": 1,
                    "width": 3,
                    "color": charts.faded(colour, 0.45),
                },
                mode="markers",
                cliponaxis=False,
                marker={"size": 11, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
                hovertemplate=charts.escaped(f"{point.label}: {number(point.x)}, {point.y:.4g}") + "<extra></extra>",
            )
        )
    _mark(figure, points)
    wide = min((point.x for point in points), default=1) * _LOG_FROM < max((point.x for point in points), default=1)
    figure.update_layout(charts.layout(1, row_height=0, axis_height=46) | {"height": 330})
    figure.update_layout(margin={"l": 4, "r": 16, "t": 14, "b": 46})
    figure.update_xaxes(
        title={"text": charts.escaped(f"{across}{', logarithmic' if wide else ''}"), "standoff": 6},
        type="log" if wide else "linear",
        rangemode="tozero",
        showgrid=True,
        nticks=7,
    )
    figure.update_yaxes(title={"text": charts.escaped(up), "standoff": 8}, showgrid=True, nticks=6, range=[low, high])
    told = [f"{p.label}: {number(p.x)}, {p.y:.4g}{'' if p.kept else ', rolled back'}" for p in points]
    return charts.Chart(title, "; ".join(told), charts.as_plain(figure))


def _mark(figure: Any, points: Sequence[Point]) -> None:
    """A mark at each point: above what was kept, below what was given up; marks that would overlap become one."""
    width = max((point.x for point in points), default=1.0) or 1.0
    low, high = _room(points)
    for kept, where in ((True, "top center"), (False, "bottom center")):
        groups: list[list[Point]] = []
        for point in (_clipped(point, low, high) for point in points if point.kept == kept):
            near = (
                group
                for group in groups
                if abs(group[-1].x - point.x) < _NEAR * width and abs(group[-1].y - point.y) < _NEAR * (high - low)
            )
            group = next(near, None)
            if group is None:
                groups.append([point])
            else:
                group.append(point)
        figure.add_trace(
            charts.plotly().Scatter(
                x=[sum(point.x for point in group) / len(group) for group in groups],
                y=[_at(group, low, high, up=kept) for group in groups],
                text=[charts.escaped(", ".join(point.mark for point in group)) for group in groups],
                mode="text",
                textposition=where,
                cliponaxis=False,
                hoverinfo="skip",
            )
        )


def _clipped(point: Point, low: float, high: float) -> Point:
    return replace(point, y=min(max(point.y, low), high))


def _at(group: Sequence[Point], low: float, high: float, *, up: bool) -> float:
    """Where a mark stands: outside the points it is of, and above one that lies below the plot."""
    values, away = [point.y for point in group], 0.025 * (high - low)
    if not up and min(values) <= low:
        return low + 5 * away
    return max(values) + away if up else min(values) - away


def _room(points: Sequence[Point]) -> tuple[float, float]:
    """From below the lowest to above the highest kept point, errors included; what was given up may lie outside."""
    kept = [point.y + sign * point.error for point in points if point.kept for sign in (-1, 1)] or [0.0, 1.0]
    span = max(max(kept) - min(kept), abs(max(kept)) * 0.01, 1e-6)
    near = [point.y for point in points if min(kept) - 2 * span <= point.y <= max(kept) + 2 * span]
    low, high = min(kept + near), max(kept + near)
    return low - 0.25 * (high - low or span), high + 0.25 * (high - low or span)
