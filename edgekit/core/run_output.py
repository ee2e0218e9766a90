"""What a run on a device left, and the measurements in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.core.conditions import moved
from edgekit.core.measurement import Better, Measurement


@dataclass(frozen=True)
class ProcessRun:
    """One workload in one fresh process on a device: the agent's document, typed.

    Attributes:
        workload: The workload's name.
        kind: The workload's kind.
        process: Which repetition, from 0.
        init_ms: Importing the runtime.
        load_ms: From the model's file to an interpreter that is ready.
        first_inference_ms: The first inference after loading.
        warmup_ms: The inferences after the first and before timing.
        samples_ms: The timed inferences.
        examples: Examples that were computed (`outputs` and `intermediates`).
        memory: MiB by stage: `peak_rss_mib`, `peak_pss_mib`, `runtime_baseline_mib`, `model_delta_mib`; a figure that
            the system does not give is absent.
        runtime: `runtime`, `runtime_version`, `threads`, `delegate`, `xnnpack_applied`, … as the driver knows them.
        stages: By stage (`import`, `load`, `allocate`, `first run`, `steady`), in MiB: `rss_mib`, `pss_mib`, `swap_mib` at
            its end, and `peak_mib` within it.
        timing: How it was timed: `window` (time.monotonic there), `inferences`, `inner_runs`, `warmup_steady`, `half_width`,
            `ci_reached`, `clock_jumps`, …
        windows: Of a `sustained` run: `t`, `count`, `p50_ms`, `p90_ms`, `max_ms` of each.
        cold: Of a `load` run: whether the model's files were out of the page cache.
        conditions_before: State of the device just before it, where it was looked at.
        conditions_after: The same just after it.
        watched: What was seen about once a second while it ran: `t`, `freq_mhz`, `temp_c`, `throttled`.
        cooled: How the wait for a lower temperature before it ended.
        sensed: What the energy sensors showed: `active` and `idle` rows with `t`, and `texts` beside them.
    """

    workload: str
    kind: str
    process: int
    init_ms: float
    load_ms: float
    first_inference_ms: float | None = None
    warmup_ms: tuple[float, ...] = ()
    samples_ms: tuple[float, ...] = ()
    examples: int = 0
    memory: Mapping[str, float] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[Mapping[str, float], ...] = ()
    cold: bool | None = None
    conditions_before: Mapping[str, Any] = field(default_factory=dict)
    conditions_after: Mapping[str, Any] = field(default_factory=dict)
    watched: tuple[Mapping[str, Any], ...] = ()
    cooled: Mapping[str, Any] | None = None
    sensed: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Health:
    """What the health check of a new release found.

    Attributes:
        ok: Whether the release may be switched to.
        cosine: Cosine similarity to the expected outputs, the worst of all outputs.
        max_abs: Largest absolute difference.
        message: What is wrong, where something is.
    """

    ok: bool
    cosine: float | None = None
    max_abs: float | None = None
    message: str = ""


@dataclass(frozen=True)
class RunOutput:
    """What a run on a device left.

    Attributes:
        facts_before: State of the device before the workloads: CPU, memory, system, governor, temperature.
        facts_after: The same after them.
        runs: One entry a workload and process.
        outputs: Files (`.npy`) by workload and output name; of an `intermediates` workload, the one file
            `intermediates.npz`.
        health: The health check, where there was one.
        released: Whether `current` now points to this artifact.
        previous: The digest of the release in force before.
        bytes_sent: What had to be sent to the device, in bytes.
        seconds: Wall time by step: `connect`, `inspect`, `push`, `run`, `pull`.
        summaries: Measurements of a tool that gives no samples, made by its runner.
        held: What was held on the device, and what could not be: `governor`.
    """

    facts_before: Mapping[str, Any]
    facts_after: Mapping[str, Any]
    runs: tuple[ProcessRun, ...] = ()
    outputs: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    health: Health | None = None
    released: bool = False
    previous: str | None = None
    bytes_sent: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    summaries: tuple[Measurement, ...] = ()
    held: Mapping[str, Any] = field(default_factory=dict)


_PER_PROCESS: tuple[tuple[str, str, Better], ...] = (
    ("first_inference_ms", "ms", "smaller"),
    ("load_ms", "ms", "smaller"),
    ("init_ms", "ms", "smaller"),
)
_MEMORY = ("peak_rss_mib", "peak_pss_mib", "runtime_baseline_mib", "model_delta_mib", "swap_mib")


def measurements_of(output: RunOutput) -> list[Measurement]:
    """The measurements in the runs of `output`, and the summaries in it; empty where there are none.

    The first `latency` workload is the measurement proper; any further one is a point of a sweep.
    """
    timed = [run for run in output.runs if run.kind == "latency"]
    if not timed:
        return [*_sustained(output), *output.summaries]
    runs = [run for run in timed if run.workload == timed[0].workload]
    made = _Maker(output, runs)
    found = [
        made.of(
            "latency_ms",
            "ms",
            "smaller",
            [sample for run in runs for sample in run.samples_ms],
            warmups=tuple(sample for run in runs for sample in run.warmup_ms),
            processes=tuple(len(run.samples_ms) for run in runs),
        )
    ]
    found += [
        made.once(metric, unit, better, [getattr(run, metric) for run in runs]) for metric, unit, better in _PER_PROCESS
    ]
    cold = [run.load_ms for run in output.runs if run.kind == "load" and run.cold]
    found.append(made.once("load_cold_ms", "ms", "smaller", cold))
    found.append(made.once("throughput_ips", "inferences/s", "larger", [_throughput(run) for run in runs]))
    for metric in _MEMORY:
        direction: Better = "neither" if metric == "runtime_baseline_mib" else "smaller"
        found.append(made.once(metric, "MiB", direction, [run.memory.get(metric) for run in runs]))
    for name in dict.fromkeys(run.workload for run in timed[1:] if run.workload != timed[0].workload):
        swept = [run for run in timed if run.workload == name]
        values = [_throughput(run) for run in swept]
        found.append(
            _Maker(output, swept).once(f"throughput_ips_{name.replace('-', '_')}", "inferences/s", "larger", values)
        )
    return [*(one for one in found if one.values), *_sustained(output), *output.summaries]


class _Maker:
    """Makes the measurements of one workload's runs, all with the same conditions and metadata."""

    def __init__(self, output: RunOutput, runs: Sequence[ProcessRun]) -> None:
        self._before = {**output.facts_before, **runs[0].conditions_before}
        self._after = {**output.facts_after, **runs[-1].conditions_after}
        self._metadata = {**runs[0].runtime, **_seen(output, runs)}

    def of(self, metric: str, unit: str, better: Better, values: Sequence[float], **more: Any) -> Measurement:
        return Measurement(
            metric=metric,
            unit=unit,
            better=better,
            kind="samples",
            values=tuple(values),
            conditions_before=self._before,
            conditions_after=self._after,
            metadata=self._metadata,
            **more,
        )

    def once(self, metric: str, unit: str, better: Better, values: Sequence[float | None]) -> Measurement:
        """Of a figure that each process gives once, or not at all."""
        known = [value for value in values if value is not None]
        return self.of(metric, unit, better, known, processes=(1,) * len(known))


def _seen(output: RunOutput, runs: Sequence[ProcessRun]) -> dict[str, Any]:
    """What else one needs to believe the values: how they were timed, what moved, what was held, memory by stage."""
    reasons = [
        reason
        for run in runs
        for reason in moved(
            {**output.facts_before, **run.conditions_before},
            {**output.facts_after, **run.conditions_after},
            run.watched,
            run.timing.get("window", ()),
        )
    ]
    found: dict[str, Any] = {"moved": list(dict.fromkeys(reasons))} if reasons else {}
    if any(run.timing for run in runs):
        found["timing"] = [dict(run.timing) for run in runs]
    if any(run.stages for run in runs):
        found["stages"] = [{name: dict(sizes) for name, sizes in run.stages.items()} for run in runs]
    if output.held:
        found["held"] = dict(output.held)
    cooled = [dict(run.cooled) for run in runs if run.cooled is not None]
    return found | ({"cooled": cooled} if cooled else {})


def _throughput(run: ProcessRun) -> float | None:
    return 1000 * len(run.samples_ms) / sum(run.samples_ms) if sum(run.samples_ms) > 0 else None


def _sustained(output: RunOutput) -> list[Measurement]:
    """Latency against time: the median of each window, with the temperature and the clock last seen before its end."""
    found = []
    for run in output.runs:
        if run.kind != "sustained" or not run.windows:
            continue
        begin = run.timing.get("window", (run.windows[0]["t"],))[0]
        series = {
            "seconds": [window["t"] - begin for window in run.windows],
            "p90_ms": [window["p90_ms"] for window in run.windows],
            "max_ms": [window["max_ms"] for window in run.windows],
            "counts": [window["count"] for window in run.windows],
            "temp_c": [_last_seen(run, "temp_c", window["t"]) for window in run.windows],
            "freq_mhz": [_last_seen(run, "freq_mhz", window["t"]) for window in run.windows],
        }
        made = _Maker(output, [run])
        medians = [window["p50_ms"] for window in run.windows]
        one = made.of("sustained_ms", "ms", "smaller", medians, processes=(len(medians),))
        found.append(replace(one, metadata={**one.metadata, "statistic": "median of each window", "series": series}))
    return found


def _last_seen(run: ProcessRun, key: str, moment: float) -> float | None:
    seen = [row[key] for row in run.watched if row.get("t", math.inf) <= moment and row.get(key) is not None]
    return seen[-1] if seen else None
