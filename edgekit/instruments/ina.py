"""INA219, INA226 and their kin: power monitors on I2C, as the kernel's hwmon shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from edgekit.instruments.base import Channel, Instrument, Rows, column, files_in

_FILE = re.compile(r"class/hwmon/hwmon\d+/power\d+_input")
_CHIPS = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina260")
_WATTS = 1e-6
_STEP_WATTS = 1e-3
"""The power register's step hangs on the shunt; with the drivers' usual calibration it is in the order of a milliwatt."""


class Ina(Instrument):
    """What flows through the chip's shunt: what else hangs on that supply is measured with it."""

    summary: ClassVar[str] = "INA219/INA226 power monitors (hwmon; unverified on hardware)"
    sensors: ClassVar[tuple[str, ...]] = ("class/hwmon/hwmon*/power*_input",)

    def channels(self, rows: Rows, texts: Mapping[str, str]) -> list[Channel]:
        """See `Instrument.channels`."""
        found = []
        for file in files_in(rows):
            chip = texts.get(f"{file.rpartition('/')[0]}/name", "")
            if not _FILE.fullmatch(file) or chip not in _CHIPS:
                continue
            times, values = column(rows, file, _WATTS)
            if times:
                place = "/".join(file.split("/")[-2:])
                found.append(Channel(f"{chip} ({place})", "W", times, values, _STEP_WATTS))
        return found
