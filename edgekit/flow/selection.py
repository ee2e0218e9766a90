"""Selection: the results that a person names: a run, a result, a tag, a baseline's or a report's JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.core.measurement import Better, Measurement
from edgekit.core.result import Result
from edgekit.flow.store import Store

_CONDITIONS = ("cpu_model", "cores", "governor", "os", "kernel", "battery_pct")
_AROUND = {"freq_mhz": ("freq_mhz_before", "freq_mhz_after"), "temp_c": ("temp_c_before", "temp_c_after")}
_RUNTIME = ("runtime", "runtime_version", "threads", "delegate", "xnnpack_applied")
_UNITS: Mapping[str, tuple[str, Better]] = {
    "first_inference_ms": ("ms", "smaller"),
    "load_ms": ("ms", "smaller"),
    "load_cold_ms": ("ms", "smaller"),
    "init_ms": ("ms", "smaller"),
    "throughput_ips": ("inferences/s", "larger"),
    "peak_rss_mib": ("MiB", "smaller"),
    "peak_pss_mib": ("MiB", "smaller"),
    "runtime_baseline_mib": ("MiB", "neither"),
    "model_delta_mib": ("MiB", "smaller"),
    "swap_mib": ("MiB", "smaller"),
    "energy_mj": ("mJ", "smaller"),
}


def results_of(name: str, store: Store) -> list[Result]:
    """The results that `name` stands for, oldest first.

    Args:
        name: A JSON file; the first characters of a run or of a result's id; or a tag, of which the newest run counts.
        store: The project's results.

    Raises:
        ConfigError: Nothing has that name, more than one has it, or the file is wrong.
    """
    if name.endswith(".json") or Path(name).is_file():
        return results_in(Path(name))
    runs = [summary.run for summary in store.runs()]
    if any(run.startswith(name) for run in runs):
        return store.results(run=store.run(name).run, oldest_first=True)
    everything = store.results(oldest_first=True)
    if any(result.id.startswith(name) for result in everything):
        return [store.get(name)]
    tagged = [result for result in everything if name in result.tags]
    if tagged:
        return [result for result in tagged if result.run == tagged[-1].run]
    tags = sorted({tag for result in everything for tag in result.tags})
    raise ConfigError(
        f"There is no run, result or tag '{name}', and no such file. Newest runs: {', '.join(runs[:5]) or 'none'}."
        f" Tags: {', '.join(tags) or 'none'}.",
        "edgekit report --list",
    )


def results_in(path: Path) -> list[Result]:
    """The results in a JSON file that edgekit wrote: a baseline, what `--json` printed, or one result of it.

    Raises:
        ConfigError: It is missing, cut off, or something else.
    """
    document = schema.load_json(path)
    value = document.value
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: this is no document of results.", "edgekit report RUN --json > results.json")
    listed = value.get("results")
    if isinstance(listed, list) and listed:
        return [_result(document.at("results", index)) for index in range(len(listed))]
    if "artifact_digest" in value:
        return [_result(document)]
    raise ConfigError(f"{path}: there are no results in it.", "edgekit report RUN --json > results.json")


def _result(document: schema.Document) -> Result:
    """A result as it is stored, or as every JSON output shows it."""
    value = document.value
    if not isinstance(value, dict):
        raise ConfigError(f"{document.where()}: a result is keys and values.")
    if "measurements" not in value:
        known = {field.name for field in dataclasses.fields(Result)}
        shown = {key: held for key, held in value.items() if key in known}
        shown["measurements"] = schema.to_plain(_measurements(value))
        document = dataclasses.replace(document, value=shown)
    return schema.versioned(Result, document)


def _measurements(shown: Mapping[str, Any]) -> list[Measurement]:
    """The measurements in a document for readers. What it gives only one figure of is a summary."""
    conditions = shown.get("conditions") or {}
    before = {key: conditions.get(key) for key in _CONDITIONS}
    after: dict[str, Any] = {"throttled": conditions.get("throttled")}
    for key, (start, end) in _AROUND.items():
        before[key], after[key] = conditions.get(start), conditions.get(end)
    common: dict[str, Any] = {
        "conditions_before": before,
        "conditions_after": after,
        "metadata": {key: conditions[key] for key in (*_RUNTIME, "moved") if conditions.get(key) is not None},
    }
    found = []
    samples = shown.get("samples_ms") or ()
    if samples:
        counts = tuple(shown.get("samples_per_process") or ())
        warmups = tuple(shown.get("warmup_ms") or ())
        found.append(Measurement("latency_ms", "ms", "smaller", "samples", tuple(samples), warmups, counts, **common))
    elif shown.get("latency_ms"):
        told = shown["latency_ms"]
        value = next((told[key] for key in ("p50", "mean") if key in told), None)
        if value is not None:
            found.append(Measurement("latency_ms", "ms", "smaller", "summary", (value,), **common))
    per_process = shown.get("per_process") or {}
    for metric, (unit, better) in _UNITS.items():
        if per_process.get(metric):
            values = tuple(per_process[metric])
            ones = (1,) * len(values)
            found.append(Measurement(metric, unit, better, "samples", values, (), ones, **common))
        elif shown.get(metric) is not None:
            found.append(Measurement(metric, unit, better, "summary", (shown[metric],), **common))
    return found
