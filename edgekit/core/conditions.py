"""Conditions: what may be held while a device is measured, and what moved all the same. Pure functions on stored data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WARMED_C = 10.0
"""A processor that is this much warmer in the end, in °C, was not the same device all the time."""
SLOWED = 0.9
"""A clock below this share of the fastest one seen while timing has fallen."""
OTHER_LOAD = 0.1
"""Other programs that keep this share of all cores busy disturb."""


@dataclass(frozen=True)
class Held:
    """What is held on a device while it is measured; nothing by default.

    Attributes:
        governor: The frequency governor to set; the ones before are given back, whatever happens.
        cool_below_c: Each timed run waits until the processor is below this temperature in °C.
        cool_seconds: But no longer than this.
        sensors: Files below the device's /sys whose numbers are kept while it runs, as patterns.
    """

    governor: str | None = None
    cool_below_c: float | None = None
    cool_seconds: float = 300.0
    sensors: tuple[str, ...] = ()


def moved(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    watched: Sequence[Mapping[str, Any]] = (),
    window: Sequence[float] = (),
) -> list[str]:
    """Why one run was not made under one set of conditions, in words; empty where nothing is known to have moved.

    Args:
        before: State of the device before it.
        after: The same after it.
        watched: What was seen while it ran: `t`, `freq_mhz`, `temp_c`, `throttled`.
        window: When timing began and ended, on the clock of `t`; only what was seen in it counts.
    """
    seen = [row for row in watched if len(window) != 2 or window[0] <= float(row.get("t", 0.0)) <= window[1]]
    checks = (_throttled(before, after, seen), _governor(before, after), _warmed(before, after, seen))
    return [reason for reason in (*checks, _slowed(seen), _disturbed(before, after)) if reason]


def _throttled(before: Mapping[str, Any], after: Mapping[str, Any], seen: Sequence[Mapping[str, Any]]) -> str:
    flags = list((after.get("throttling") or {}).get("now", ()))
    if flags:
        return f"the firmware says: {', '.join(map(str, flags))}"
    earlier, later = _number(before.get("throttle_count")), _number(after.get("throttle_count"))
    if earlier is not None and later is not None and later > earlier:
        return f"the processor throttled {later - earlier:.0f} times"
    if after.get("throttled") is True or any(row.get("throttled") is True for row in seen):
        return "the device throttled"
    return ""


def _governor(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    was, now = before.get("governor"), after.get("governor")
    return f"the governor went from {was} to {now}" if was and now and was != now else ""


def _warmed(before: Mapping[str, Any], after: Mapping[str, Any], seen: Sequence[Mapping[str, Any]]) -> str:
    start = _number(before.get("temp_c"))
    warmest = max(_known([after.get("temp_c"), *(row.get("temp_c") for row in seen)]), default=None)
    if start is None or warmest is None or warmest - start <= WARMED_C:
        return ""
    return f"the processor warmed from {start:g} to {warmest:g} °C"


def _slowed(seen: Sequence[Mapping[str, Any]]) -> str:
    clocks = _known([row.get("freq_mhz") for row in seen])
    if len(clocks) < 2:
        return ""
    top = max(clocks)
    # A clock that still rises at the first look is the governor's start, not a fall.
    lowest = min(clocks[clocks.index(top) :])
    return f"the clock fell from {top:g} to {lowest:g} MHz" if lowest < SLOWED * top else ""


def _disturbed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    others, cores = _number(after.get("other_cores")), _number(before.get("cores"))
    if others is None or not cores or others / cores <= OTHER_LOAD:
        return ""
    names = ", ".join(str(one.get("name")) for one in after.get("busiest", ())[:2] if isinstance(one, Mapping))
    return f"other programs kept {others:.2g} of {cores:g} cores busy" + (f" ({names})" if names else "")


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _known(values: Sequence[object]) -> list[float]:
    return [number for number in map(_number, values) if number is not None]
