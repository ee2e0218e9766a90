"""What a run on a device left, and the measurements in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.core.measurement import Better, Measurement


@dataclass(frozen=True)
class ProcessRun:
    """One workload in one fresh process on a device: the agent's document, typed.

    Attributes:
        workload: The workload's name.
        kind: `latency`, `outputs` or `intermediates`.
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


_PER_PROCESS: tuple[tuple[str, str, Better], ...] = (
    ("first_inference_ms", "ms", "smaller"),
    ("load_ms", "ms", "smaller"),
    ("init_ms", "ms", "smaller"),
)
_MEMORY = ("peak_rss_mib", "peak_pss_mib", "runtime_baseline_mib", "model_delta_mib")


def measurements_of(output: RunOutput) -> list[Measurement]:
    """The measurements in the `latency` runs of `output`, and the summaries in it; empty where there are none."""
    runs = [run for run in output.runs if run.kind == "latency"]
    if not runs:
        return list(output.summaries)
    metadata = dict(runs[0].runtime)

    def measured(metric: str, unit: str, better: Better, values: list[float], **more: Any) -> Measurement:
        return Measurement(
            metric=metric,
            unit=unit,
            better=better,
            kind="samples",
            values=tuple(values),
            conditions_before=output.facts_before,
            conditions_after=output.facts_after,
            metadata=metadata,
            **more,
        )

    found = [
        measured(
            "latency_ms",
            "ms",
            "smaller",
            [sample for run in runs for sample in run.samples_ms],
            warmups=tuple(sample for run in runs for sample in run.warmup_ms),
            processes=tuple(len(run.samples_ms) for run in runs),
        )
    ]
    for metric, unit, better in _PER_PROCESS:
        values = [value for run in runs if (value := getattr(run, metric)) is not None]
        if values:
            found.append(measured(metric, unit, better, values, processes=(1,) * len(values)))
    throughput = [1000 * len(run.samples_ms) / sum(run.samples_ms) for run in runs if sum(run.samples_ms) > 0]
    if throughput:
        found.append(measured("throughput_ips", "inferences/s", "larger", throughput, processes=(1,) * len(throughput)))
    for metric in _MEMORY:
        values = [run.memory[metric] for run in runs if metric in run.memory]
        if values:
            direction: Better = "neither" if metric == "runtime_baseline_mib" else "smaller"
            found.append(measured(metric, "MiB", direction, values, processes=(1,) * len(values)))
    return [*found, *output.summaries]
