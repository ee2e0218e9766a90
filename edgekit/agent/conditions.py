"""The state that a device is in while it is measured: standard library only, Python ≥ 3.9.

The places of /proc and /sys are parameters, so that the reading is tested on recorded trees. What a device does not tell
is None or absent, never a guess.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

# On a device these files lie side by side and belong to no package.
import facts  # type: ignore[import-not-found]

_FLAGS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits of `vcgencmd get_throttled`: now; the same 16 bits higher: since the start of the system."""
_FLAG_FILES = ("devices/platform/soc/*firmware/get_throttled", "devices/platform/soc*/*firmware/get_throttled")
_MAX_ROWS = 200_000
_BUSIEST = 3
Json = dict[str, Any]
_TICKS = os.sysconf("SC_CLK_TCK")


def _number(path: str) -> float | None:
    text = facts.read_text(path)
    return float(text) if text and re.fullmatch(r"-?\d+(\.\d+)?", text) else None


def _mhz(path: str) -> float | None:
    khz = _number(path)
    return None if khz is None else round(khz / 1000, 1)


# --- clock and heat -------------------------------------------------------------------------------------------------


def policies(sys: str) -> dict[str, Json]:
    """Each frequency policy: its governor, the limits of the hardware and those in force, and the clock, in MHz."""
    found = {}
    for folder in sorted(glob.glob(os.path.join(sys, "devices/system/cpu/cpufreq/policy[0-9]*"))):
        found[os.path.basename(folder)] = {
            "governor": facts.read_text(os.path.join(folder, "scaling_governor")),
            "cores": facts.read_text(os.path.join(folder, "related_cpus")),
            "hardware_min_mhz": _mhz(os.path.join(folder, "cpuinfo_min_freq")),
            "hardware_max_mhz": _mhz(os.path.join(folder, "cpuinfo_max_freq")),
            "min_mhz": _mhz(os.path.join(folder, "scaling_min_freq")),
            "max_mhz": _mhz(os.path.join(folder, "scaling_max_freq")),
            "cur_mhz": _mhz(os.path.join(folder, "scaling_cur_freq")),
        }
    return found


def zones(sys: str) -> list[Json]:
    """Each thermal zone that tells its temperature in °C."""
    found = []
    for folder in sorted(glob.glob(os.path.join(sys, "class/thermal/thermal_zone[0-9]*"))):
        value = _number(os.path.join(folder, "temp"))
        if value is not None:
            kind = facts.read_text(os.path.join(folder, "type"))
            found.append({"zone": os.path.basename(folder), "type": kind, "temp_c": round(value / 1000, 1)})
    return found


def decoded(flags: int) -> Json:
    """What the firmware of a Raspberry Pi says by the number of `vcgencmd get_throttled`."""
    return {
        "raw": f"{flags:#x}",
        "now": [name for bit, name in _FLAGS.items() if flags >> bit & 1],
        "occurred": [name for bit, name in _FLAGS.items() if flags >> (bit + 16) & 1],
    }


def firmware(sys: str, vcgencmd: str | None = None) -> Json | None:
    """A Raspberry Pi's flags of throttling, from the kernel or, where it does not give them, from the program."""
    for pattern in _FLAG_FILES:
        for path in glob.glob(os.path.join(sys, pattern)):
            text = facts.read_text(path) or ""
            if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
                return decoded(int(text, 16))
    if vcgencmd is None:
        return None
    try:
        done = subprocess.run(
            [vcgencmd, "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(rb"throttled=(0x[0-9a-fA-F]+)", done.stdout)
    return decoded(int(said.group(1), 16)) if said else None


def throttle_count(sys: str) -> int | None:
    """How often the cores and packages of an x86 processor throttled since the system started."""
    pattern = os.path.join(sys, "devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [count for count in map(_number, glob.glob(pattern)) if count is not None]
    return int(sum(counts)) if counts else None


# --- load and memory ------------------------------------------------------------------------------------------------


def pressure(proc: str, what: str) -> float | None:
    """Share of the last ten seconds, in percent, in which something waited for `memory`, `cpu` or `io`."""
    text = facts.read_text(os.path.join(proc, "pressure", what)) or ""
    found = re.search(r"^some avg10=([0-9.]+)", text, re.MULTILINE)
    return float(found.group(1)) if found else None


def memory(proc: str) -> Json:
    """Free memory and swap in use, in MiB, and the pressure on memory."""
    text = facts.read_text(os.path.join(proc, "meminfo")) or ""
    sizes = {key: int(kib) / 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    swap = sizes["SwapTotal"] - sizes["SwapFree"] if {"SwapTotal", "SwapFree"} <= sizes.keys() else None
    return {
        "ram_available_mib": round(sizes["MemAvailable"], 1) if "MemAvailable" in sizes else None,
        "swap_used_mib": None if swap is None else round(swap, 1),
        "memory_pressure_pct": pressure(proc, "memory"),
    }


def busy_seconds(proc: str) -> float | None:
    """What all processors together have worked since the system started; a host's share of a virtual machine counts."""
    words = (facts.read_text(os.path.join(proc, "stat")) or "").split("\n", 1)[0].split()
    if len(words) < 8 or words[0] != "cpu":
        return None
    values = [int(word) for word in words[1:]]
    # user, nice, system, irq, softirq, steal; guests are in user and nice already.
    return sum(values[place] for place in (0, 1, 2, 5, 6, 7) if place < len(values)) / _TICKS


def processes(proc: str) -> dict[int, tuple[str, float]]:
    """Name and seconds of work of each process; what ends while it is looked at is left out."""
    found = {}
    for name in os.listdir(proc) if os.path.isdir(proc) else []:
        text = facts.read_text(os.path.join(proc, name, "stat")) if name.isdigit() else None
        before, bracket, after = (text or "").rpartition(")")
        words = after.split()
        if bracket and len(words) > 12:
            found[int(name)] = (before.partition("(")[2], (int(words[11]) + int(words[12])) / _TICKS)
    return found


def busiest(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], seconds: float) -> list[Json]:
    """The processes that worked most between two looks, each with the number of cores that it kept busy."""
    rates = [
        {"name": name, "pid": pid, "cores": round((spent - before[pid][1]) / seconds, 3)}
        for pid, (name, spent) in after.items()
        if pid in before and pid != os.getpid() and spent > before[pid][1] and seconds > 0
    ]
    return sorted(rates, key=lambda rate: -float(str(rate["cores"])))[:_BUSIEST]


# --- the whole ------------------------------------------------------------------------------------------------------


def read(proc: str = "/proc", sys: str = "/sys") -> Json:
    """The device's state now: clock, heat, throttling, load, memory, battery."""
    found: Json = dict(facts.clock(proc, sys), **facts.heat(sys))
    flags = firmware(sys, shutil.which("vcgencmd"))
    if flags is not None:
        found["throttled"] = bool(flags["now"])
    load = facts.read_text(os.path.join(proc, "loadavg"))
    found.update(memory(proc), **facts.battery(sys))
    found.update(
        policies=policies(sys),
        zones=zones(sys),
        throttling=flags,
        throttle_count=throttle_count(sys),
        load_1min=float(load.split()[0]) if load else None,
        cpu_pressure_pct=pressure(proc, "cpu"),
    )
    return found


class Sampler(threading.Thread):
    """Calls `read` every `period` seconds and keeps what it gives, with `t` (time.monotonic), until it is stopped."""

    def __init__(self, read: Callable[[], Json], period: float) -> None:
        super().__init__(daemon=True)
        self._read, self._period, self._stop_now = read, period, threading.Event()
        self.rows: list[Json] = []

    def run(self) -> None:
        """The thread's work."""
        while len(self.rows) < _MAX_ROWS:
            begin = time.monotonic()
            values = self._read()
            # In the middle of the reading: that is when the values were true.
            self.rows.append({"t": (begin + time.monotonic()) / 2, **values})
            if self._stop_now.wait(max(0.0, self._period - (time.monotonic() - begin))):
                return

    def __enter__(self) -> Sampler:  # noqa: PYI034  # Self is of Python 3.11
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_now.set()
        self.join()


def watch(proc: str = "/proc", sys: str = "/sys") -> Json:
    """What is looked at while a model runs: the clock, the heat, and whether the firmware throttles."""
    heat = facts.heat(sys)
    return {"freq_mhz": facts.clock(proc, sys)["freq_mhz"], "temp_c": heat["temp_c"], "throttled": heat["throttled"]}


def files_of(patterns: list[str], sys: str = "/sys") -> list[str]:
    """The files below /sys that fit the patterns, relative to it."""
    found = [path for pattern in patterns for path in glob.glob(os.path.join(sys, pattern))]
    return sorted(os.path.relpath(path, sys) for path in dict.fromkeys(found) if os.path.isfile(path))


def numbers(files: list[str], sys: str = "/sys") -> Json:
    """The numbers in files below /sys."""
    return {file: _number(os.path.join(sys, file)) for file in files}


def texts(files: list[str], sys: str = "/sys") -> dict[str, str]:
    """What stands in files below /sys that do not change."""
    found = {file: facts.read_text(os.path.join(sys, file)) for file in files}
    return {file: text[:200] for file, text in found.items() if text is not None}
