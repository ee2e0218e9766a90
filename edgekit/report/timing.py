"""What is said of how a row was timed: what moved, what the clock and the warm-up were like, and the energy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.core import stats
from edgekit.core.measurement import Measurement
from edgekit.core.result import Result

_SLOW_FIRST = 1.5
"""A first timed sample this many times the median, and an outlier, is the warm-up's fault."""


def notes(latency: Measurement) -> list[str]:
    """What a careful reader should know of how these samples were made."""
    facts = latency.metadata
    found = [f"conditions moved while it was measured: {reason}" for reason in facts.get("moved", ())]
    if not found and latency.conditions_after.get("throttled"):
        found.append("the device throttled while it was measured, so it would be faster when cool")
    timings = [one for one in facts.get("timing", ()) if isinstance(one, Mapping)]
    return [*found, *_timing(timings), *_slow_first(latency), *_memory(facts)]


def _timing(timings: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    missed = [one for one in timings if one.get("ci_reached") is False]
    if missed:
        worst = max((one.get("half_width") or math.inf for one in missed), default=math.inf)
        reached = f"± {100 * worst:.1f} %" if math.isfinite(worst) else "unknown: too few samples"
        found.append(
            f"the median is not as sure as was asked (± {100 * missed[0]['ci']:g} %; it is {reached}): --max-seconds"
        )
    if any(one.get("warmup_steady") is False for one in timings):
        found.append("the warm-up ended at its time limit, before the pace was steady")
    inner = max((one.get("inner_runs", 1) for one in timings), default=1)
    if inner > 1:
        found.append(f"one inference is too short for the clock: each sample is the mean of {inner} of them")
    jumps = [jump for one in timings for jump in one.get("clock_jumps", ())]
    if jumps:
        first = jumps[0]
        what = "the device was suspended" if first["clock"] == "suspended" else "the wall clock jumped"
        found.append(f"{what} while it was measured ({first['jump_s']:+g} s); times are of a clock that does not jump")
    return found


def _slow_first(latency: Measurement) -> list[str]:
    """Processes whose first timed sample is an outlier: not a property of the model, and not dropped."""
    begin, slow = 0, 0
    for count in latency.processes:
        samples = latency.values[begin : begin + count]
        begin += count
        if len(samples) >= 3 and all(map(math.isfinite, samples)):
            late = samples[0] > _SLOW_FIRST * statistics.median(samples)
            slow += late and 0 in stats.outliers(samples)
    if not slow:
        return []
    return [
        f"the first timed run was slow in {slow} of {len(latency.processes)} processes: a longer warm-up may be due"
    ]


def _memory(facts: Mapping[str, Any]) -> list[str]:
    if facts.get("clear_refs") is False:
        return [
            "the kernel does not let the peak be set back, so peak RAM is of the process's whole life: an upper bound"
        ]
    return []


def energy(result: Result) -> str:
    """Energy an inference above idle with its error; why there is none; nothing where nobody could have told."""
    measured, latency = result.measured("energy_mj"), result.measured("latency_ms")
    if measured is None or not measured.values:
        return str(latency.metadata.get("energy", "")) if latency is not None else ""
    errors = [one["error_mj"] for one in measured.metadata["by_process"]]
    error = math.sqrt(sum(value**2 for value in errors)) / len(errors)
    value = statistics.fmean(measured.values)
    return f"{value:.3g} ± {error:.2g} mJ an inference above idle ({measured.metadata['instrument']}, unverified)"
