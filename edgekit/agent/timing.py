"""How inferences are timed on a device: standard library only, Python ≥ 3.9.

A warm-up that ends when the pace is steady, samples until the median is known as well as was asked, and what makes a time
doubtful: a clock that jumps, a run that is too short for the clock.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95
# A window of the warm-up holds at least this many inferences and milliseconds; this many windows must agree this well.
_WINDOW_RUNS, _WINDOW_MS = 5, 50.0
_STEADY_WINDOWS, _STEADY = 3, 1.05
# Reading the clock may cost this share of a sample; a shorter inference is timed several at a time.
_CLOCK_SHARE = 0.005
# Clocks are slewed by 0.05 % at most, so a larger step between two looks is a jump.
_JUMP_SECONDS = 0.05
# The interval is worked out each time that there are this much more samples.
_GROWTH = 1.1
_EXACT = 200
Json = dict[str, Any]
Infer = Callable[[], float]


# --- the interval of a median ---------------------------------------------------------------------------------------


def median_rank(count: int, confidence: float = CONFIDENCE) -> int | None:
    """The rank k, from 1, for which the k-th smallest and the k-th largest of `count` values enclose the median.

    The number of values below the true median is binomial with p = 1/2, whatever the distribution; exact for small
    counts, by the normal approximation for large ones. None where there are too few values for the confidence.
    """
    tail = (1 - confidence) / 2
    if count > _EXACT:
        z = statistics.NormalDist().inv_cdf(1 - tail)
        return max(1, math.floor((count - z * math.sqrt(count)) / 2))
    below, rank = 0.0, 0
    while rank < count // 2 + 1:
        below += math.comb(count, rank) * 0.5**count
        if below > tail:
            break
        rank += 1
    return rank or None


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The distribution-free confidence interval of the median of independent values; None for too few of them."""
    rank = median_rank(len(values), confidence)
    if rank is None:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[len(ordered) - rank]


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """Half of that interval's width as a share of the median; None for too few values, or a median that is not above 0."""
    interval = median_interval(values, confidence)
    centre = statistics.median(values) if values else 0.0
    if interval is None or not centre > 0:
        return None
    return (interval[1] - interval[0]) / 2 / centre


# --- clocks ---------------------------------------------------------------------------------------------------------


def system_clocks() -> dict[str, Callable[[], float]]:
    """Clocks that should run as the one that times: the wall clock, and the one that also counts a suspended system."""
    clocks: dict[str, Callable[[], float]] = {"wall clock": time.time}
    if hasattr(time, "CLOCK_BOOTTIME"):
        clocks["suspended"] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    return clocks


class Clocks:
    """Notices when a clock jumps against the one that times the inferences.

    Attributes:
        jumps: Each jump: which clock, after how many seconds, and by how many.
    """

    def __init__(
        self, timer: Callable[[], float] = time.perf_counter, others: Mapping[str, Callable[[], float]] | None = None
    ) -> None:
        self._timer, self._others = timer, dict(system_clocks() if others is None else others)
        self.jumps: list[Json] = []
        self._begin = timer()
        self._ahead = self._read()

    def _read(self) -> dict[str, float]:
        return {name: clock() - self._timer() for name, clock in self._others.items()}

    def look(self) -> None:
        """Compare the clocks, and remember what jumped since the last look."""
        found = self._read()
        for name, ahead in found.items():
            jump = ahead - self._ahead[name]
            if abs(jump) > _JUMP_SECONDS:
                after = round(self._timer() - self._begin, 3)
                self.jumps.append({"clock": name, "after_s": after, "jump_s": round(jump, 3)})
        self._ahead = found


def tick_ms() -> float:
    """What reading the timer twice costs: the time of an inference that takes none."""
    clock = time.perf_counter_ns
    steps = []
    for _ in range(101):
        start = clock()
        steps.append(clock() - start)
    return max(statistics.median(steps), 1) / 1e6


def inner_runs(typical_ms: float, tick: float) -> int:
    """How many inferences one sample holds, so that the clock's own cost is small beside it."""
    return max(1, math.ceil(tick / _CLOCK_SHARE / typical_ms)) if typical_ms > 0 else 1000


# --- the workloads --------------------------------------------------------------------------------------------------


def is_steady(samples: Sequence[float], least: int) -> bool:
    """Whether the medians of the last windows of `samples` agree; each has enough inferences and time in it."""
    medians: list[float] = []
    end = len(samples)
    while len(medians) < _STEADY_WINDOWS:
        begin, spent = end, 0.0
        while begin > 0 and (end - begin < _WINDOW_RUNS or spent < _WINDOW_MS):
            begin -= 1
            spent += samples[begin]
        if end - begin < _WINDOW_RUNS or spent < _WINDOW_MS:
            return False
        medians.append(statistics.median(samples[begin:end]))
        end = begin
    return len(samples) >= least and max(medians) <= _STEADY * min(medians)


def warm_up(infer: Infer, least: int, seconds: float) -> tuple[list[float], bool | None]:
    """The inferences before the timed ones, and whether their pace was steady in the end; None where nobody asked.

    Args:
        infer: One inference; gives its time in ms.
        least: So many at least.
        seconds: No longer than this, once there are `least`; 0 for exactly `least`.
    """
    samples = [infer() for _ in range(least)]
    if seconds <= 0:
        return samples, None
    begin, known = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        samples.append(infer())
        # Looked at after each further window, not after each inference: looking takes time too.
        if sum(samples[known:]) >= _WINDOW_MS or len(samples) - known >= 1000:
            known = len(samples)
            if is_steady(samples, least):
                return samples, True
    return samples, is_steady(samples, least)


def sampler(infer: Infer, driver: Any, inner: int) -> Infer:
    """Gives one sample: the time of an inference in ms, the mean of `inner` of them where one is too short to time."""
    if inner == 1:
        return infer

    def several() -> float:
        invoke = driver.invoke
        start = time.perf_counter_ns()
        for _ in range(inner):
            invoke()
        return (time.perf_counter_ns() - start) / 1e6 / inner

    return several


def _timed(sample: Infer, task: Json, clocks: Clocks) -> tuple[list[float], str]:
    """The samples, and what ended them."""
    samples: list[float] = []
    asked, check = task.get("ci"), task["min_runs"]
    begin = told = time.perf_counter()
    while len(samples) < task["max_runs"]:
        samples.append(sample())
        now = time.perf_counter()
        if now - told > 1:
            told = now
            clocks.look()
        if now - begin >= task["max_seconds"]:
            return samples, "time"
        if len(samples) < task["min_runs"] or now - begin < task["min_seconds"]:
            continue
        if asked is None:
            return samples, "enough"
        if len(samples) >= check:
            check = math.ceil(len(samples) * _GROWTH)
            width = half_width(samples)
            if width is not None and width <= asked:
                return samples, "ci"
    return samples, "runs"


def latency(driver: Any, infer: Infer, task: Json, mark: Callable[[str], None]) -> Json:
    """Repeated inferences on inputs that are set.

    Args:
        driver: Runs the model.
        infer: One inference; gives its time in ms.
        task: `warmup_runs`, `warmup_seconds`, `min_runs`, `max_runs`, `min_seconds`, `max_seconds`, `ci`.
        mark: Told the name of each stage of memory that ends.
    """
    first = infer()
    mark("first run")
    warmup, steady = warm_up(infer, max(0, task["warmup_runs"] - 1), task.get("warmup_seconds", 0.0))
    tick = tick_ms()
    # A driver that asks another device for the time cannot be asked for several at once.
    known = not hasattr(driver, "invoke_ms")
    inner = inner_runs(statistics.median(warmup or [first]), tick) if known else 1
    sample, clocks = sampler(infer, driver, inner), Clocks()
    # A collection in the middle of a sample would be timed with it.
    gc.collect()
    gc.disable()
    begin = time.monotonic()
    samples, ended = _timed(sample, task, clocks)
    end = time.monotonic()
    clocks.look()
    gc.enable()
    mark("steady")
    width, asked = half_width(samples), task.get("ci")
    return {
        "first_inference_ms": first,
        "warmup_ms": warmup,
        "samples_ms": samples,
        "timing": {
            "window": [begin, end],
            "inferences": len(samples) * inner,
            "inner_runs": inner,
            "timer_ns": round(tick * 1e6, 1),
            "warmup_steady": steady,
            "ended_by": ended,
            "confidence": CONFIDENCE,
            "half_width": width,
            "ci": asked,
            "ci_reached": None if asked is None else width is not None and width <= asked,
            "clock_jumps": clocks.jumps,
        },
    }


def sustained(infer: Infer, task: Json, say: Callable[[str], None]) -> Json:
    """Inferences without a pause for `max_seconds`, told as windows: what a device does once it is warm.

    Each window has `t` (time.monotonic at its end), `count`, `p50_ms`, `p90_ms` and `max_ms`.
    """
    seconds = float(task["max_seconds"])
    length = max(1.0, seconds / 180)
    first, windows, clocks = infer(), [], Clocks()
    begin = time.monotonic()
    end = begin
    while end - begin < seconds:
        samples = []
        start = time.monotonic()
        while True:
            samples.append(infer())
            end = time.monotonic()
            if end - start >= min(length, seconds - (start - begin)):
                break
        samples.sort()
        middle, high = statistics.median(samples), samples[min(len(samples) - 1, math.ceil(0.9 * len(samples)) - 1)]
        windows.append({"t": end, "count": len(samples), "p50_ms": middle, "p90_ms": high, "max_ms": samples[-1]})
        clocks.look()
        say(f"{end - begin:.0f} of {seconds:.0f} s: {middle:.3g} ms")
    count = sum(window["count"] for window in windows)
    timing = {"window": [begin, end], "inferences": count, "window_seconds": length, "clock_jumps": clocks.jumps}
    return {"first_inference_ms": first, "windows": windows, "timing": timing}
