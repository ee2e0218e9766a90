"""A run that is attended: the device's state before, during and after it. Standard library only, Python ≥ 3.9."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

# On a device these files lie side by side and belong to no package.
import conditions  # type: ignore[import-not-found]
import held  # type: ignore[import-not-found]
from store import AgentError  # type: ignore[import-not-found]

WATCH_SECONDS = 1.0
SENSE_SECONDS, SENSE_SLOWLY = 0.1, 1.0
IDLE_SECONDS = 2.0
LOOK_SECONDS = 0.25
Json = dict[str, Any]


class Attendant:
    """Holds what was asked to be held for as long as a request is worked on, and looks after each timed run.

    Args:
        asked: `governor`, `cool_below_c`, `cool_seconds`, `sensors` (patterns of files below /sys), all optional.
        root: The folder that is kept.
        say: Told what is waited for.
        proc: The root of /proc.
        sys: The root of /sys.
    """

    def __init__(
        self, asked: Json, root: str, say: Callable[[str], None], proc: str = "/proc", sys: str = "/sys"
    ) -> None:
        self.asked, self.root, self.say, self.proc, self.sys = asked, root, say, proc, sys
        for key in ("cool_below_c", "cool_seconds"):
            if not isinstance(asked.get(key, 0) or 0, (int, float)):
                raise AgentError("request", f"`{key}` is of the wrong type")
        self.sensors = conditions.files_of([_inside(pattern) for pattern in asked.get("sensors", [])], sys)
        self.found: Json = {}
        self.idle: list[Json] | None = None

    def __enter__(self) -> Attendant:  # noqa: PYI034  # Self is of Python 3.11
        if self.asked.get("governor"):
            self.found["governor"] = held.governor(self.root, str(self.asked["governor"]), self.proc, self.sys)
        return self

    def __exit__(self, *error: object) -> None:
        if self.asked.get("governor"):
            trouble = held.restore(self.root, self.proc, self.sys)
            self.found["governor"]["not_restored"] = trouble

    def run(self, work: Callable[[], Json], slowly: bool) -> Json:
        """What `work` gives, with the conditions around it; the energy sensors are read once a second if `slowly`."""
        cooled = self._cool()
        self._rest()
        look = conditions.processes(self.proc)
        time.sleep(LOOK_SECONDS)
        start = conditions.processes(self.proc)
        before = dict(conditions.read(self.proc, self.sys), busiest=conditions.busiest(look, start, LOOK_SECONDS))
        began, busy, own = time.monotonic(), conditions.busy_seconds(self.proc), time.process_time()
        sense = conditions.Sampler(self._sense, SENSE_SLOWLY if slowly else SENSE_SECONDS)
        with conditions.Sampler(lambda: conditions.watch(self.proc, self.sys), WATCH_SECONDS) as watched:
            if self.sensors:
                sense.start()
            try:
                answer = work()
            finally:
                if self.sensors:
                    sense.__exit__()
        seconds = time.monotonic() - began
        after = conditions.read(self.proc, self.sys)
        after["busiest"] = conditions.busiest(start, conditions.processes(self.proc), seconds)
        after["other_cores"] = self._others(busy, answer["cpu_seconds"] + time.process_time() - own, seconds)
        found = dict(answer["run"], conditions_before=before, conditions_after=after, watched=watched.rows)
        if cooled is not None:
            found["cooled"] = cooled
        if self.sensors:
            texts = conditions.texts(conditions.files_of(_beside(self.sensors), self.sys), self.sys)
            found["sensed"] = {"active": sense.rows, "idle": self.idle, "texts": texts}
        return found

    def _cool(self) -> Json | None:
        below = self.asked.get("cool_below_c")
        if below is None:
            return None

        def temperature() -> float | None:
            found = conditions.watch(self.proc, self.sys)["temp_c"]
            value: float | None = None if found is None else float(found)
            if value is not None and value >= below:
                self.say(f"cooling down: {value:g} °C, waiting for less than {below:g} °C")
            return value

        seconds = float(self.asked.get("cool_seconds") or 300.0)
        found: Json = held.cool(float(below), seconds, temperature)
        return found

    def _rest(self) -> None:
        """Read the sensors while nothing runs, once: energy is told above that."""
        if self.sensors and self.idle is None:
            with conditions.Sampler(self._sense, SENSE_SECONDS) as resting:
                time.sleep(IDLE_SECONDS)
            self.idle = resting.rows

    def _sense(self) -> Json:
        return dict(conditions.numbers(self.sensors, self.sys))

    def _others(self, busy: float | None, ours: float, seconds: float) -> float | None:
        """How many cores all others kept busy meanwhile, on average."""
        now = conditions.busy_seconds(self.proc)
        if busy is None or now is None or seconds <= 0:
            return None
        others: float = max(0.0, round((now - busy - ours) / seconds, 3))
        return others


def _inside(pattern: object) -> str:
    if not isinstance(pattern, str) or os.path.isabs(pattern) or ".." in pattern.split("/"):
        raise AgentError("request", f"a sensor is a pattern of files below /sys, not {pattern!r}")
    return pattern


def _beside(files: list[str]) -> list[str]:
    """What says what a sensor is and how far its counter goes: small files beside it."""
    folders = dict.fromkeys(os.path.dirname(file) for file in files)
    return [f"{folder}/{name}" for folder in folders for name in ("name", "max_energy_range_uj", "type", "status")]
