"""What every benchmark shares: rows with a goal, interleaved timing, and one file of results a topic."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> str:
    """The processor and its cores, as numbers are read with."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def versions(*names: str) -> dict[str, str]:
    """Installed versions of distributions, and Python's."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


class Results:
    """The rows of one topic, written to benchmarks/results/<topic>.json after each row: a killed run loses nothing."""

    def __init__(self, topic: str, *packages: str) -> None:
        self.topic = topic
        self.rows: list[dict[str, Any]] = []
        self._versions = versions(*packages)

    def add(
        self,
        name: str,
        reached: float | None,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        note: str = "",
        emulated: bool = False,
    ) -> None:
        """A row; `met` is None where there is no goal."""
        goal = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}" if at_least is not None else None
        met = None
        if reached is not None and at_most is not None:
            met = reached <= at_most
        elif reached is not None and at_least is not None:
            met = reached >= at_least
        elif goal is not None:
            met = False
        row = {
            "name": name,
            "goal": goal,
            "reached": None if reached is None else float(f"{reached:.4g}"),
            "unit": unit,
            "met": met,
            "command": f"make bench-{self.topic}",
            "versions": self._versions,
            "machine": machine(),
            "emulated": emulated,
        }
        if note:
            row["note"] = note
        self.rows.append(row)
        verdict = "" if met is None else "  met" if met else "  NOT MET"
        print(f"  {name}: {row['reached']} {unit}{f' (goal {goal})' if goal else ''}{verdict}", flush=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.topic}.json").write_text(json.dumps(self.rows, indent=2) + "\n")


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure several things in turn, A B C A B C …, so that the machine's drift falls on all of them alike.

    Args:
        runs: What gives one measurement, by name.
        rounds: How many rounds are counted; one before them is not.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        # The order turns with each round: whoever is always first would always find the machine cooler.
        names = list(runs) if number % 2 else list(reversed(runs))
        for name in names:
            value = runs[name]()
            if number:
                samples[name].append(value)
    return samples


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median over rounds of a / b, each pair measured in the same round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of a piece of work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def wall(argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> float:
    """Wall seconds of a command; its output is shown only when it fails."""
    started = time.perf_counter()
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")
    return seconds
