"""Interleave: several artifacts measured on one device in rounds, so that what drifts falls on all of them alike.

In each round every artifact has one fresh process, in an order drawn by lot: which of two came first is then a fair
coin, and that is all that the test of a comparison rests on, see `edgekit.core.comparison`.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgekit.core.device import Device
from edgekit.core.measurement import Measurement
from edgekit.core.progress import Progress
from edgekit.core.result import Result
from edgekit.flow.build import Built
from edgekit.flow.deploy import deploy
from edgekit.flow.measure import Settings, visit
from edgekit.flow.store import Store

TURNS = "turns"
"""In the metadata of a measurement: which rounds it was made in. Process i of two that share it is round i."""

ROUNDS = 16
"""Fresh processes of each where several take turns: what finds 5 % on a noisy machine, see docs/measurement.md."""

_BY_PROCESS = ("timing", "stages", "cooled", "by_process")


def bench(
    placed: Sequence[tuple[Built, Sequence[Device]]],
    settings: Settings,
    store: Store,
    progress: Progress,
    *,
    run: str,
    command: str = "",
) -> list[Result]:
    """Measure artifacts on devices and change nothing there; those that share a device take turns on it.

    Args:
        placed: Each artifact, and the devices it is measured on.
        settings: How; `processes` is the number of rounds where several take turns.
        store: Gets the results of a device as soon as it is done.
        progress: Told what is done.
        run: What all results share.
        command: As typed.

    Raises:
        EdgekitError: The first error of a device.
    """
    devices: dict[str, tuple[Device, list[Built]]] = {}
    for built, units in placed:
        for device in units:
            devices.setdefault(device.name, (device, []))[1].append(built)
    results: list[Result] = []
    for device, sharing in devices.values():
        if len(sharing) == 1:
            results += deploy(sharing[0], [device], settings, store, progress, run=run, command=command, release=False)
            continue
        merged = in_turns(sharing, device, settings, progress, run=run, command=command)
        for result in merged:
            store.add(result)
        results += merged
    return results


def in_turns(
    sharing: Sequence[Built],
    device: Device,
    settings: Settings,
    progress: Progress,
    *,
    run: str,
    command: str = "",
    lot: random.Random | None = None,
) -> list[Result]:
    """One result for each artifact, of `settings.processes` rounds on one device.

    Args:
        sharing: The artifacts; the same one may be there twice (A/A).
        device: Where.
        settings: How.
        progress: Told of each visit.
        run: What the results share.
        command: As typed.
        lot: Draws the order of each round; the system's own random numbers by default.
    """
    lot = lot or random.SystemRandom()
    gathered: list[list[Result]] = [[] for _ in sharing]
    plain = replace(settings, processes=1, sweep_threads=(), sustained_seconds=0.0)
    with progress.step(f"{device.name}: {len(sharing)} artifacts in turns", settings.processes) as step:
        for number in range(settings.processes):
            # The score does not depend on the round: once is enough.
            once = replace(plain, accuracy=settings.accuracy and number == 0)
            order = list(range(len(sharing)))
            lot.shuffle(order)
            for place in order:
                made = visit(sharing[place], device, once, progress, run=run, command=command, release=False)
                gathered[place].append(made)
            step.advance()
    turns = f"{run}/{device.name}"
    merged = [_merged(results, turns) for results in gathered]
    if not settings.sweep_threads and not settings.sustained_seconds:
        return merged
    # Afterwards, once each: minutes under load would warm the device for whoever has the next turn.
    alone = replace(settings, processes=1, accuracy=False)
    more = [visit(one, device, alone, progress, run=run, command=command, release=False) for one in sharing]
    return [_completed(result, own) for result, own in zip(merged, more, strict=True)]


def _completed(result: Result, more: Result) -> Result:
    """The result, with what only `more` has measured."""
    known = {measured.metric for measured in result.measurements}
    new = tuple(measured for measured in more.measurements if measured.metric not in known)
    return replace(result, measurements=(*result.measurements, *new))


def _merged(results: Sequence[Result], turns: str) -> Result:
    """The rounds of one artifact as one result."""
    metrics = dict.fromkeys(m.metric for result in results for m in result.measurements)
    measured = [[found for r in results if (found := r.measured(metric)) is not None] for metric in metrics]
    names = dict.fromkeys(name for result in results for name in result.seconds)
    return replace(
        results[0],
        measurements=tuple(_joined(parts, turns) for parts in measured),
        bytes_sent=sum(result.bytes_sent for result in results),
        seconds={name: sum(result.seconds.get(name, 0.0) for result in results) for name in names},
    )


def _joined(parts: Sequence[Measurement], turns: str) -> Measurement:
    """One measurement of all rounds. A tool's summaries stay a summary: their median, with each in the metadata."""
    values = tuple(value for part in parts for value in part.values)
    metadata = {**parts[0].metadata, **_gathered(parts), TURNS: turns}
    if parts[0].kind == "summary":
        metadata["summaries"] = list(values)
        values = (statistics.median(values),)
    return replace(
        parts[0],
        values=values,
        warmups=tuple(value for part in parts for value in part.warmups),
        processes=tuple(count for part in parts for count in part.processes),
        conditions_after={**parts[-1].conditions_after, **_ever(parts)},
        metadata=metadata,
    )


def _gathered(parts: Sequence[Measurement]) -> dict[str, Any]:
    """What the metadata say of each process, of all rounds; of what moved, each once."""
    found: dict[str, Any] = {}
    for name in _BY_PROCESS:
        said = [value for part in parts for value in part.metadata.get(name, ())]
        if said:
            found[name] = said
    moved = list(dict.fromkeys(text for part in parts for text in part.metadata.get("moved", ())))
    return found | ({"moved": moved} if moved else {})


def _ever(parts: Sequence[Measurement]) -> dict[str, bool]:
    """Throttled in one of the rounds is throttled, whatever the last one says."""
    said = [part.conditions_after.get("throttled") for part in parts]
    return {"throttled": True} if any(value is True for value in said) else {}
