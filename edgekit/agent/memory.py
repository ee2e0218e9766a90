"""Memory on a device: what a process holds, stage by stage, and why one was killed. Standard library only, Python ≥ 3.9.

The places of /proc and of the control groups are parameters, so that the reading is tested on recorded trees.
"""

from __future__ import annotations

import os
import re
from typing import Any

_MIB = 1 << 20
# What version 1 of the control groups writes where there is no limit: the largest multiple of a page in 63 bits.
_NO_LIMIT = 1 << 60
Json = dict[str, Any]


def _text(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError):
        return ""


def _kib(path: str, key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+)", _text(path), re.MULTILINE)
    return int(found.group(1)) if found else None


def status_mib(key: str, proc: str = "/proc/self") -> float | None:
    """A size in /proc/self/status (`VmRSS`, `VmHWM`, `VmSwap`) in MiB."""
    kib = _kib(os.path.join(proc, "status"), key)
    return None if kib is None else kib / 1024


def pss_mib(proc: str = "/proc/self") -> float | None:
    """Proportional set size in MiB, where the kernel tells it."""
    kib = _kib(os.path.join(proc, "smaps_rollup"), "Pss")
    return None if kib is None else kib / 1024


def reset_peak(proc: str = "/proc/self") -> bool:
    """Make VmHWM start from now; False where the kernel refuses, or takes the order and ignores it."""
    try:
        with open(os.path.join(proc, "clear_refs"), "w") as stream:
            stream.write("5")
    except OSError:
        return False
    peak, now = status_mib("VmHWM", proc), status_mib("VmRSS", proc)
    return peak is not None and now is not None and peak - now < 1


class Stages:
    """What a process holds at the end of each stage of its work, and the most it held within each.

    Attributes:
        cleared: Whether the kernel let VmHWM be set back each time; where not, each peak is of the process's whole life.
        sizes: By stage: `rss_mib`, `pss_mib`, `swap_mib` at its end and `peak_mib` within it.
    """

    def __init__(self, proc: str = "/proc/self") -> None:
        self._proc = proc
        self.cleared = reset_peak(proc)
        self.sizes: dict[str, dict[str, float]] = {}

    def mark(self, stage: str) -> None:
        """The stage ends here, and the next one begins."""
        found = {
            "rss_mib": status_mib("VmRSS", self._proc),
            "pss_mib": pss_mib(self._proc),
            "swap_mib": status_mib("VmSwap", self._proc),
            "peak_mib": status_mib("VmHWM", self._proc),
        }
        self.sizes[stage] = {key: round(value, 3) for key, value in found.items() if value is not None}
        self.cleared = reset_peak(self._proc) and self.cleared

    def figures(self) -> dict[str, float]:
        """Peak, peak PSS, the runtime's baseline and what the model adds, in MiB; what the system does not tell is absent.

        The baseline is the resident memory after the stage `import`; the peaks are of all that follows it.
        """
        rest = [sizes for stage, sizes in self.sizes.items() if stage != "import"]
        baseline = self.sizes.get("import", {}).get("rss_mib")
        peak = max((sizes["peak_mib"] for sizes in rest if "peak_mib" in sizes), default=None)
        found = {
            "peak_rss_mib": peak,
            "peak_pss_mib": max((sizes["pss_mib"] for sizes in rest if "pss_mib" in sizes), default=None),
            "runtime_baseline_mib": baseline,
            "model_delta_mib": None if peak is None or baseline is None else round(peak - baseline, 3),
            "swap_mib": max((sizes["swap_mib"] for sizes in rest if "swap_mib" in sizes), default=None),
        }
        return {key: value for key, value in found.items() if value is not None}


# --- limits and kills -----------------------------------------------------------------------------------------------


def _groups(proc: str, cgroup: str) -> list[tuple[str, str, str]]:
    """Folder, name of the limit's file and of the file that counts kills: of the control group and all above it."""
    found = []
    for line in _text(os.path.join(proc, "self/cgroup")).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            top, names = cgroup, ("memory.max", "memory.events")
        elif "memory" in controllers.split(","):
            top, names = os.path.join(cgroup, "memory"), ("memory.limit_in_bytes", "memory.oom_control")
        else:
            continue
        parts = [part for part in path.split("/") if part]
        found += [(os.path.join(top, *parts[:count]), *names) for count in range(len(parts), -1, -1)]
    return found


def limit(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> tuple[float, str] | None:
    """The tightest limit of this process's memory in MiB and what sets it: a control group, or all memory there is."""
    found = []
    for folder, file, _ in _groups(proc, cgroup):
        text = _text(os.path.join(folder, file)).strip()
        if text.isdigit() and int(text) < _NO_LIMIT:
            found.append((int(text) / _MIB, f"{file} of its control group"))
    total = _kib(os.path.join(proc, "meminfo"), "MemTotal")
    if total is not None:
        found.append((total / 1024, "all memory of the device"))
    return min(found, default=None)


def kills(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> dict[str, int]:
    """How many processes the kernel has killed for want of memory, by what counted them."""
    found = {}
    files = [os.path.join(folder, file) for folder, _, file in _groups(proc, cgroup)]
    for path in [*files, os.path.join(proc, "vmstat")]:
        count = re.search(r"^oom_kill (\d+)$", _text(path), re.MULTILINE)
        if count:
            found[path] = int(count.group(1))
    return found


def killed(before: dict[str, int], proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> tuple[str, Json]:
    """Why a process that something killed most likely died, in words and as detail; `before` are the kills before it."""
    now = kills(proc, cgroup)
    counted = max((count - before.get(path, 0) for path, count in now.items()), default=None)
    bound = limit(proc, cgroup)
    detail: Json = {"oom_kills": counted}
    words = "the device ran out of memory"
    if bound is not None:
        detail.update(limit_mib=round(bound[0], 1), limit=bound[1])
        words += f" (limit: {bound[0]:.0f} MiB, {bound[1]})"
    if counted == 0:
        # Android's and systemd's own killers count elsewhere, so this is no proof.
        return f"most likely {words}, though the kernel counted no kill for want of memory", detail
    return words, detail
