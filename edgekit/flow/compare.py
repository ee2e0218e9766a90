"""Compare: two results beside each other, metric by metric, with what the samples can tell of the difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.core import stats
from edgekit.core.comparison import ALPHA, FEWEST_PROCESSES, compare_samples, processes_of, within
from edgekit.core.errors import ConfigError, unknown_name
from edgekit.core.measurement import Better, Measurement
from edgekit.core.result import Accuracy, Result
from edgekit.core.stats import Interval
from edgekit.flow.comparable import ALLOWABLE, moved_in, reasons
from edgekit.flow.interleave import TURNS

Verdict = Literal[
    "faster", "slower", "higher", "lower", "smaller", "larger", "no difference", "not comparable"
]  # fmt: skip
SAME: Verdict = "no difference"
NOT_COMPARABLE: Verdict = "not comparable"
_WORDS: dict[str, tuple[Verdict, Verdict]] = {"ms": ("faster", "slower"), "MiB": ("smaller", "larger")}
_WORDS |= {"bytes": ("smaller", "larger")}
_APART = "measured one after the other: what the device did differently meanwhile is part of the difference"


@dataclass(frozen=True)
class Side:
    """Which result stands on one side of a comparison."""

    id: str
    run: str
    created: str
    model: str
    backend: str
    precision: str
    device: str
    emulated: bool
    artifact_digest: str

    @property
    def label(self) -> str:
        """Model, backend and precision."""
        return f"{self.model} ({self.backend}, {self.precision})"


@dataclass(frozen=True)
class Row:
    """One metric of B beside A's.

    Attributes:
        metric: Its name.
        unit: Its unit; empty for a task's metric.
        better: Which direction is an improvement.
        a: The figure of A: the median over processes, or a count, or a score.
        b: The figure of B.
        verdict: What B is, against A.
        improved: Whether that is an improvement; None where there is no difference or none is better.
        ratio: B over A with its interval; None where nothing is known of it.
        difference: B less A with its interval, for scores.
        p: How often equal things would look as different as this; None for counts.
        test: Which test gave it; `exact` for counts.
        detectable: The smallest ratio above 1 that would have been found in 9 of 10 comparisons.
        reason: Why it is not comparable.
    """

    metric: str
    unit: str
    better: Better
    a: float | None
    b: float | None
    verdict: Verdict
    improved: bool | None = None
    ratio: Interval | None = None
    difference: Interval | None = None
    p: float | None = None
    test: str = ""
    detectable: float | None = None
    reason: str = ""

    @property
    def blind_to(self) -> str:
        """Of "no difference": how large one would have been found; empty for every other verdict, and for counts."""
        if self.verdict != SAME or self.detectable is None:
            return ""
        if self.detectable > 2:
            return "too noisy: not even twice as much would have been found for certain"
        return f"{100 * (self.detectable - 1):.2g} % would have been found"


@dataclass(frozen=True)
class Comparison:
    """B beside A.

    Attributes:
        a: What is compared with.
        b: What is judged.
        alpha: How often equal things may be called different, for each metric.
        in_turns: Whether both were measured in the same rounds.
        rows: Speed, memory, size, accuracy.
        notes: What a reader has to know.
    """

    a: Side
    b: Side
    alpha: float
    in_turns: bool
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def row(self, metric: str) -> Row | None:
        """The row of a metric, or None."""
        return next((row for row in self.rows if row.metric == metric), None)


def compare(a: Result, b: Result, *, alpha: float = ALPHA, allow: Collection[str] = ()) -> Comparison:
    """B beside A.

    Args:
        a: What is compared with.
        b: What is judged.
        alpha: How often equal things may be called different.
        allow: Reasons against comparing that are meant, of `comparable.ALLOWABLE`.

    Raises:
        ConfigError: `alpha` is out of range, or a word in `allow` is unknown.
    """
    if not 0 < alpha < 0.5:
        raise ConfigError(f"A level of {alpha} is not between 0 and 0.5.", "--alpha 0.01")
    for word in allow:
        if word not in ALLOWABLE:
            raise unknown_name("reason that can be allowed", word, ALLOWABLE, "edgekit compare --help")
    rows = (*_measured(a, b, alpha, allow), *_sizes(a, b), *_scores(a, b, alpha))
    latencies = [a.measured("latency_ms"), b.measured("latency_ms")]
    in_turns = None not in latencies and _paired(*[found for found in latencies if found is not None])
    return Comparison(_side(a), _side(b), alpha, in_turns, rows, tuple(_notes(a, b, in_turns)))


def in_run(results: Sequence[Result], *, alpha: float = ALPHA) -> list[Comparison]:
    """Each result beside the first one of its device, as `bench` of several artifacts shows them.

    Only what was measured in the same rounds is compared.
    """
    firsts: dict[str, Result] = {}
    found = []
    for result in results:
        first = firsts.setdefault(result.device, result)
        if first is not result and _rounds(first) is not None and _rounds(first) == _rounds(result):
            # Who puts artifacts of two runtimes side by side on one device asks which of them is faster.
            found.append(compare(first, result, alpha=alpha, allow=("runtime", "delegate")))
    return found


def _rounds(result: Result) -> object:
    latency = result.measured("latency_ms")
    return latency.metadata.get(TURNS) if latency else None


def matched(a: Sequence[Result], b: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Which result of one run is compared with which of another.

    One on each side are a pair; of several, those of the same model, device, backend and precision, each once.

    Raises:
        ConfigError: Nothing fits.
    """
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]

    def key(result: Result) -> tuple[str, ...]:
        return (result.model, result.device, result.backend, result.precision)

    pairs = []
    for result in b:
        fits = [other for other in a if key(other) == key(result)]
        if len(fits) == 1 and sum(key(other) == key(result) for other in b) == 1:
            pairs.append((fits[0], result))
    if not pairs:
        listing = "; ".join(
            f"{side}: " + ", ".join(f"{r.id[:8]} {r.model} {r.backend} {r.precision} on {r.device}" for r in results)
            for side, results in (("A", a), ("B", b))
        )
        raise ConfigError(
            f"No result of one has exactly one of the same model, device, backend and precision in the other. {listing}.",
            "edgekit compare RESULT RESULT    (results by the first characters of their ids)",
        )
    return pairs


def _side(result: Result) -> Side:
    return Side(
        result.id,
        result.run,
        result.created,
        result.model,
        result.backend,
        result.precision,
        result.device,
        result.emulated,
        result.artifact_digest,
    )


def _measured(a: Result, b: Result, alpha: float, allow: Collection[str]) -> Iterator[Row]:
    for metric in dict.fromkeys(m.metric for result in (a, b) for m in result.measurements):
        first, second = a.measured(metric), b.measured(metric)
        known = first or second
        if known is None:
            continue
        row = Row(metric, known.unit, known.better, _median(first), _median(second), NOT_COMPARABLE)
        if first is None or second is None:
            yield replace(row, reason=f"{'A' if first is None else 'B'} has no {metric}")
            continue
        found = reasons(a, b, first, second, in_turns=_paired(first, second))
        against = [reason.text for reason in found if reason.code not in allow]
        # The ratio is shown even where it proves nothing: the reason stands beside it.
        yield replace(row, reason="; ".join(against)) if against else _tested(row, first, second, alpha)


def _median(measured: Measurement | None) -> float | None:
    values = [value for value in measured.values if math.isfinite(value)] if measured else []
    return statistics.median(values) if values else None


def _paired(first: Measurement, second: Measurement) -> bool:
    turns = first.metadata.get(TURNS)
    return turns is not None and turns == second.metadata.get(TURNS) and len(first.processes) == len(second.processes)


def _tested(row: Row, first: Measurement, second: Measurement, alpha: float) -> Row:
    if row.unit == "MiB" and all(len(set(measured.values)) == 1 for measured in (first, second)):
        # Memory comes in pages: that nothing varies is how it is, and no test is needed.
        return _counted(row)
    sides = []
    for side, measured in (("A", first), ("B", second)):
        wrong = sum(not math.isfinite(value) for value in measured.values)
        if wrong:
            return replace(row, reason=f"{side}: {wrong} of {len(measured.values)} samples are not finite numbers")
        try:
            # A measurement that does not say which process gave what is taken for one process.
            sides.append(processes_of(measured.values, measured.processes or (len(measured.values),)))
        except ValueError as error:
            return replace(row, reason=f"{side}: {error}")
    try:
        found = compare_samples(sides[0], sides[1], paired=_paired(first, second), alpha=alpha)
    except ValueError as error:
        return replace(row, reason=str(error))
    row = replace(row, ratio=found.ratio, p=found.p, test=found.test, detectable=found.detectable)
    return _judged(row, found.ratio.estimate if found.different else 1.0)


def _judged(row: Row, ratio: float) -> Row:
    """The row with the word for a ratio that is more than chance, or for none."""
    if ratio == 1:
        return replace(row, verdict=SAME)
    less, more = _WORDS.get(row.unit, ("lower", "higher"))
    improved = None if row.better == "neither" else (ratio < 1) == (row.better == "smaller")
    return replace(row, verdict=less if ratio < 1 else more, improved=improved)


def _counted(row: Row) -> Row:
    if row.a is not None and row.a == row.b:
        return replace(row, ratio=Interval(1.0, 1.0, 1.0, 1.0), verdict=SAME, test="exact")
    if row.a is None or row.b is None or row.a <= 0:
        return replace(row, reason="A has no figure above 0 to divide by")
    ratio = row.b / row.a
    return _judged(replace(row, ratio=Interval(ratio, ratio, ratio, 1.0), test="exact"), ratio)


def _sizes(a: Result, b: Result) -> Iterator[Row]:
    for metric in ("artifact_bytes", "download_bytes"):
        before, after = getattr(a, metric), getattr(b, metric)
        # A result that was not made here may not know its download's size: 0, which no file has.
        if before and after:
            yield _counted(Row(metric, "bytes", "smaller", float(before), float(after), NOT_COMPARABLE))


def _scores(a: Result, b: Result, alpha: float) -> Iterator[Row]:
    first, second = a.accuracy, b.accuracy
    if first is None and second is None:
        return
    known = first or second
    if known is None:
        return
    row = Row(known.metric, "", known.direction, None, None, NOT_COMPARABLE)
    if first is None or second is None:
        yield replace(row, reason=f"{'A' if first is None else 'B'} has no {known.metric}")
        return
    place = "device" if first.device and second.device else "host"
    scores = [getattr(score, place).get(score.metric) for score in (first, second)]
    row = replace(row, a=scores[0], b=scores[1])
    differing = _differing_tasks(first, second)
    if differing or None in scores:
        yield replace(row, reason=differing or f"the {place} of one has no {row.metric}")
        return
    yield _scored(row, [_error(score, place) for score in (first, second)], alpha)


def _error(score: Accuracy, place: str) -> float | None:
    return score.standard_error if place == "device" else score.host_standard_error


def _differing_tasks(first: Accuracy, second: Accuracy) -> str:
    for name in ("metric", "split", "examples"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            return f"{name} {one} against {other}"
    return ""


def _scored(row: Row, errors: Sequence[float | None], alpha: float) -> Row:
    """By the standard errors of two shares: wide, for it is not known which examples each got wrong."""
    if row.a is None or row.b is None or not (math.isfinite(row.a) and math.isfinite(row.b)):
        return replace(row, reason="the score is not a finite number")
    change = row.b - row.a
    if None in errors:
        if change == 0:
            return replace(row, verdict=SAME, test="exact")
        return replace(row, reason=f"{row.metric} is no share of examples, so its standard error is not known")
    error = math.hypot(*(value for value in errors if value is not None))
    reach = statistics.NormalDist().inv_cdf(1 - alpha / 2) * error
    certain = 1.0 if change == 0 else 0.0
    p = 2 * statistics.NormalDist().cdf(-abs(change) / error) if error else certain
    interval = Interval(change, change - reach, change + reach, 1 - alpha)
    row = replace(row, difference=interval, p=p, test="standard errors")
    # Only the side of 1 matters to the word.
    return _judged(row, 1.0 if p > alpha or change == 0 else 2.0 if change > 0 else 0.5)


def _known_within(measured: Measurement) -> float | None:
    """Half the width of the median's interval as a share of it; None where the samples do not give one."""
    if measured.kind != "samples" or sum(measured.processes) != len(measured.values):
        return None
    processes = processes_of(measured.values, measured.processes)
    if len(processes) < FEWEST_PROCESSES or not all(math.isfinite(v) and v > 0 for v in measured.values):
        return None
    return within(processes)


def _notes(a: Result, b: Result, in_turns: bool) -> Iterator[str]:
    latencies = [("A", a.measured("latency_ms")), ("B", b.measured("latency_ms"))]
    if not in_turns and all(measured is not None for _, measured in latencies):
        yield f"{_APART}; edgekit bench A B takes turns"
    for side, measured in latencies:
        if measured is None:
            continue
        if in_turns:
            yield from (f"{side}: {text}; in turns that falls on both alike" for text in moved_in(measured))
        wild = len(stats.outliers([value for value in measured.values if math.isfinite(value)]))
        if wild:
            yield f"{side}: {wild} of {len(measured.values)} latency samples are outliers; none is left out"
        known = _known_within(measured)
        if known is not None:
            yield f"{side}: its median latency is known to {100 * known:.2g} % (95 % interval over fresh processes)"
    if a.artifact_digest == b.artifact_digest:
        yield "A and B are the same artifact (A/A)"
    if a.emulated and b.emulated:
        yield "both were emulated: this says nothing of hardware"
