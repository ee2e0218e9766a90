"""What an Android device tells of itself: one script for its shell, and pure readers of what that prints.

What a device does not tell is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgekit.runners._shell_facts import FactsReader

SCRIPT = """\
section getprop; getprop
section uname; uname -r
section hostname; uname -n
section cores; ls -d /sys/devices/system/cpu/cpu[0-9]*
section governor; cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor
section frequency; cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq
section meminfo; cat /proc/meminfo
section loadavg; cat /proc/loadavg
section uptime; cat /proc/uptime
section battery; dumpsys battery
section thermal; dumpsys thermalservice
"""
"""What a device refuses to tell leaves its section empty."""

_ARCHES = {"arm64-v8a": "aarch64", "armeabi-v7a": "armv7l", "armeabi": "armv7l", "x86_64": "x86_64", "x86": "i686"}
_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""android.os.PowerManager's THERMAL_STATUS_*, in the order of their numbers."""
_CPU, _SOC = 0, 13
"""Types of sensors in `android.hardware.thermal`."""


def properties(text: str) -> dict[str, str]:
    """`getprop`: values by name."""
    return dict(re.findall(r"^\[([^\]]+)\]: \[(.*)\]\s*$", text, re.MULTILINE))


def identity(text: str) -> dict[str, Any]:
    """What `getprop` says the device is: SoC, ABI, model, Android's version."""
    found = properties(text)

    def first(*names: str) -> str | None:
        return next((found[name] for name in names if found.get(name)), None)

    maker = first("ro.product.manufacturer", "ro.product.vendor.manufacturer")
    model = first("ro.product.model", "ro.product.vendor.model")
    soc = " ".join(filter(None, (first("ro.soc.manufacturer"), first("ro.soc.model"))))
    abi = first("ro.product.cpu.abi") or (first("ro.product.cpu.abilist") or "").partition(",")[0] or None
    release, level = first("ro.build.version.release"), first("ro.build.version.sdk")
    # An emulator for developers says what it is in its own words.
    emulator = first("ro.kernel.qemu", "ro.boot.qemu") == "1"
    return {
        "soc": soc or first("ro.board.platform", "ro.hardware"),
        "abi": abi,
        "arch": _ARCHES.get(abi or "", abi),
        "api_level": int(level) if level and level.isdigit() else None,
        "machine_model": " ".join(filter(None, (maker, model))) or None,
        "os": f"Android {release} (API {level})" if release and level else None,
        "build": first("ro.build.fingerprint", "ro.system_dlkm.build.fingerprint", "ro.vendor.build.fingerprint"),
        "android_emulator": emulator,
    }


def battery(text: str) -> dict[str, Any]:
    """`dumpsys battery`: charge in percent, temperature in °C, and whether it is being charged."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.strip().partition(":")
        if colon:
            # Makers append sections of their own; the service's own lines come first.
            found.setdefault(key.strip(), value.strip())
    level, scale = _number(found.get("level")), _number(found.get("scale"))
    tenths, status = _number(found.get("temperature")), _number(found.get("status"))
    return {
        "battery_pct": round(100 * level / scale, 1) if level is not None and scale else None,
        "battery_temp_c": tenths / 10 if tenths is not None else None,
        "battery_charging": None if status is None else status == 2,
    }


def thermal(text: str) -> dict[str, Any]:
    """`dumpsys thermalservice`: its status, whether the device throttles, and the hottest sensor of the processor in °C."""
    status = re.search(r"^\s*Thermal Status: (\d+)", text, re.MULTILINE)
    level = int(status[1]) if status else None
    # The live block is read where there is one: the cached values may be hours old.
    live = text.partition("Current temperatures from HAL:")[2].partition("cooling devices")[0]
    degrees = [
        float(value)
        for value, kind in re.findall(r"Temperature\{mValue=(-?\d+(?:\.\d+)?), mType=(-?\d+)", live or text)
        if int(kind) in (_CPU, _SOC)
    ]
    known = level is not None and level < len(_THERMAL)
    return {
        "thermal_status": _THERMAL[level] if known and level is not None else None,
        "throttled": None if level is None else level > 0,
        "temp_c": max(degrees, default=None),
    }


def memory(text: str) -> dict[str, Any]:
    """`/proc/meminfo`, in MiB."""

    def mib(key: str) -> float | None:
        found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
        return round(int(found[1]) / 1024, 1) if found else None

    return {"ram_mib": mib("MemTotal"), "ram_available_mib": mib("MemAvailable")}


def clock(governors: str, frequencies: str) -> dict[str, Any]:
    """Governors of the cores, and the highest current clock in MHz."""
    names = list(dict.fromkeys(line.strip() for line in governors.splitlines() if re.fullmatch(r"\w+", line.strip())))
    khz = [int(line) for line in frequencies.split() if line.isdigit()]
    return {"governor": "+".join(names) or None, "freq_mhz": round(max(khz) / 1000, 1) if khz else None}


def facts(parts: Mapping[str, str]) -> dict[str, Any]:
    """All facts in what `SCRIPT` printed, with the names that the agent's facts have."""
    found = identity(parts.get("getprop", ""))
    load, uptime = (_number(parts.get(name, "").strip().partition(" ")[0]) for name in ("loadavg", "uptime"))
    cores = len(re.findall(r"/cpu\d+\s*$", parts.get("cores", ""), re.MULTILINE))
    return {
        "hostname": parts.get("hostname", "").strip() or None,
        "arch": found["arch"],
        "cpu_model": found["soc"],
        "cores": cores or None,
        **memory(parts.get("meminfo", "")),
        "os": found["os"],
        "kernel": parts.get("uname", "").strip() or None,
        "libc": "bionic" if found["api_level"] is not None else None,
        "python": None,
        **clock(parts.get("governor", ""), parts.get("frequency", "")),
        **thermal(parts.get("thermal", "")),
        **battery(parts.get("battery", "")),
        "load_1min": load,
        "uptime_s": uptime,
        **{key: found[key] for key in ("machine_model", "soc", "abi", "api_level", "build", "android_emulator")},
    }


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"-?\d+(\.\d+)?", text) else None


READER = FactsReader(SCRIPT, facts)
