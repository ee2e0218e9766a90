"""Measurement: raw samples with unit and conditions. Statistics are derived, never stored in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["smaller", "larger", "neither"]
Kind = Literal["samples", "summary"]


@dataclass(frozen=True)
class Measurement:
    """One measured quantity.

    Attributes:
        metric: What was measured: `latency_ms`, `load_ms`, `peak_rss_mib`, …
        unit: Unit of the values.
        better: Which direction is an improvement.
        kind: `samples` are raw observations; a `summary` is what a tool made of samples it does not give, and never
            enters a statistical test.
        values: The observations, in the order they were made. For a summary, a single value.
        warmups: Observations made before the measurement proper, kept apart.
        processes: How many of the values each fresh process gave, in order; sums to `len(values)`.
        conditions_before: State of the device when the measurement started.
        conditions_after: State of the device when it ended.
        metadata: What else one needs to read the values: runtime, version, threads, …
    """

    metric: str
    unit: str
    better: Better
    kind: Kind
    values: tuple[float, ...]
    warmups: tuple[float, ...] = ()
    processes: tuple[int, ...] = ()
    conditions_before: Mapping[str, Any] = field(default_factory=dict)
    conditions_after: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
