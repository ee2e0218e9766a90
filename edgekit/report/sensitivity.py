"""Sensitivity shown: a table for the terminal, a JSON document, and a page with plots that needs nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit._version import __version__
from edgekit.core import schema
from edgekit.core.files import write_atomic
from edgekit.core.stats import share_error
from edgekit.core.units import format_bytes
from edgekit.flow.sensitivity import Effect, Sensitivity
from edgekit.report import charts
from edgekit.report.html import page
from edgekit.report.words import DASH, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_DB = 120.0
DEFINITIONS = {
    "Loss of agreement": "Share of examples whose largest output is another one than the float model's.",
    "Metric": "How much worse the task's own metric is; less than two standard errors may be chance.",
    "SNR": "The outputs' signal-to-noise ratio against the float model's, in dB: 20 dB more is ten times closer. It tells"
    " layers apart that change no answer.",
    "Saved": "Bytes of the layer's weights against float32, with scales and palettes counted.",
}
"""What each figure means."""


def document(found: Sensitivity, overrides: Mapping[str, str] | None) -> dict[str, Any]:
    """As JSON shows it: one entry a layer and precision, the most sensitive layer first.

    Args:
        found: What was measured.
        overrides: Mixed precision chosen from it; None where nobody asked.
    """
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "kind": "sensitivity",
        "model": found.model,
        "judged_on": found.judged_on,
        "examples": found.examples,
        "calibrated_on": found.calibrated_on or None,
        "metric": found.metric or None,
        "direction": found.direction,
        "before": dict(found.before),
        "standard_error": share_error(found.before.get(found.metric), found.examples),
        "effects": [
            schema.to_plain(effect) | {"metric_drop": found.metric_drop(effect), "loss": found.loss(effect)}
            for effect in _ordered(found)
        ],
        "skipped": dict(found.skipped),
        "overrides": dict(overrides) if overrides is not None else None,
    }


def headline(found: Sensitivity) -> str:
    """What was judged, by what."""
    parts = [f"judged on {found.examples:,} {found.judged_on} examples"]
    if found.metric:
        value = found.before[found.metric]
        error = share_error(value, found.examples)
        parts.append(f"{found.metric} of the float model {value:.4g}{f' ± {error:.2g}' if error is not None else ''}")
    if found.calibrated_on:
        parts.append(f"ranges of activations from the {found.calibrated_on} examples")
    return f"One layer quantized at a time: {', '.join(parts)}."


def renderables(found: Sensitivity) -> list[RenderableType]:
    """For a terminal."""
    from rich.table import Table
    from rich.text import Text

    columns, rows = _table(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if place < 2 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    skipped = [Text(f"not tried: {path} {why}") for path, why in found.skipped.items()]
    return [Text(headline(found)), table, *skipped]


def write_html(found: Sensitivity, name: str, overrides: Mapping[str, str] | None, path: Path) -> None:
    """Write the page.

    Args:
        found: What was measured.
        name: The model's name.
        overrides: Mixed precision chosen from it; None where nobody asked.
        path: The file.

    Raises:
        MissingExtraError: The extra `report` is not installed.
    """
    columns, rows = _table(found)
    made = _charts(found)
    shown = [
        {"id": f"chart-{number_}", "title": chart.title, "summary": chart.summary, "figure": chart.figure}
        for number_, chart in enumerate(made, 1)
    ]
    text = page(
        "sensitivity.html.j2",
        title=name,
        lead=headline(found),
        shown=shown,
        charts={one["id"]: one["figure"] for one in shown},
        columns=columns,
        rows=rows,
        overrides=recipe_of(overrides) if overrides else "",
        skipped=dict(found.skipped),
        definitions=DEFINITIONS,
        version=__version__,
    )
    write_atomic(path, text)


def recipe_of(overrides: Mapping[str, str]) -> str:
    """A precision for each layer as a recipe writes it: the commonest as the scheme, the others as overrides."""
    common = Counter(overrides.values()).most_common(1)[0][0]
    lines = ["lowering:"]
    if common != "float32":
        lines.append(f"  quantize: {{scheme: {common}}}")
    others = {path: scheme for path, scheme in overrides.items() if scheme != common}
    if others:
        lines.append("  overrides:")
        lines += [f"    {json.dumps(path)}: {scheme}" for path, scheme in others.items()]
    return "\n".join(lines) if len(lines) > 1 else "lowering: {}"


def _ordered(found: Sensitivity) -> list[Effect]:
    place = {path: number_ for number_, path in enumerate(found.most_sensitive_first())}
    return sorted(found.effects, key=lambda effect: place[effect.layer])


def _table(found: Sensitivity) -> tuple[list[str], list[list[str]]]:
    metric = [f"{found.metric} lost"] if found.metric else []
    columns = ["layer", "precision", "weights", "saved", "agreement lost", *metric, "SNR dB", "cosine"]
    rows, before = [], ""
    for effect in _ordered(found):
        lost = percent(None if effect.agreement is None else 1 - effect.agreement)
        drop = found.metric_drop(effect)
        cells = [
            effect.layer if effect.layer != before else "",
            effect.precision,
            f"{effect.weights:,}",
            format_bytes(effect.bytes_saved),
            lost,
            *([DASH if drop is None else f"{drop:+.4f}"] if found.metric else []),
            "equal" if effect.snr_db >= 999 else f"{effect.snr_db:.1f}",
            f"{effect.cosine:.5f}",
        ]
        before = effect.layer
        rows.append(cells)
    return columns, rows


def _charts(found: Sensitivity) -> list[charts.Chart]:
    rows = found.most_sensitive_first()
    snr: dict[str, dict[str, float]] = {}
    lost: dict[str, dict[str, float]] = {}
    for effect in found.effects:
        snr.setdefault(effect.precision, {})[effect.layer] = min(effect.snr_db, _MOST_DB)
        lost.setdefault(effect.precision, {})[effect.layer] = 100 * found.loss(effect)
    what = "agreement lost, %" if any(effect.agreement is not None for effect in found.effects) else "loss × 100"
    return [
        charts.dots("Signal-to-noise ratio by layer (left is worse)", "SNR, dB", rows, snr),
        charts.dots("Loss by layer (right is worse)", what, rows, lost),
    ]
