"""Energy an inference: what a device's instruments showed while it was measured, above idle, with its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgekit.core.measurement import Measurement
from edgekit.core.run_output import ProcessRun, RunOutput
from edgekit.instruments.base import Energy, Instrument, energy_of, registry

METRIC = "energy_mj"
UNVERIFIED = "no instrument was tried on hardware by the makers of edgekit"


def with_energy(measurements: list[Measurement], output: RunOutput) -> list[Measurement]:
    """The measurements, with the energy an inference where an instrument told it; where none did, latency says why."""
    latency = next((one for one in measurements if one.metric == "latency_ms" and one.kind == "samples"), None)
    if latency is None:
        return measurements
    # The first workload is the measurement proper; see `measurements_of`.
    timed = [run for run in output.runs if run.kind == "latency"]
    runs = [run for run in timed if run.workload == timed[0].workload]
    for name in registry.names():
        found = [energy for run in runs if (energy := _of_run(name, registry.create(name), run)) is not None]
        if found:
            return [*measurements, _measurement(latency, found)]
    told = replace(latency, metadata={**latency.metadata, "energy": f"unavailable: {_why(runs)}"})
    return [told if one is latency else one for one in measurements]


def _of_run(name: str, instrument: Instrument, run: ProcessRun) -> Energy | None:
    sensed, window = run.sensed or {}, run.timing.get("window", ())
    if not sensed or len(window) != 2:
        return None
    texts = sensed.get("texts", {})
    active = instrument.channels(sensed.get("active") or [], texts)
    idle = instrument.channels(sensed.get("idle") or [], texts)
    return energy_of(name, active, idle, (window[0], window[1]), int(run.timing.get("inferences", 0)))


def _why(runs: list[ProcessRun]) -> str:
    """Why there is no energy, in words."""
    rows = [row for run in runs for row in (run.sensed or {}).get("active", ())]
    if not rows:
        return "no instrument"
    read = {key for row in rows for key, value in row.items() if key != "t" and value is not None}
    if not read:
        return "the counters are there, but may not be read (they are root's)"
    return "too few readings while inferences ran (--min-seconds 5), or nothing that stands for the device alone"


def _measurement(latency: Measurement, found: list[Energy]) -> Measurement:
    details: list[Mapping[str, Any]] = [
        {"error_mj": 1e3 * one.error, "active_watts": one.active_watts, "idle_watts": one.idle_watts} for one in found
    ]
    return replace(
        latency,
        metric=METRIC,
        unit="mJ",
        values=tuple(1e3 * one.joules for one in found),
        warmups=(),
        processes=(1,) * len(found),
        metadata={
            "threads": latency.metadata.get("threads"),
            "instrument": found[0].instrument,
            "channels": list(found[0].channels),
            "by_process": details,
            "unverified": UNVERIFIED,
        },
    )
