"""The plots of a sustained run: latency, and the processor's temperature, against time."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.report.charts import Chart, as_plain, escaped, layout, plotly
from edgekit.report.model import Group, Row
from edgekit.report.words import number


def charts(group: Group, palette: dict[str, str]) -> list[Chart]:
    """Latency against time and, where the device tells it, temperature against time; none where nothing was sustained."""
    latency = [(row, series) for row in group.rows if (series := _series(row, None))]
    heat = [(row, series) for row in group.rows if (series := _series(row, "temp_c"))]
    emulated = ", emulated" if group.emulated else ""
    made = (
        _lines(f"Latency against time, median of each window{emulated}", "ms", latency, palette),
        _lines(f"Temperature against time{emulated}", "°C", heat, palette),
    )
    return [chart for chart in made if chart]


def _series(row: Row, key: str | None) -> list[tuple[float, float]]:
    """Minutes and values of a row's sustained run; without a key, the latency."""
    measured = row.result.measured("sustained_ms")
    if measured is None:
        return []
    series = measured.metadata.get("series", {})
    values = list(measured.values) if key is None else series.get(key, ())
    pairs = zip(series.get("seconds", ()), values, strict=False)
    return [(seconds / 60, value) for seconds, value in pairs if value is not None]


def _lines(
    title: str, unit: str, rows: Sequence[tuple[Row, list[tuple[float, float]]]], palette: dict[str, str]
) -> Chart | None:
    if not rows:
        return None
    figure = plotly().Figure()
    for row, series in rows:
        figure.add_scatter(
            x=[minutes for minutes, _ in series],
            y=[value for _, value in series],
            mode="lines",
            name=escaped(row.label),
            line={"color": palette[row.label], "width": 1.5},
            hovertemplate=f"%{{x:.1f}} min: %{{y:.3g}} {unit}<extra></extra>",
        )
    figure.update_layout(layout(1, row_height=240, axis_height=46) | {"showlegend": len(rows) > 1})
    figure.update_xaxes(title={"text": "minutes", "standoff": 6}, ticks="", nticks=6)
    figure.update_yaxes(title={"text": unit}, showgrid=True, nticks=5, rangemode="tozero" if unit == "ms" else "normal")
    told = [f"{row.label}: from {number(series[0][1])} to {number(series[-1][1])} {unit}" for row, series in rows]
    return Chart(title, "; ".join(told), as_plain(figure))
