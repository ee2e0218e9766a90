"""What a Linux device without Python tells of itself: its shell prints files, and the agent's own readers read them here.

What a device does not tell is None, never a guess.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit.runners._shell_facts import FactsReader

SCRIPT = """\
section machine; uname -m
section kernel; uname -r
section hostname; uname -n
section pointer; getconf LONG_BIT 2>/dev/null || od -An -tu1 -j4 -N1 /bin/sh 2>/dev/null
section libc
getconf GNU_LIBC_VERSION 2>/dev/null || for f in /lib/*/libc.so.6 /lib64/libc.so.6 /lib/libc.so.6 /usr/lib*/libc.so.6; do
    [ -f "$f" ] || continue
    grep -a -o 'release version 2\\.[0-9]*' "$f" 2>/dev/null || grep -o 'release version 2\\.[0-9]*' "$f" 2>/dev/null
    break
done
cpu=/sys/devices/system/cpu/cpu
for f in /proc/cpuinfo /proc/meminfo /proc/loadavg /proc/uptime /proc/device-tree/model /etc/os-release \\
    $cpu[0-9]*/cpufreq/scaling_governor $cpu[0-9]*/cpufreq/scaling_cur_freq /sys/class/thermal/thermal_zone[0-9]*/type \\
    /sys/class/thermal/thermal_zone[0-9]*/temp /sys/devices/platform/soc/*firmware/get_throttled \\
    /sys/class/power_supply/*/type /sys/class/power_supply/*/capacity; do
    [ -r "$f" ] && section "$f" && cat "$f" 2>/dev/null
done
:
"""
_FILE = re.compile(r"/(?:proc|sys|etc)(?:/[A-Za-z0-9@:_-][A-Za-z0-9@:._-]*)+")
_GLIBC = re.compile(r"(?:glibc|version) (2\.\d+)")
_POINTERS = {"64": 8, "2": 8, "32": 4, "1": 4}
"""Bytes of a pointer, by `getconf LONG_BIT` or the class in a program's ELF header."""


@cache
def _agent_facts() -> ModuleType:
    # Loaded, not imported: the agent's files belong to devices, and these readers take any root.
    path = Path(__file__).resolve().parent.parent / "agent" / "facts.py"
    spec = importlib.util.spec_from_file_location("edgekit_facts_of_devices", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def facts(parts: Mapping[str, str]) -> dict[str, Any]:
    """All facts in what `SCRIPT` printed, with the names that the agent's facts have."""
    with tempfile.TemporaryDirectory(prefix="edgekit-facts-") as folder:
        root = Path(folder)
        for name, text in parts.items():
            if _FILE.fullmatch(name):
                _write(root / name.lstrip("/"), text)
        found = _read(root)
    machine, libc = parts.get("machine", "").strip(), _GLIBC.search(parts.get("libc", ""))
    pointer = _POINTERS.get(parts.get("pointer", "").strip(), 8)
    return {
        "hostname": parts.get("hostname", "").strip() or None,
        "arch": _agent_facts().architecture(machine, pointer) if machine else None,
        "kernel": parts.get("kernel", "").strip() or None,
        "libc": f"glibc {libc[1]}" if libc else None,
        "python": None,
        "implementation": None,
        **found,
    }


def _read(root: Path) -> dict[str, Any]:
    readers = _agent_facts()
    proc, sys, etc = (str(root / name) for name in ("proc", "sys", "etc"))
    found: dict[str, Any] = {}
    for part in (
        readers.cpu(proc),
        readers.memory(proc),
        readers.clock(proc, sys),
        readers.heat(sys),
        readers.battery(sys),
        readers.system(proc, etc),
    ):
        found.update(part)
    cpuinfo = root / "proc" / "cpuinfo"
    if not (cpuinfo.is_file() and re.search(r"^processor\s*:", cpuinfo.read_text(), re.MULTILINE)):
        # The agent asks its own system then; here that would be this host.
        found["cores"] = None
    return found


def _write(path: Path, text: str) -> None:
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


READER = FactsReader(SCRIPT, facts)
