"""Instrument: what a device's sensors showed, read as power; energy above idle with its error.

The agent on the device knows no instrument: it keeps the numbers in the files that `Instrument.sensors` names, about ten
times a second, while nothing runs and while the model runs. What they mean is worked out here, from what it kept.
"""

from __future__ import annotations

import abc
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgekit.core.registry import Registry

Unit = Literal["W", "J"]
Rows = Sequence[Mapping[str, Any]]
_LEAST_READINGS = 3


@dataclass(frozen=True)
class Channel:
    """One quantity against time.

    Attributes:
        name: What it is of.
        unit: `W` for power at a moment, `J` for energy counted since some moment; a counter never falls here.
        times: When, in seconds on the device's monotonic clock.
        values: In that unit.
        resolution: The smallest step, in that unit.
    """

    name: str
    unit: Unit
    times: tuple[float, ...]
    values: tuple[float, ...]
    resolution: float


@dataclass(frozen=True)
class Power:
    """Mean power.

    Attributes:
        watts: The mean.
        error: Its standard error.
        readings: How many readings it is of.
    """

    watts: float
    error: float
    readings: int


@dataclass(frozen=True)
class Energy:
    """What one inference takes above idle.

    Attributes:
        instrument: What measured it.
        channels: What of.
        joules: Energy an inference, above idle.
        error: Its standard error, of the readings' scatter and resolution; the instrument's own calibration is not in it.
        active_watts: Mean power while inferences ran.
        idle_watts: Mean power while nothing ran.
        seconds: How long inferences ran.
        inferences: How many.
    """

    instrument: str
    channels: tuple[str, ...]
    joules: float
    error: float
    active_watts: float
    idle_watts: float
    seconds: float
    inferences: int


class Instrument(abc.ABC):
    """Something that tells power or energy."""

    summary: ClassVar[str]
    sensors: ClassVar[tuple[str, ...]]
    """The files below the device's /sys whose numbers it needs, as patterns."""

    @abc.abstractmethod
    def channels(self, rows: Rows, texts: Mapping[str, str]) -> list[Channel]:
        """The channels that add up to what the device takes; none where this instrument is not there.

        Args:
            rows: Readings in order: `t`, and the number in each file, or None where it could not be read.
            texts: What stands in the small files beside them: `name`, `type`, `status`, `max_energy_range_uj`.
        """


registry: Registry[Instrument] = Registry("instrument", "edgekit.instruments", Instrument)  # type: ignore[type-abstract]


def sensors() -> tuple[str, ...]:
    """The files that all instruments want, as patterns."""
    return tuple(pattern for name in registry.names() for pattern in registry.get(name).sensors)


def column(rows: Rows, file: str, scale: float = 1.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Times and scaled values of one file, without the readings that failed."""
    known = [(float(row["t"]), float(row[file])) for row in rows if row.get(file) is not None]
    return tuple(t for t, _ in known), tuple(value * scale for _, value in known)


def files_in(rows: Rows) -> list[str]:
    """The files that were read, in order."""
    return sorted({key for row in rows for key in row if key != "t"})


def mean_power(channel: Channel, begin: float = -math.inf, end: float = math.inf) -> Power | None:
    """Mean power between two moments; None for too few readings between them.

    Power readings are weighted by the time they stand for (trapezoids). Of a counter, the mean is between its first and
    its last reading; the scatter is that of the power from one reading to the next.
    """
    inside = [(t, v) for t, v in zip(channel.times, channel.values, strict=True) if begin <= t <= end]
    if len(inside) < _LEAST_READINGS or inside[-1][0] <= inside[0][0]:
        return None
    span = inside[-1][0] - inside[0][0]
    steps = list(itertools.pairwise(inside))
    if channel.unit == "J":
        powers = [(v - u) / (t - s) for (s, u), (t, v) in steps if t > s]
        watts, step = (inside[-1][1] - inside[0][1]) / span, channel.resolution / span
    else:
        powers = [v for _, v in inside]
        watts, step = sum((u + v) / 2 * (t - s) for (s, u), (t, v) in steps) / span, channel.resolution
    scatter = statistics.stdev(powers) / math.sqrt(len(powers)) if len(powers) > 1 else 0.0
    # A reading is off by up to half a step either way: uniform, so the step over the square root of twelve.
    return Power(watts, math.hypot(scatter, step / math.sqrt(12)), len(inside))


def energy_of(
    name: str, active: Sequence[Channel], idle: Sequence[Channel], window: tuple[float, float], inferences: int
) -> Energy | None:
    """Energy an inference above idle; None where a channel has too few readings.

    Args:
        name: The instrument.
        active: Its channels while inferences ran; they add up.
        idle: The same while nothing ran.
        window: When the inferences began and ended.
        inferences: How many there were.
    """
    resting = {channel.name: channel for channel in idle}
    pairs = [
        (mean_power(channel, *window), mean_power(resting[channel.name]))
        for channel in active
        if channel.name in resting
    ]
    known = [(busy, rest) for busy, rest in pairs if busy is not None and rest is not None]
    seconds = window[1] - window[0]
    if not known or len(known) < len(active) or inferences < 1 or seconds <= 0:
        return None
    watts, still = sum(busy.watts for busy, _ in known), sum(rest.watts for _, rest in known)
    error = math.sqrt(sum(busy.error**2 + rest.error**2 for busy, rest in known))
    each = seconds / inferences
    names = tuple(channel.name for channel in active)
    return Energy(name, names, (watts - still) * each, error * each, watts, still, seconds, inferences)
