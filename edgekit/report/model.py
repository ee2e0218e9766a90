"""Report: what all renderers show: rows of results, grouped by model and device, each with its baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekit.core import stats
from edgekit.core.artifact import Parity
from edgekit.core.errors import ConfigError
from edgekit.core.measurement import Measurement
from edgekit.core.result import Result

PRECISIONS = {
    "float32": "float32",
    "float16": "float16",
    "dynamic_wi8_afp32": "dynamic int8",
    "weight_only_wi8_afp32": "int8 weights",
    "static_wi8_ai8": "static int8",
    "weight_only_wi4_afp32": "int4 weights",
    "palette_4": "4-bit palette",
    "palette_2": "2-bit palette",
    "palette_1": "1-bit palette",
}
"""Names of precisions as people say them."""


@dataclass(frozen=True)
class Comparison:
    """A row beside its baseline. A ratio above 1 is an improvement; None where one of both was not measured.

    Attributes:
        baseline: Id of the baseline's result.
        size_ratio: Bytes of the baseline's artifact over this one's: "times smaller".
        speedup: Median latency of the baseline over this one's: "times faster".
        memory_ratio: Peak memory of the baseline over this one's.
        metric_change: The task's metric on the device, this one less the baseline's, in the metric's own unit.
        not_comparable: Why the latencies are not compared although both are there; empty where they are.
    """

    baseline: str
    size_ratio: float | None = None
    speedup: float | None = None
    memory_ratio: float | None = None
    metric_change: float | None = None
    not_comparable: str = ""


@dataclass(frozen=True)
class Score:
    """The task's deciding metric of one row; None where it was not computed.

    Attributes:
        metric: Its name.
        source: Of the source model in its own framework.
        host: Of the artifact on the host.
        device: Of the artifact on the device.
        standard_error: Of the device's figure; of the host's where it was not run on a device.
        split: Which split.
        examples: How many examples.
        share: Whether it is a share of examples, to be shown in percent.
        agreement: Share of examples where the device, or the host where it was not run on one, says what the source
            model says; the worst output.
    """

    metric: str
    source: float | None
    host: float | None
    device: float | None
    standard_error: float | None
    split: str
    examples: int
    share: bool
    agreement: float | None

    @property
    def artifact(self) -> float | None:
        """On the device, or on the host where it was not run there."""
        return self.host if self.device is None else self.device


@dataclass(frozen=True)
class Row:
    """One result with what is derived from it.

    Attributes:
        result: The result.
        label: What the row is called; unique in its group.
        latency: Statistics of the samples; None where there are none.
        latency_median: Their median; of a tool that gives no samples, what it gives instead.
        samples: The latency samples, in ms; empty where a tool gave a summary.
        score: The task's metric, where there is a task.
        comparison: Beside the baseline; None for the baseline itself and where there is none.
        is_baseline: Whether others are compared with it.
        note: Why there is no comparison, where a reader would expect one.
    """

    result: Result
    label: str
    latency: stats.Summary | None
    latency_median: float | None
    samples: tuple[float, ...]
    score: Score | None
    comparison: Comparison | None = None
    is_baseline: bool = False
    note: str = ""

    def figure(self, metric: str) -> float | None:
        """The median over the processes of a metric that each gives once; None where it was not measured."""
        measurement = self.result.measured(metric)
        values = [value for value in measurement.values if math.isfinite(value)] if measurement else []
        return statistics.median(values) if values else None

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes that changed something."""
        return tuple(record.name for record in self.result.history if record.modified)

    @property
    def parity(self) -> Parity | None:
        """Parity of the output that is furthest from the source model's."""
        worst = [(-1.0 if math.isnan(p.snr_db) else p.snr_db, index) for index, p in enumerate(self.result.parity)]
        return self.result.parity[min(worst)[1]] if worst else None

    @property
    def evidence(self) -> Measurement | None:
        """The measurement whose conditions and metadata stand for the row."""
        return self.result.measured("latency_ms") or next(iter(self.result.measurements), None)


@dataclass(frozen=True)
class Group:
    """The rows of one model on one device: what may be compared with each other.

    Attributes:
        model: The model.
        device: The device.
        targets: Its targets.
        emulated: Whether it is an emulator.
        rows: In the order they were made.
    """

    model: str
    device: str
    targets: tuple[str, ...]
    emulated: bool
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Model, device and target, and that it is emulated where it is."""
        return f"{self.model} on {self.device} ({', '.join(self.targets)}{', emulated' if self.emulated else ''})"

    @property
    def featured(self) -> Row:
        """The row that the story is about: the one tagged `after`, else the released one, else the last compared."""
        compared = [row for row in self.rows if row.comparison] or list(self.rows)
        tagged = [row for row in compared if "after" in row.result.tags]
        released = [row for row in compared if row.result.released]
        return (tagged or released or compared)[-1]

    @property
    def baseline(self) -> Row | None:
        """The row that the featured one is compared with."""
        comparison = self.featured.comparison
        return next((row for row in self.rows if comparison and row.result.id == comparison.baseline), None)


@dataclass(frozen=True)
class Report:
    """Everything a report shows.

    Attributes:
        groups: In the order of their first row.
        runs: The runs that the results are of.
        commands: The commands that made them, as typed.
        first: When the first result was made.
        last: When the last was.
        models: Names of the models.
    """

    groups: tuple[Group, ...]
    runs: tuple[str, ...]
    commands: tuple[str, ...]
    first: str
    last: str
    models: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, group by group."""
        return tuple(row for group in self.groups for row in group.rows)

    @property
    def title(self) -> str:
        """The models' names."""
        return ", ".join(self.models)


def build(results: Sequence[Result], command: str = "") -> Report:
    """Make a report.

    Args:
        results: Of any models and devices; sorted by when they were made, ties as given.
        command: The command that made them, where the results do not say it themselves.

    Raises:
        ConfigError: There are no results.
    """
    if not results:
        raise ConfigError("There is no result to report.", "edgekit deploy --target T")
    ordered = sorted(results, key=lambda result: result.created)
    grouped: dict[tuple[str, str, bool], list[Result]] = {}
    for result in ordered:
        grouped.setdefault((result.model, result.device, result.emulated), []).append(result)
    commands = _distinct(result.command for result in ordered if result.command)
    return Report(
        groups=tuple(_group(members, ordered) for members in grouped.values()),
        runs=_distinct(result.run for result in ordered),
        commands=commands or ((command,) if command else ()),
        first=ordered[0].created,
        last=ordered[-1].created,
        models=_distinct(result.model for result in ordered),
    )


def _group(members: list[Result], everything: list[Result]) -> Group:
    rows = [_row(result, label) for result, label in zip(members, _labels(members), strict=True)]
    chosen = {row.result.id: _baseline(row, rows) for row in rows}
    used = {baseline.result.id for baseline in chosen.values() if baseline}
    first = members[0]
    elsewhere = any(
        other.model == first.model and other.emulated != first.emulated and other.precision == "float32"
        for other in everything
    )
    finished = []
    for row in rows:
        baseline = chosen[row.result.id]
        is_baseline = row.result.id in used and (baseline is None or baseline is row)
        comparison = compare(baseline, row) if baseline and baseline is not row else None
        note = ""
        if comparison is None and not is_baseline and elsewhere:
            note = "not comparable: the baseline is emulated" if not first.emulated else "not comparable: emulated"
        note = comparison.not_comparable if comparison else note
        finished.append(replace(row, comparison=comparison, is_baseline=is_baseline, note=note))
    return Group(
        first.model, first.device, _distinct(result.target for result in members), first.emulated, tuple(finished)
    )


def _baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """What `row` is compared with; None where it stands alone.

    The row tagged `before`, else float32 of the same backend, else any float32, else the first row.
    """
    if len(rows) < 2:
        return None

    def rank(item: tuple[int, Row]) -> tuple[bool, bool, bool, bool, int]:
        index, candidate = item
        return (
            "before" not in candidate.result.tags,
            candidate.result.precision != "float32",
            candidate.result.backend != row.result.backend,
            bool(candidate.passes),
            index,
        )

    return min(enumerate(rows), key=rank)[1]


def compare(baseline: Row, row: Row) -> Comparison:
    """`row` beside `baseline`; both of one model and device, and both emulated or neither."""
    before, after = baseline.score, row.score
    change = None
    if before and after and before.metric == after.metric and None not in (before.device, after.device):
        change = _difference(after.device, before.device)
    reason = _not_comparable(baseline, row)
    return Comparison(
        baseline=baseline.result.id,
        size_ratio=_ratio(baseline.result.artifact_bytes, row.result.artifact_bytes),
        speedup=None if reason else _ratio(baseline.latency_median, row.latency_median),
        memory_ratio=_ratio(baseline.figure("peak_rss_mib"), row.figure("peak_rss_mib")),
        metric_change=change,
        not_comparable=reason,
    )


def _not_comparable(baseline: Row, row: Row) -> str:
    if baseline.result.emulated != row.result.emulated:
        return "not comparable: emulated against hardware"
    if baseline.latency_median is None or row.latency_median is None:
        return ""
    if baseline.result.runner != row.result.runner:
        return f"not comparable: {row.result.runner} against {baseline.result.runner}"
    threads = [_metadata(baseline, "threads"), _metadata(row, "threads")]
    if None not in threads and threads[0] != threads[1]:
        return f"not comparable: {threads[1]} threads against {threads[0]}"
    return ""


def _metadata(row: Row, key: str) -> Any:
    return row.evidence.metadata.get(key) if row.evidence else None


def _row(result: Result, label: str) -> Row:
    latency = result.measured("latency_ms")
    values = tuple(value for value in latency.values if math.isfinite(value)) if latency else ()
    sampled = values if latency and latency.kind == "samples" else ()
    return Row(
        result=result,
        label=label,
        latency=stats.summarize(sampled) if sampled else None,
        latency_median=statistics.median(values) if values else None,
        samples=sampled,
        score=_score(result),
    )


def _score(result: Result) -> Score | None:
    accuracy = result.accuracy
    if accuracy is None:
        return None
    shown = {place: finite(getattr(accuracy, place).get(accuracy.metric)) for place in ("source", "host", "device")}
    on_device = shown["device"] is not None
    error = finite(accuracy.standard_error if on_device else accuracy.host_standard_error)
    values = [value for value in shown.values() if value is not None]
    named = any(word in accuracy.metric.lower() for word in ("top1", "top5", "top_1", "top_5", "accuracy"))
    agreements = [v for v in (accuracy.agreement or accuracy.host_agreement).values() if math.isfinite(v)]
    return Score(
        metric=accuracy.metric,
        source=shown["source"],
        host=shown["host"],
        device=shown["device"],
        standard_error=error,
        split=accuracy.split,
        examples=accuracy.examples,
        share=(error is not None or named) and all(0 <= value <= 1 for value in values),
        agreement=min(agreements, default=None),
    )


def precision_name(precision: str) -> str:
    """A precision as people say it; an unknown one as it is."""
    return PRECISIONS.get(precision, precision)


def _labels(members: Sequence[Result]) -> list[str]:
    """Precision, and as much of backend, passes and a number as makes each label its own."""
    labels = [precision_name(result.precision) for result in members]
    if len({result.backend for result in members}) > 1:
        labels = [f"{label}, {result.backend}" for label, result in zip(labels, members, strict=True)]
    passes = [[record.name for record in result.history if record.modified] for result in members]
    doubled = {label for label in labels if labels.count(label) > 1}
    labels = [
        f"{label} ({', '.join(names)})" if label in doubled and names else label
        for label, names in zip(labels, passes, strict=True)
    ]
    seen: dict[str, int] = {}
    unique = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        unique.append(f"{label} #{seen[label]}" if labels.count(label) > 1 else label)
    return unique


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a number that can be shown."""
    return value if value is not None and math.isfinite(value) else None


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after is not None and before > 0 and after > 0 else None


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
