"""Result: one artifact measured on one device, and the document that every report is made from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.core import schema, stats
from edgekit.core.artifact import Parity
from edgekit.core.measurement import Measurement
from edgekit.core.model import PassRecord
from edgekit.core.task import Direction


@dataclass(frozen=True)
class Accuracy:
    """The task's metrics of one split, side by side.

    Attributes:
        metric: The metric that decides.
        direction: Whether larger or smaller is better.
        split: Which split; `test` is only ever reported.
        examples: How many examples it has.
        source: Metrics of the source model in its own framework.
        host: Metrics of the artifact on this host; empty where it was not run here.
        device: Metrics of the artifact on the device; empty where it was not run there.
        agreement: Share of examples where the device's largest entry is the source model's, by output name.
        standard_error: Of `device[metric]` where it is a share of examples: sqrt(p (1 − p) / n).
        host_agreement: As `agreement`, for the artifact on this host.
        host_standard_error: Of `host[metric]` where it is a share of examples.
    """

    metric: str
    direction: Direction
    split: str
    examples: int
    source: Mapping[str, float]
    host: Mapping[str, float] = field(default_factory=dict)
    device: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    standard_error: float | None = None
    host_agreement: Mapping[str, float] = field(default_factory=dict)
    host_standard_error: float | None = None


@dataclass(frozen=True)
class Conversion:
    """What making an artifact took."""

    seconds: float
    peak_rss_mib: float
    cached: bool


@dataclass(frozen=True)
class Result:
    """One artifact measured on one device.

    Attributes:
        id: Unique; a result is stored once.
        run: What all results of one command share.
        created: UTC, ISO 8601.
        model: The model's name.
        source: Where it came from.
        backend: The backend that made the artifact.
        precision: `float32` or the quantization scheme.
        target: Class of device.
        device: The unit.
        transport: How it was reached.
        runner: What executed there.
        emulated: Whether the numbers come from an emulator.
        artifact_digest: Which artifact.
        artifact_bytes: Size of its files.
        download_bytes: Size of them compressed, as a download would be.
        conversion: What making it took.
        history: The passes before it.
        parity: How close its outputs are to the source model's, on the host.
        accuracy: The task's metrics; None where there is no task.
        measurements: Raw samples with units and conditions.
        released: Whether it is now the device's current release.
        bytes_sent: What had to be sent to the device.
        seconds: Wall time of the steps of the visit.
        tags: Free words, such as `before` and `after`.
        command: The command that made it, as typed.
    """

    schema_version: int
    id: str
    run: str
    created: str
    model: str
    source: str
    backend: str
    precision: str
    target: str
    device: str
    transport: str
    runner: str
    emulated: bool
    artifact_digest: str
    artifact_bytes: int
    download_bytes: int
    conversion: Conversion | None = None
    history: tuple[PassRecord, ...] = ()
    parity: tuple[Parity, ...] = ()
    accuracy: Accuracy | None = None
    measurements: tuple[Measurement, ...] = ()
    released: bool = False
    bytes_sent: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    command: str = ""

    def measured(self, metric: str) -> Measurement | None:
        """The measurement of `metric`, or None."""
        return next((m for m in self.measurements if m.metric == metric), None)


_MEDIANS = (
    "first_inference_ms",
    "load_ms",
    "load_cold_ms",
    "init_ms",
    "throughput_ips",
    "peak_rss_mib",
    "peak_pss_mib",
    "runtime_baseline_mib",
    "model_delta_mib",
    "swap_mib",
    "energy_mj",
)
_CONDITIONS = ("cpu_model", "cores", "governor", "os", "kernel")
_RUNTIME = ("runtime", "runtime_version", "threads", "delegate", "xnnpack_applied")


def document(result: Result) -> dict[str, Any]:
    """The result as every JSON output shows it: identity, derived statistics, raw samples, accuracy, conditions.

    Figures that each fresh process gives once (load time, memory) are the median over the processes; `per_process` has
    each of them, so that a comparison can be made from the document.
    """
    shown: dict[str, Any] = schema.to_plain(result)
    del shown["measurements"]
    latency = result.measured("latency_ms")
    if latency is not None:
        # Statistics of nothing, or of what is not a number, do not exist; the samples are shown as they are.
        sampled = latency.values if latency.kind == "samples" else ()
        if sampled and all(math.isfinite(value) for value in sampled):
            shown["latency_ms"] = schema.to_plain(stats.summarize(sampled))
        elif latency.kind == "summary":
            # What the tool made of samples that it does not give: no percentiles, and nothing is derived.
            shown["latency_ms"] = dict(latency.metadata.get("summary", {"mean": latency.values[0]}))
        shown["samples_ms"] = list(sampled)
        shown["samples_per_process"] = list(latency.processes)
        shown["warmup_ms"] = list(latency.warmups)
        shown["outliers"] = len(stats.outliers(sampled))
        before, after = latency.conditions_before, latency.conditions_after
        shown["conditions"] = (
            {key: before.get(key) for key in _CONDITIONS}
            | {
                "freq_mhz_before": before.get("freq_mhz"),
                "freq_mhz_after": after.get("freq_mhz"),
                "temp_c_before": before.get("temp_c"),
                "temp_c_after": after.get("temp_c"),
                "throttled": after.get("throttled"),
                "moved": list(latency.metadata.get("moved", ())),
                "other_cores": after.get("other_cores"),
                "ram_available_mib": before.get("ram_available_mib"),
                "swap_used_mib": after.get("swap_used_mib"),
                "memory_pressure_pct": after.get("memory_pressure_pct"),
                "battery_pct": before.get("battery_pct"),
                "emulated": result.emulated,
            }
            | {key: latency.metadata.get(key) for key in _RUNTIME}
        )
        for key in ("timing", "stages", "held", "cooled", "energy"):
            if key in latency.metadata:
                shown[key] = latency.metadata[key]
        if "unverified" in latency.metadata:
            shown["unverified"] = latency.metadata["unverified"]
    per_process = {}
    for metric in _MEDIANS:
        measurement = result.measured(metric)
        if measurement is not None and measurement.values:
            shown[metric] = statistics.median(measurement.values)
            if measurement.kind == "samples":
                per_process[metric] = list(measurement.values)
    energy, sustained = result.measured("energy_mj"), result.measured("sustained_ms")
    if energy is not None:
        shown["energy"] = {"instrument": energy.metadata["instrument"], "by_process": energy.metadata["by_process"]}
    if sustained is not None:
        shown["sustained"] = {"p50_ms": list(sustained.values), **sustained.metadata.get("series", {})}
    shown |= _swept(result)
    if per_process:
        shown["per_process"] = per_process
    return shown


def _swept(result: Result) -> dict[str, Any]:
    """Throughput by number of threads, and where it is best; nothing where there was no sweep."""
    rates = {
        int(one.metadata["threads"]): statistics.median(one.values)
        for one in result.measurements
        if one.metric.startswith("throughput_ips_threads_") and one.values
    }
    if not rates:
        return {}
    best = max(rates, key=lambda threads: rates[threads])
    return {"swept_throughput_ips": rates, "best_threads": best}
