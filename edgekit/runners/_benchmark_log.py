"""What LiteRT's `benchmark_model` prints. Pure.

Its figures are averages that the tool made; the samples are not printed. “MB” there is 1,048,576 bytes.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekit.core.measurement import Better, Measurement

_NUMBER = r"([-+]?[0-9.]+(?:e[-+]?\d+)?)"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, Warmup \(avg\): {_NUMBER},"
    rf" Inference \(avg\): {_NUMBER}"
)
_MEMORY = re.compile(
    rf"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): init={_NUMBER} overall={_NUMBER}"
)
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}")
_STATS = re.compile(rf"\b(count|first|curr|min|max|avg|std|p5|median|p95)={_NUMBER}")
_APPLIED = re.compile(r"Explicitly applied (\S+) delegate, and the model graph will be (completely|partially) executed")
_NOT_APPLIED = re.compile(r"Though (\S+) delegate is explicitly applied, the model graph will not be executed")
_XNNPACK = "XNNPACK delegate for CPU"
_MAX_US = 1e12


@dataclass(frozen=True)
class Log:
    """One run of the tool.

    Attributes:
        init_us: From the start of loading to an interpreter that is ready.
        first_us: The first inference.
        warmup_us: Mean of the warm-up's inferences.
        inference_us: Mean of the timed inferences.
        timed: What it says of the timed inferences: `count`, `first`, `min`, `max`, `avg`, `std`, … in microseconds.
        warmup: The same of the warm-up.
        delta_mib: Peak resident memory less what the tool had before it loaded the model.
        delta_init_mib: The same after loading.
        peak_mib: Peak resident memory.
        delegate: The delegate that it says it applied: `GPU`, `NNAPI`, `XNNPACK`.
        delegated: How much of the model the delegate runs: `completely`, `partially`, `not`.
        xnnpack_applied: Whether XNNPACK ran on the CPU; None where it does not say.
    """

    init_us: float
    first_us: float
    warmup_us: float
    inference_us: float
    timed: Mapping[str, float] = field(default_factory=dict)
    warmup: Mapping[str, float] = field(default_factory=dict)
    delta_mib: float | None = None
    delta_init_mib: float | None = None
    peak_mib: float | None = None
    delegate: str | None = None
    delegated: str | None = None
    xnnpack_applied: bool | None = None


def parse(text: str) -> Log | None:
    """A run's figures, or None where it did not come to its end, or prints what cannot be."""
    timings = _TIMINGS.search(text)
    if timings is None:
        return None
    figures = [_value(word) for word in timings.groups()]
    if not all(math.isfinite(figure) and 0 <= figure < _MAX_US for figure in figures) or figures[3] <= 0:
        return None
    # Profiles of operators, which come after the timings, have lines of the same form.
    counted = [stats for line in text[: timings.start()].splitlines() if (stats := _stats(line))]
    memory, peak = _MEMORY.search(text), _PEAK.search(text)
    applied, refused = _APPLIED.search(text), _NOT_APPLIED.search(text)
    return Log(
        init_us=figures[0],
        first_us=figures[1],
        warmup_us=figures[2],
        inference_us=figures[3],
        timed=counted[-1] if counted else {},
        warmup=counted[-2] if len(counted) > 1 else {},
        delta_mib=_value(memory[2]) if memory else None,
        delta_init_mib=_value(memory[1]) if memory else None,
        peak_mib=_value(peak[1]) if peak else None,
        delegate=applied[1] if applied else refused[1] if refused else None,
        delegated=applied[2] if applied else "not" if refused else None,
        xnnpack_applied=_xnnpack(text, applied[1] if applied else ""),
    )


def failure(text: str) -> str:
    """The lines in which a run that failed says why; the last lines where none is marked as an error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("ERROR", "FATAL")) or "Failed to" in line or "error:" in line]
    return "; ".join((marked or lines)[-4:])


def measurements(
    logs: Sequence[Log],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> tuple[Measurement, ...]:
    """Summaries of some runs of one kind, each in a fresh process.

    The latency is the mean over all timed inferences; what each process gives once is the median over the processes.

    Args:
        logs: The runs, at least one.
        before: State of the device before them.
        after: State of the device after them.
        metadata: What else one needs to read the values; what the runs say is added.
    """
    pooled = _pooled(logs)
    told = {
        **metadata,
        "delegate": logs[-1].delegate or metadata.get("delegate"),
        "delegated": logs[-1].delegated,
        "xnnpack_applied": logs[-1].xnnpack_applied,
        "summary": pooled,
        "processes": [{"count": log.timed.get("count"), "mean": log.inference_us / 1000} for log in logs],
    }

    def summary(metric: str, unit: str, better: Better, value: float) -> Measurement:
        return Measurement(
            metric,
            unit,
            better,
            "summary",
            (value,),
            conditions_before=before,
            conditions_after=after,
            metadata=told,
        )

    def middle(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    lower: Better = "smaller"
    found = [summary("latency_ms", "ms", lower, pooled["mean"])]
    for metric, unit, value in (
        ("first_inference_ms", "ms", middle([log.first_us / 1000 for log in logs])),
        ("load_ms", "ms", middle([log.init_us / 1000 for log in logs])),
        ("peak_rss_mib", "MiB", middle([log.peak_mib for log in logs])),
        ("model_delta_mib", "MiB", middle([log.delta_mib for log in logs])),
    ):
        if value is not None:
            found.append(summary(metric, unit, lower, value))
    found.append(summary("throughput_ips", "inferences/s", "larger", 1000 / pooled["mean"]))
    return tuple(found)


def _pooled(logs: Sequence[Log]) -> dict[str, float]:
    """Statistics over all timed inferences in ms, from those of each run: exact but for the tool's own rounding."""
    counts = [log.timed.get("count", 1.0) for log in logs]
    means = [log.inference_us / 1000 for log in logs]
    total = sum(counts)
    mean = sum(count * value for count, value in zip(counts, means, strict=True)) / total
    spreads = [log.timed.get("std", 0.0) / 1000 for log in logs]
    squares = sum(n * (s * s + m * m) for n, s, m in zip(counts, spreads, means, strict=True)) / total
    return {
        "count": total,
        "mean": mean,
        "min": min(log.timed.get("min", log.inference_us) for log in logs) / 1000,
        "max": max(log.timed.get("max", log.inference_us) for log in logs) / 1000,
        "std": math.sqrt(max(0.0, squares - mean * mean)),
    }


def _stats(line: str) -> dict[str, float]:
    if "count=" not in line or "Timings (microseconds)" in line:
        return {}
    found = {key: _value(word) for key, word in _STATS.findall(line)}
    if not all(math.isfinite(value) for value in found.values()) or found.get("count", 0) < 1:
        return {}
    if "avg" not in found and "curr" in found:
        # A single inference is printed without statistics.
        return {"std": 0.0, **dict.fromkeys(("first", "min", "max", "avg"), found["curr"]), **found}
    return found


def _xnnpack(text: str, applied: str) -> bool | None:
    if applied == "XNNPACK" or _XNNPACK in text:
        return True
    return False if re.search(r"Use xnnpack\s*: \[0\]", text) else None


def _value(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
