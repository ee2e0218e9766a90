"""A report as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit._version import __version__
from edgekit.core.extras import require
from edgekit.core.files import write_atomic
from edgekit.core.model import PassRecord
from edgekit.core.units import format_bytes, format_duration
from edgekit.report import charts, sustained
from edgekit.report.model import Group, Report, Row
from edgekit.report.words import (
    ACCURACY,
    DASH,
    DEFINITIONS,
    SPEED,
    Column,
    conditions,
    headline,
    metric_change,
    metric_value,
    moment,
    notes,
    number,
    times,
)

_TEMPLATES = Path(__file__).parent / "templates"
_SAME = 0.02


def render(report: Report) -> str:
    """The report as the text of one HTML page.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    return page("report.html.j2", **_context(report))


def page(template: str, **context: Any) -> str:
    """One self-contained page: a template of this package, with plotly's source for its plots.

    Args:
        template: The name of its file.
        context: What it shows.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    jinja2 = require("jinja2", "report", "The HTML report")
    source = charts.plotly_source()
    # The template's name ends in .j2, from which jinja would not tell that it is HTML: escaping is always on.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template(template).render(**context, plotly_source=source)
    return text


def write(report: Report, path: Path) -> None:
    """Write the page to a file.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    write_atomic(path, render(report))


def _context(report: Report) -> dict[str, Any]:
    palette = charts.colours(report)
    groups = [_group(group, index, palette) for index, group in enumerate(report.groups)]
    return {
        "title": report.title,
        "groups": groups,
        "charts": {chart["id"]: chart["figure"] for group in groups for chart in group["charts"]},
        "tables": [_table(report, "Speed and memory", SPEED), _table(report, "Accuracy and parity", ACCURACY)],
        "histories": _histories(report),
        "made": [_made(group, row) for group in report.groups for row in group.rows],
        "notes": notes(report),
        "definitions": DEFINITIONS,
        "runs": report.runs,
        "commands": report.commands,
        "moment": moment(report.last),
        "version": __version__,
        "dash": DASH,
    }


def _group(group: Group, index: int, palette: Mapping[str, str]) -> dict[str, Any]:
    colours = dict(palette)
    small = charts.bars(group, colours)
    plots = (charts.latency(group, colours), charts.tradeoff(group, colours), *sustained.charts(group, colours))
    large = [chart for chart in plots if chart]
    return {
        "id": f"group-{index + 1}",
        "model": group.model,
        "device": group.device,
        "targets": ", ".join(group.targets),
        "emulated": group.emulated,
        "headline": headline(group),
        "tiles": _tiles(group),
        "released": [row.label for row in group.rows if row.result.released][-1:],
        "against": group.baseline.label if group.baseline else "",
        "conditions": conditions(group),
        "charts": [
            {
                "id": f"chart-{index + 1}-{number_ + 1}",
                "title": chart.title,
                "summary": chart.summary,
                "large": chart in large,
                "figure": chart.figure,
            }
            for number_, chart in enumerate(small + large)
        ],
    }


def _tiles(group: Group) -> list[dict[str, str]]:
    """The featured row's four figures, each with the baseline's and what became of it."""
    row, baseline = group.featured, group.baseline
    compared = row.comparison
    tiles = [
        _tile(
            "Size",
            format_bytes(row.result.artifact_bytes),
            format_bytes(baseline.result.artifact_bytes) if baseline else "",
            compared.size_ratio if compared else None,
            ("smaller", "larger"),
        ),
        _tile(
            "Median latency",
            _with_unit(row.latency_median, "ms"),
            _with_unit(baseline.latency_median, "ms") if baseline else "",
            compared.speedup if compared else None,
            ("faster", "slower"),
        ),
        _tile(
            "Peak RAM",
            _with_unit(row.figure("peak_rss_mib"), "MiB"),
            _with_unit(baseline.figure("peak_rss_mib"), "MiB") if baseline else "",
            compared.memory_ratio if compared else None,
            ("less", "more"),
            as_share=True,
        ),
    ]
    return [*tiles, *_metric_tile(row)]


def _tile(
    name: str, value: str, before: str, ratio: float | None, words: tuple[str, str], *, as_share: bool = False
) -> dict[str, str]:
    """One figure; `as_share` says a change as "35 % less" instead of as a ratio."""
    change, mood = "", "same"
    if ratio is not None and abs(ratio - 1) <= _SAME:
        change = "unchanged"
    elif ratio is not None:
        better = ratio > 1
        much = f"{abs(1 - 1 / ratio) * 100:.0f} %" if as_share else times(ratio if better else 1 / ratio)
        change = f"{much} {words[0] if better else words[1]}"
        mood = "better" if better else "worse"
    return {"name": name, "value": value, "before": f"was {before}" if before else "", "change": change, "mood": mood}


def _metric_tile(row: Row) -> list[dict[str, str]]:
    score = row.score
    if score is None or score.artifact is None:
        return []
    before, change, mood = "", "", "same"
    if score.source is not None:
        difference = score.artifact - score.source
        error = score.standard_error or 0.0
        before = f"source {metric_value(score, score.source)}"
        change = metric_change(score, difference)
        larger = row.result.accuracy is None or row.result.accuracy.direction == "larger"
        if abs(difference) <= 2 * error:
            change = f"{change}, within chance" if difference else "unchanged"
        else:
            mood = "better" if (difference > 0) == larger else "worse"
    place = "" if score.device is not None else " on the host"
    name = f"{score.metric}{place}"
    return [
        {"name": name, "value": metric_value(score, score.artifact), "before": before, "change": change, "mood": mood}
    ]


def _with_unit(value: float | None, unit: str) -> str:
    return DASH if value is None else f"{number(value)} {unit}"


def _table(report: Report, title: str, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "title": title,
        "columns": [{"name": column.name, "unit": column.unit} for column in columns],
        "groups": [
            {
                "title": f"{group.model} on {group.device}",
                "targets": ", ".join(group.targets),
                "emulated": group.emulated,
                "rows": [
                    {"label": row.label, "note": row.note, "cells": [column.cell(row) for column in columns]}
                    for row in group.rows
                ],
            }
            for group in report.groups
        ],
    }


def _made(group: Group, row: Row) -> dict[str, str]:
    result, made = row.result, row.result.conversion
    return {
        "label": row.label,
        "device": group.device,
        "backend": result.backend,
        "precision": result.precision,
        "digest": result.artifact_digest[:12],
        "seconds": "from the cache" if made and made.cached else format_duration(made.seconds) if made else DASH,
        "memory": f"{number(made.peak_rss_mib)} MiB" if made else DASH,
        "sent": format_bytes(result.bytes_sent),
        "steps": ", ".join(f"{name} {_unbroken(seconds)}" for name, seconds in result.seconds.items()) or DASH,
        "released": "in use" if result.released else DASH,
    }


def _unbroken(seconds: float) -> str:
    return format_duration(seconds).replace(" ", "\N{NO-BREAK SPACE}")


def _histories(report: Report) -> list[dict[str, Any]]:
    """The histories of passes, each once, with the rows that share it."""
    gathered: list[tuple[tuple[PassRecord, ...], list[str], Row]] = []
    for group in report.groups:
        for row in group.rows:
            if not row.result.history:
                continue
            name = row.label if len(report.groups) == 1 else f"{row.label} on {group.device}"
            known = next((labels for history, labels, _ in gathered if history == row.result.history), None)
            if known is None:
                gathered.append((row.result.history, [name], row))
            else:
                known.append(name)
    return [
        {"labels": ", ".join(labels), "passes": [_pass(record, row) for record in history]}
        for history, labels, row in gathered
    ]


def _pass(record: PassRecord, row: Row) -> dict[str, str]:
    names = list(dict.fromkeys([*record.metrics_before, *record.metrics_after]))
    preferred = row.result.accuracy.metric if row.result.accuracy else ""
    metric = preferred if preferred in names else next(iter(names), "")
    return {
        "name": record.name,
        "options": flow(record.options) if record.options else DASH,
        "modified": "yes" if record.modified else "nothing to change" if record.kept else "rolled back",
        "parameters": _arrow(_count(record.parameters_before), _count(record.parameters_after)),
        "metric": metric or DASH,
        "change": _arrow(
            *(
                _pass_metric(row, metric, metrics.get(metric))
                for metrics in (record.metrics_before, record.metrics_after)
            )
        ),
        "notes": "; ".join(record.notes) or DASH,
    }


def _pass_metric(row: Row, metric: str, value: float | None) -> str:
    if value is not None and row.score and row.score.metric == metric:
        return metric_value(row.score, value)
    return number(value)


def _count(parameters: int) -> str:
    return f"{parameters:,}" if parameters else DASH


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def flow(value: Any) -> str:
    """Options as a recipe writes them on one line, without the outer braces."""
    return ", ".join(f"{key}: {_flow(item)}" for key, item in value.items())


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{flow(value)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_flow(item) for item in value)}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
