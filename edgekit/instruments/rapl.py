"""RAPL: the energy counters of Intel's and AMD's processors, as the kernel's powercap shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from edgekit.instruments.base import Channel, Instrument, Rows, column, files_in

_COUNTER = "/energy_uj"
_JOULES = 1e-6
_ADDING_UP = ("package", "dram")
"""A package's own cores and graphics are in it already; its memory is not."""


class Rapl(Instrument):
    """Packages and their memory; the counters wrap around."""

    summary: ClassVar[str] = "RAPL counters of x86 processors (powercap; unverified on hardware)"
    sensors: ClassVar[tuple[str, ...]] = ("class/powercap/intel-rapl:*/energy_uj",)

    def channels(self, rows: Rows, texts: Mapping[str, str]) -> list[Channel]:
        """See `Instrument.channels`."""
        found = []
        for file in files_in(rows):
            folder = file.removesuffix(_COUNTER)
            label = texts.get(f"{folder}/name", "")
            if "intel-rapl:" not in file or not file.endswith(_COUNTER) or not label.startswith(_ADDING_UP):
                continue
            times, values = column(rows, file, _JOULES)
            reach = texts.get(f"{folder}/max_energy_range_uj", "")
            # Without its range a counter that fell says nothing.
            if times and reach.isdigit():
                span = float(reach) * _JOULES
                zone = folder.rpartition("/")[2]
                found.append(Channel(f"{label} ({zone})", "J", times, unwrapped(values, span), _JOULES))
        return found


def unwrapped(values: Sequence[float], span: float) -> tuple[float, ...]:
    """A counter that starts again from 0 after `span`, as one that never falls."""
    total, found = 0.0, []
    for before, now in zip((values[0], *values), values, strict=False):
        if now < before:
            total += span
        found.append(now + total)
    return tuple(found)
