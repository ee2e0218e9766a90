"""The battery's own gauge, of phones and laptops: current and voltage, or the charge that is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from edgekit.instruments.base import Channel, Instrument, Rows, column, files_in

_UNIT = 1e-6
_SECONDS_AN_HOUR = 3600.0
_FOLDER = "class/power_supply/"


class Battery(Instrument):
    """The whole device, screen and radio included, and only while it is not being charged."""

    summary: ClassVar[str] = "battery gauges of phones and laptops (power_supply; unverified on hardware)"
    sensors: ClassVar[tuple[str, ...]] = tuple(
        f"{_FOLDER}*/{name}" for name in ("current_now", "voltage_now", "charge_counter", "charge_now")
    )

    def channels(self, rows: Rows, texts: Mapping[str, str]) -> list[Channel]:
        """See `Instrument.channels`."""
        folders = dict.fromkeys(file.rpartition("/")[0] for file in files_in(rows) if file.startswith(_FOLDER))
        # A battery that is being charged takes from the mains what the device takes: its gauge says nothing.
        using = [
            folder
            for folder in folders
            if texts.get(f"{folder}/type") == "Battery" and texts.get(f"{folder}/status") == "Discharging"
        ]
        return [channel for folder in using if (channel := _channel(folder, rows)) is not None]


def _channel(folder: str, rows: Rows) -> Channel | None:
    name = folder.rpartition("/")[2]
    current, voltage = f"{folder}/current_now", f"{folder}/voltage_now"
    whole = [row for row in rows if row.get(voltage) is not None]
    flowing = [row for row in whole if row.get(current) is not None]
    if flowing:
        times, volts = column(flowing, voltage, _UNIT)
        # Makers differ in which direction they count as negative.
        amperes = [abs(value) for value in column(flowing, current, _UNIT)[1]]
        watts = tuple(u * i for u, i in zip(volts, amperes, strict=True))
        return Channel(f"battery ({name})", "W", times, watts, max(volts) * 1e-3)
    for counter in (f"{folder}/charge_counter", f"{folder}/charge_now"):
        charged = [row for row in whole if row.get(counter) is not None]
        if charged:
            times, coulombs = column(charged, counter, _UNIT * _SECONDS_AN_HOUR)
            volts = column(charged, voltage, _UNIT)[1]
            mean = sum(volts) / len(volts)
            # Charge that is left falls while energy that was taken rises.
            taken = tuple(max(0.0, coulombs[0] - value) * mean for value in coulombs)
            return Channel(f"battery ({name})", "J", times, taken, 1e-3 * _SECONDS_AN_HOUR * mean)
    return None
