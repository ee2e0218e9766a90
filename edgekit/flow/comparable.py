"""Comparable: why two measurements say nothing of each other, each reason with the word that lets it pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.core.conditions import moved
from edgekit.core.measurement import Measurement
from edgekit.core.result import Result

DEGREES_BETWEEN_RUNS = 15.0
_SETTINGS = (
    ("runtime", "runtime"),
    ("runtime", "runtime_version"),
    ("delegate", "delegate"),
    ("delegate", "xnnpack_applied"),
    ("threads", "threads"),
)

ALLOWABLE = (
    "cpu",
    "delegate",
    "device",
    "governor",
    "moved",
    "runner",
    "runtime",
    "temperature",
    "threads",
    "throttled",
)
"""What a person may compare over on purpose. Emulated and hardware, samples and summaries are never compared."""


@dataclass(frozen=True)
class Reason:
    """Why two measurements are not comparable.

    Attributes:
        code: One of `ALLOWABLE`, or `emulated` or `kind`.
        text: What differs, with both values.
    """

    code: str
    text: str


def reasons(a: Result, b: Result, first: Measurement, second: Measurement, *, in_turns: bool = False) -> list[Reason]:
    """Every reason against comparing a measurement of A with one of B.

    What a device does not tell is no reason: None on one side says that nobody looked. What moved while both took turns
    fell on both alike, and is none either.
    """
    found = [*_identity(a, b), *_kind(first, second), *_settings(first, second), *_throttled(first, second)]
    return found if in_turns else [*found, *_moved(first, second)]


def moved_in(measured: Measurement) -> list[str]:
    """What is known to have moved while it was measured, in words."""
    said = measured.metadata.get("moved")
    return list(map(str, said)) if said else moved(measured.conditions_before, measured.conditions_after)


def _identity(a: Result, b: Result) -> Iterator[Reason]:
    if a.emulated != b.emulated:
        said = ["emulated" if result.emulated else "hardware" for result in (a, b)]
        yield Reason("emulated", f"{said[0]} against {said[1]}")
    if a.device != b.device:
        yield Reason("device", f"device {a.device} against {b.device}")
    if a.runner != b.runner:
        yield Reason("runner", f"runner {a.runner} against {b.runner}")


def _kind(first: Measurement, second: Measurement) -> Iterator[Reason]:
    if first.kind != second.kind:
        yield Reason("kind", f"{first.kind} against {second.kind}")
    elif first.kind == "summary":
        yield Reason("kind", "the tool gives a summary and no samples, so there is nothing to test")


def _settings(first: Measurement, second: Measurement) -> Iterator[Reason]:
    for code, name in _SETTINGS:
        yield from _differs(code, name, first.metadata, second.metadata)
    for code, name in (("cpu", "cpu_model"), ("governor", "governor")):
        yield from _differs(code, name, first.conditions_before, second.conditions_before)


def _differs(code: str, name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Reason]:
    one, other = first.get(name), second.get(name)
    if None not in (one, other) and one != other:
        yield Reason(code, f"{name.replace('_', ' ')} {one} against {other}")


def _throttled(first: Measurement, second: Measurement) -> Iterator[Reason]:
    for side, measured in (("A", first), ("B", second)):
        if True in (measured.conditions_before.get("throttled"), measured.conditions_after.get("throttled")):
            yield Reason("throttled", f"the device throttled while {side} was measured")


def _moved(first: Measurement, second: Measurement) -> Iterator[Reason]:
    for side, measured in (("A", first), ("B", second)):
        if True not in (measured.conditions_before.get("throttled"), measured.conditions_after.get("throttled")):
            yield from (Reason("moved", f"{text} while {side} was measured") for text in moved_in(measured))
    starts = [_degrees(measured.conditions_before) for measured in (first, second)]
    if None not in starts and abs(starts[0] - starts[1]) > DEGREES_BETWEEN_RUNS:
        yield Reason("temperature", f"A began at {starts[0]:g} °C and B at {starts[1]:g} °C")


def _degrees(conditions: Mapping[str, Any]) -> Any:
    value = conditions.get("temp_c")
    return value if isinstance(value, int | float) else None
