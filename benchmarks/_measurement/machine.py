"""Artifacts measured on this machine: recorded noise, and real comparisons, as `edgekit bench` makes them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, wall
from edgekit.core.comparison import Processes, processes_of
from edgekit.core.files import write_atomic
from edgekit.core.progress import Silent
from edgekit.core.result import Result
from edgekit.flow.build import Built
from edgekit.flow.export import open_artifact
from edgekit.flow.interleave import in_turns
from edgekit.flow.measure import Settings, new_run, visit
from edgekit.flow.verify import local_device

WORK = ROOT / "build" / "bench-measurement"
NETWORKS = Path(__file__).parent / "networks.py"


def settings(rounds: int) -> Settings:
    """One thread, and as little in each process as gives a median: about 60 inferences of 0.7 ms."""
    return Settings(
        threads=1,
        processes=rounds,
        warmup_runs=5,
        warmup_seconds=0.0,
        min_runs=40,
        min_seconds=0.04,
        max_seconds=1.0,
        accuracy=False,
    )


def artifact(factory: str) -> Built:
    """A network of networks.py for LiteRT; compiled once."""
    folder = WORK / factory
    if not (folder / "linux-x86-litert-float32").is_dir():
        argv = [sys.executable, "-m", "edgekit", "compile", f"{NETWORKS}:{factory}", "--target", "linux-x86"]
        wall([*argv, "--backend", "litert", "--name", factory, "--out", str(folder)], env={"PYTHONPATH": str(ROOT)})
    return open_artifact(folder / "linux-x86-litert-float32")


def recorded(processes: int, samples: int) -> list[list[float]]:
    """Latencies in ms of fresh processes one after the other: the machine's own noise, nothing changed."""
    built, found = artifact("twenty"), []
    while len(found) < processes:
        count = min(80, processes - len(found))
        result = visit(built, local_device(built.target), settings(count), Silent(), run=new_run(), release=False)
        found += [list(process[:samples]) for process in latencies(result)]
    return found


def latencies(result: Result) -> Processes:
    measured = result.measured("latency_ms")
    if measured is None:
        sys.exit(f"{result.model} was not timed")
    return processes_of(measured.values, measured.processes)


def comparisons(
    name: str, pair: Sequence[Built], count: int, rounds: int, tell: Callable[[str], None]
) -> list[list[Processes]]:
    """So many real comparisons in turns; those made already are kept in a file, so that a killed run goes on."""
    file = WORK / f"{name}-{rounds}.json"
    made: list[Any] = json.loads(file.read_text()) if file.exists() else []
    device = local_device(pair[0].target)
    while len(made) < count:
        results = in_turns(pair, device, settings(rounds), Silent(), run=new_run())
        made.append([latencies(result) for result in results])
        write_atomic(file, json.dumps(made))
        tell(f"{name}: {len(made)} of {count}")
    return made[:count]
