"""What a device tells of itself. Runs on the device: standard library only, Python 3.9 or newer.

Everything is read from files below `/proc`, `/sys` and `/etc`, whose places are parameters, so that the reading is
tested on recorded trees. What a device does not tell is None, never a guess.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import re
import site
import struct
import sys
from typing import Any

# /proc/cpuinfo on Arm names the core by the numbers of its identification register, not by its name.
_ARM_PARTS = {
    0xC07: "Cortex-A7",
    0xC09: "Cortex-A9",
    0xC0F: "Cortex-A15",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
_ARM = 0x41
_CPU_ZONE = re.compile(r"cpu|soc|pkg|package|core", re.IGNORECASE)
_NARROW = {"aarch64": "armv7l", "x86_64": "i686"}
_MIB = 1 << 20


def read_text(path: str) -> str | None:
    """A small file's text without surrounding blanks, or None where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 20).decode("utf-8", "replace").strip("\0 \t\r\n")
    except OSError:
        return None


def _number(path: str) -> float | None:
    text = read_text(path)
    return float(text) if text and re.fullmatch(r"-?\d+(\.\d+)?", text) else None


def _fields(text: str | None) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in (text or "").splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in pairs if colon]


def cpu(proc: str) -> dict[str, Any]:
    """`cpu_model` and `cores` from /proc/cpuinfo."""
    found = _fields(read_text(os.path.join(proc, "cpuinfo")))
    names = [value for key, value in found if key in ("model name", "Processor") and value]
    makers = [value for key, value in found if key == "CPU implementer"]
    parts = [value for key, value in found if key == "CPU part"]
    if makers and all(int(maker, 16) == _ARM for maker in makers):
        cores = [_ARM_PARTS.get(int(part, 16)) for part in parts]
        if cores and all(cores):
            names = [core for core in cores if core]
    count = sum(1 for key, _ in found if key == "processor")
    return {"cpu_model": " + ".join(dict.fromkeys(names)) or None, "cores": count or os.cpu_count()}


def memory(proc: str) -> dict[str, Any]:
    """`ram_mib` and `ram_available_mib` from /proc/meminfo."""
    sizes = {key: value.split() for key, value in _fields(read_text(os.path.join(proc, "meminfo")))}

    def mib(key: str) -> float | None:
        words = sizes.get(key, [])
        return round(int(words[0]) / 1024, 1) if words and words[0].isdigit() else None

    return {"ram_mib": mib("MemTotal"), "ram_available_mib": mib("MemAvailable")}


def clock(proc: str, sys: str) -> dict[str, Any]:
    """`governor` and `freq_mhz`: the highest current clock of all cores."""
    folder = os.path.join(sys, "devices/system/cpu/cpu[0-9]*/cpufreq")
    governors = [read_text(path) for path in sorted(glob.glob(os.path.join(folder, "scaling_governor")))]
    clocks = [_number(path) for path in glob.glob(os.path.join(folder, "scaling_cur_freq"))]
    mhz = [khz / 1000 for khz in clocks if khz is not None]
    if not mhz:
        lines = _fields(read_text(os.path.join(proc, "cpuinfo")))
        mhz = [float(value) for key, value in lines if key == "cpu MHz" and re.fullmatch(r"\d+(\.\d+)?", value)]
    names = list(dict.fromkeys(name for name in governors if name))
    return {"governor": "+".join(names) or None, "freq_mhz": round(max(mhz), 1) if mhz else None}


def heat(sys: str) -> dict[str, Any]:
    """`temp_c`, the hottest zone of the processor, and `throttled`, where firmware tells it (Raspberry Pi)."""
    degrees = []
    for zone in sorted(glob.glob(os.path.join(sys, "class/thermal/thermal_zone[0-9]*"))):
        value = _number(os.path.join(zone, "temp"))
        if value is not None and _CPU_ZONE.search(read_text(os.path.join(zone, "type")) or ""):
            degrees.append(value / 1000)
    throttled = None
    for path in glob.glob(os.path.join(sys, "devices/platform/soc/*firmware/get_throttled")):
        text = read_text(path) or ""
        if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
            # The low four bits are the present state: under-voltage, capped clock, throttled, soft limit.
            throttled = bool(int(text, 16) & 0xF)
    return {"temp_c": round(max(degrees), 1) if degrees else None, "throttled": throttled}


def battery(sys: str) -> dict[str, Any]:
    """`battery_pct`, where there is a battery."""
    for supply in sorted(glob.glob(os.path.join(sys, "class/power_supply/*"))):
        if read_text(os.path.join(supply, "type")) == "Battery":
            return {"battery_pct": _number(os.path.join(supply, "capacity"))}
    return {"battery_pct": None}


def system(proc: str, etc: str) -> dict[str, Any]:
    """`os`, `load_1min`, `uptime_s` and `machine_model`."""
    release = dict(line.partition("=")[::2] for line in (read_text(os.path.join(etc, "os-release")) or "").splitlines())
    load = (read_text(os.path.join(proc, "loadavg")) or "").split()
    uptime = (read_text(os.path.join(proc, "uptime")) or "").split()
    return {
        "os": release.get("PRETTY_NAME", "").strip("\"'") or None,
        "load_1min": float(load[0]) if load else None,
        "uptime_s": float(uptime[0]) if uptime else None,
        "machine_model": read_text(os.path.join(proc, "device-tree/model")) or None,
    }


def libc() -> str | None:
    """The C library as `glibc 2.36`, or None where it is another one."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None


def installed(distribution: str) -> str | None:
    """The version of a distribution of the system's own: what a login has for itself, a worker does not see."""
    own = site.getusersitepackages()
    places = [place for place in sys.path if place != own]
    versions = [found.version for found in importlib.metadata.distributions(name=distribution, path=places)]
    return versions[0] if versions else None


def architecture(machine: str, pointer_bytes: int) -> str:
    """What the interpreter was built for: a 32-bit system under a 64-bit kernel still needs 32-bit wheels."""
    return _NARROW.get(machine, machine) if pointer_bytes == 4 else machine


def read(proc: str = "/proc", sys: str = "/sys", etc: str = "/etc") -> dict[str, Any]:
    """All facts of this device; None for each that it does not tell."""
    found: dict[str, Any] = {
        "hostname": platform.node() or None,
        "arch": architecture(platform.machine(), struct.calcsize("P")),
        "kernel": platform.release() or None,
        "libc": libc(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "numpy": installed("numpy"),
    }
    for part in (cpu(proc), memory(proc), clock(proc, sys), heat(sys), battery(sys), system(proc, etc)):
        found.update(part)
    return found
