"""Figures and sentences of a report: how a number is written, what is said of it, and what each figure means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edgekit.core import stats
from edgekit.core.units import format_bytes, format_ms
from edgekit.report import timing
from edgekit.report.model import Group, Report, Row, Score, finite

DASH = "–"
_SAME_SIZE = 0.01
_SAME_SPEED = 0.03
_NOISY_CV = 0.1
_FEW_SAMPLES = 20


@dataclass(frozen=True)
class Column:
    """One column of a table of rows.

    Attributes:
        short: Its name where there is little room.
        name: Its name.
        unit: Unit of the cells; empty where the cells say it.
        cell: The text of a row's cell; a dash where the figure does not exist.
    """

    short: str
    name: str
    unit: str
    cell: Callable[[Row], str]


def number(value: float | None) -> str:
    """Three significant digits; whole numbers from 100 on."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def times(ratio: float | None) -> str:
    """A ratio as `3.6×`."""
    if ratio is None or not math.isfinite(ratio):
        return DASH
    return f"{ratio:.2f}×" if ratio < 1.95 else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:,.0f}×"


def percent(share: float | None) -> str:
    """A share of 1 as `97.2 %`."""
    return DASH if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def moment(created: str) -> str:
    """A time as `2026-11-24 10:15 UTC`; one that is not ISO 8601 as it is."""
    try:
        parsed = datetime.fromisoformat(created)
        return f"{(parsed.astimezone(UTC) if parsed.tzinfo else parsed):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return created


def metric_value(score: Score, value: float | None) -> str:
    """A value of the task's metric: in percent where it is a share of examples."""
    return percent(value) if score.share else number(value)


def metric_change(score: Score | None, change: float | None) -> str:
    """A difference of the task's metric: in percentage points where it is a share of examples."""
    if score is None or change is None:
        return DASH
    if score.share:
        points = round(100 * change, 1) + 0.0
        return f"{points:+.1f} pt".replace("-", "−") if points else "0.0 pt"
    return f"{change:+.3g}".replace("-", "−") if change else "0"


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio in dB; `equal` where there is no noise."""
    if value is None or not math.isfinite(value):
        return DASH
    return "equal" if value >= 999 else f"{value:.1f}"


def cosine(value: float | None) -> str:
    """A cosine similarity with as many digits as tell it from 1."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.6f}" if value > 0.9995 else f"{value:.4f}"


def _statistic(name: str) -> Callable[[Row], str]:
    return lambda row: number(getattr(row.latency, name)) if row.latency else DASH


def _figure(metric: str) -> Callable[[Row], str]:
    return lambda row: number(row.figure(metric))


def _compared(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row.is_baseline:
            return "baseline"
        return times(getattr(row.comparison, name)) if row.comparison else DASH

    return cell


def _scored(cell: Callable[[Score], str]) -> Callable[[Row], str]:
    return lambda row: cell(row.score) if row.score else DASH


def _error(score: Score) -> str:
    if score.standard_error is None:
        return DASH
    return f"± {100 * score.standard_error:.1f} pt" if score.share else f"± {number(score.standard_error)}"


def _compared_metric(row: Row) -> str:
    if row.is_baseline:
        return "baseline"
    return metric_change(row.score, row.comparison.metric_change if row.comparison else None)


SPEED = (
    Column("size", "Size", "", lambda row: format_bytes(row.result.artifact_bytes)),
    Column("down-\nload", "Download", "", lambda row: format_bytes(row.result.download_bytes)),
    Column("times\nsmaller", "Times smaller", "", _compared("size_ratio")),
    Column("load\nms", "Load", "ms", _figure("load_ms")),
    Column("first\nms", "First inference", "ms", _figure("first_inference_ms")),
    Column("p50\nms", "Latency p50", "ms", lambda row: number(row.latency_median)),
    Column("p90\nms", "Latency p90", "ms", _statistic("p90")),
    Column("p99\nms", "Latency p99", "ms", _statistic("p99")),
    Column("times\nfaster", "Times faster", "", _compared("speedup")),
    Column("per\nsecond", "Throughput", "1/s", _figure("throughput_ips")),
    Column("RAM\nMiB", "Peak RAM", "MiB", _figure("peak_rss_mib")),
    Column("of it\nruntime", "Runtime’s baseline", "MiB", _figure("runtime_baseline_mib")),
    Column("of it\nmodel", "Model’s RAM", "MiB", _figure("model_delta_mib")),
)
ACCURACY = (
    Column("metric", "Metric", "", _scored(lambda score: score.metric)),
    Column("source", "Source model", "", _scored(lambda score: metric_value(score, score.source))),
    Column("host", "On the host", "", _scored(lambda score: metric_value(score, score.host))),
    Column("device", "On the device", "", _scored(lambda score: metric_value(score, score.device))),
    Column("standard\nerror", "Standard error", "", _scored(_error)),
    Column("change", "Change", "", _compared_metric),
    Column("examples", "Examples", "", _scored(lambda score: f"{score.examples:,} {score.split}")),
    Column("agree-\nment", "Agreement", "", _scored(lambda score: percent(score.agreement))),
    Column("parity\ndB", "Parity SNR", "dB", lambda row: decibels(row.parity.snr_db if row.parity else None)),
    Column("parity\ncosine", "Parity cosine", "", lambda row: cosine(row.parity.cosine if row.parity else None)),
    Column("parity\nagree", "Parity agreement", "", lambda row: percent(row.parity.agreement if row.parity else None)),
)


def _change(ratio: float | None, same: float, better: str, worse: str, unchanged: str) -> list[str]:
    if ratio is None:
        return []
    if abs(ratio - 1) <= same:
        return [unchanged]
    return [f"{times(ratio)} {better}" if ratio > 1 else f"{times(1 / ratio)} {worse}"]


def _metric_clause(row: Row) -> list[str]:
    score = row.score
    if score is None or score.artifact is None:
        return []
    place = "" if score.device is not None else " (on the host)"
    count = f"{score.examples:,} {score.split} example{'' if score.examples == 1 else 's'}"
    after = metric_value(score, score.artifact)
    if score.source is None:
        return [f"{score.metric} {after}{place} on {count}"]
    return [f"{score.metric} {metric_value(score, score.source)} → {after}{place} on {count}"]


def subject(row: Row) -> str:
    """What was done, in a few words: `static int8 after prune_channels`."""
    done = f" after {', '.join(row.passes)}" if row.passes and "(" not in row.label else ""
    return row.label + done


def headline(group: Group) -> str:
    """What happened, in one plain sentence."""
    row, baseline = group.featured, group.baseline
    emulated = " (emulated)" if group.emulated else ""
    if row.comparison is None or baseline is None:
        parts = [format_bytes(row.result.artifact_bytes)]
        if row.latency_median is not None:
            parts.append(f"{format_ms(row.latency_median)} median latency{emulated}")
        return f"{subject(row)}: {', '.join(parts + _metric_clause(row))}"
    size = _change(row.comparison.size_ratio, _SAME_SIZE, "smaller", "larger", "same size")
    speed = _change(row.comparison.speedup, _SAME_SPEED, "faster", "slower", "as fast")
    parts = size + [text + emulated for text in speed] + _metric_clause(row)
    return f"{subject(row)}: {', '.join(parts)}"


def notes(report: Report) -> list[str]:
    """What a careful reader should know of these figures before believing them."""
    found = []
    for group in report.groups:
        if group.emulated:
            found.append(
                f"{group.device} is an emulator: its times and memory say nothing of real hardware, and are compared"
                " with each other only."
            )
        found += [f"{group.device}, {row.label}: {text}." for row in group.rows for text in _row_notes(row)]
    return found


def _row_notes(row: Row) -> list[str]:
    found = [row.note] if row.note else []
    evidence = row.evidence
    if evidence is not None:
        found += timing.notes(evidence)
    if evidence is not None and evidence.metadata.get("xnnpack_applied") is False:
        found.append("XNNPACK was not applied, so the CPU ran slower than it can")
    if evidence is not None and "unverified" in evidence.metadata:
        found.append(f"unverified: {evidence.metadata['unverified']}")
    if row.result.measured("latency_ms") and row.latency is None and row.latency_median is not None:
        found.append("the tool gives a summary and no samples, so there are no percentiles")
    if row.latency is None:
        return found
    if len(row.samples) < _FEW_SAMPLES:
        found.append(f"only {len(row.samples)} latency samples; p90 and p99 are rough")
    if row.latency.cv is not None and row.latency.cv > _NOISY_CV:
        outliers = len(stats.outliers(row.samples))
        extra = f", {outliers} outliers" if outliers else ""
        found.append(f"noisy latency (standard deviation {percent(row.latency.cv)} of the mean{extra})")
    return found


def conditions(group: Group) -> dict[str, str]:
    """Under what conditions a group was measured; where its rows differ, each value that occurred."""
    gathered: dict[str, list[str]] = {}
    for row in group.rows:
        for name, text in _row_conditions(row).items():
            if text not in gathered.setdefault(name, []):
                gathered[name].append(text)
    return {name: "; ".join(texts) for name, texts in gathered.items()}


def _row_conditions(row: Row) -> dict[str, str]:
    measured = row.evidence
    before: Mapping[str, Any] = measured.conditions_before if measured else {}
    after: Mapping[str, Any] = measured.conditions_after if measured else {}
    facts: Mapping[str, Any] = measured.metadata if measured else {}
    shown = {
        "CPU": _joined(before.get("cpu_model"), _counted(before.get("cores"), "core")),
        "System": _joined(before.get("os"), before.get("kernel")),
        "Governor": _joined(before.get("governor")),
        "Clock": _span(before.get("freq_mhz"), after.get("freq_mhz"), "MHz"),
        "Temperature": _span(before.get("temp_c"), after.get("temp_c"), "°C"),
        "Throttled": _yes_no(after.get("throttled")),
        "Moved": "; ".join(facts.get("moved", ())),
        "Others’ load": _span(after.get("other_cores"), None, "cores"),
        "Energy": timing.energy(row.result),
        "Battery": _span(before.get("battery_pct"), after.get("battery_pct"), "%"),
        "Runtime": " ".join(str(facts[key]) for key in ("runtime", "runtime_version") if facts.get(key)),
        "Threads": _joined(facts.get("threads")),
        "Delegate": _joined(facts.get("delegate"), "XNNPACK" if facts.get("xnnpack_applied") else None),
        "Reached by": _joined(row.result.transport, f"runner {row.result.runner}"),
        "Kind": "emulated" if row.result.emulated else "hardware",
        "Samples": f"{len(row.samples):,} in {_counted(len(measured.processes), 'process', 'es')}"
        if measured and row.samples and measured.processes
        else "",
    }
    return {name: text for name, text in shown.items() if text}


def _yes_no(value: object) -> str:
    return "yes" if value is True else "no" if value is False else ""


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part not in (None, ""))


def _counted(count: object, noun: str, plural: str = "s") -> str:
    return "" if count is None else f"{count} {noun}{'' if count == 1 else plural}"


def _span(before: object, after: object, unit: str) -> str:
    texts = [
        f"{value:.4g}" for value in (before, after) if isinstance(value, int | float) and finite(value) is not None
    ]
    return f"{' → '.join(dict.fromkeys(texts))} {unit}" if texts else ""


DEFINITIONS = {
    "Size": "Bytes of the files that a device needs of this model, in powers of ten (1 MB = 1,000,000 bytes).",
    "Download": "The same files compressed, as a package or an app store would send them.",
    "Times smaller, times faster": "The baseline’s figure divided by this row’s: above 1 is better. The baseline is the row"
    " of the same model and device that is tagged ‘before’, else its float32. Emulated and hardware rows are"
    " never compared.",
    "Load": "From the model’s file to an interpreter that is ready. Median over fresh processes.",
    "First inference": "The first one after loading, which sets up what later ones reuse. Median over fresh processes.",
    "Latency": "Wall time of one inference on one example, after the warm-up. p50 is the median: half of the samples are"
    " faster. p90 and p99: 90 and 99 of 100 are faster.",
    "Throughput": "Inferences a second, one after the other. Median over fresh processes.",
    "Peak RAM": "The most memory that the measuring process held at a time (resident set), in MiB (1,048,576 bytes).",
    "Runtime’s baseline": "What it held before the model was loaded: interpreter and runtime library.",
    "Model’s RAM": "Peak RAM less the runtime’s baseline.",
    "Source model": "The task’s metric of the model as it came, in its own framework.",
    "On the host, on the device": "The same metric of the converted file, run on this computer and on the device.",
    "Standard error": "How far the device’s figure would typically move with other examples of the same kind:"
    " √(p(1 − p)/n). A change of less than two of it may be chance.",
    "Change": "The metric on the device, less the baseline’s. pt = percentage points.",
    "Agreement": "Share of examples where the device’s answer is the source model’s.",
    "Parity": "The converted file against the source model on the same inputs, before any device: signal-to-noise ratio in"
    " dB (20 dB more is ten times closer), cosine similarity, and share of examples with the same answer. The output"
    " that is furthest off counts.",
    "Emulated": "The figures come from an emulator. They show that it works, not how fast it is.",
    DASH: "Not measured, or not defined. Never zero.",
}
"""What each figure means."""
