"""What the stages of a compression cost on this host: their torch programs, timed side by side.

One machine's processor time of a framework that no device runs: enough to see whether a pass made the network faster
at all. What a device needs, `deploy` measures.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.progress import Progress, Step
from edgekit.flow.pipeline import Stage

_ROUNDS = 20
_FEWEST_ROUNDS = 5
_LEAST_SECONDS = 0.005
_LONGEST_SECONDS = 20.0


@dataclass(frozen=True)
class Timing:
    """How long one inference of a stage takes.

    Attributes:
        ms: The least processor time seen, in milliseconds.
        ratio: Against the source's; below 1 is faster.
    """

    ms: float
    ratio: float


@dataclass(frozen=True)
class Timings:
    """The stages of one run, timed by turns.

    Attributes:
        stages: By stage, in order; None for a program that is no live torch module.
        again: Of the source, timed a second time like another stage: how far its ratio is from 1 is the noise.
        rounds: How many turns each had.
    """

    stages: tuple[Timing | None, ...]
    again: Timing
    rounds: int


def time_stages(stages: Sequence[Stage], progress: Progress) -> Timings | None:
    """Time the stages' torch programs on one thread, by turns, in processor time; the least of all turns counts.

    Args:
        stages: The source first; stages of the same weights are timed once.
        progress: Told what is done.

    Returns:
        The timings, or None where the source is no live torch module.
    """
    programs = {stage.state.info.digest: stage.state.live().program for stage in stages}
    calls = {key: _call(program) for key, program in programs.items() if isinstance(program, TorchProgram)}
    source = stages[0].state.info.digest
    if source not in calls:
        return None
    again = "again"
    with _one_thread(), progress.step("timing the stages", total=_ROUNDS) as step:
        least, rounds = _by_turns({**calls, again: calls[source]}, step)

    def timing(key: str) -> Timing:
        return Timing(1000 * least[key], least[key] / least[source])

    found = (stage.state.info.digest for stage in stages)
    return Timings(tuple(timing(key) if key in calls else None for key in found), timing(again), rounds)


def _by_turns(calls: Mapping[str, Callable[[], object]], step: Step) -> tuple[dict[str, float], int]:
    """The least seconds of one call of each, and the number of rounds."""
    counts = {key: _count(call) for key, call in calls.items()}
    least = dict.fromkeys(calls, float("inf"))
    started, rounds = time.monotonic(), 0
    while rounds < _ROUNDS:
        for key, call in calls.items():
            least[key] = min(least[key], _seconds(call, counts[key]) / counts[key])
        rounds += 1
        step.advance()
        if rounds >= _FEWEST_ROUNDS and time.monotonic() - started > _LONGEST_SECONDS:
            break
    return least, rounds


def _call(program: TorchProgram) -> Callable[[], object]:
    torch = require("torch", TORCH_EXTRA, "timing a torch model")
    tensors, flat = program.tensors(program.example_inputs), program.flat

    def call() -> Any:
        with torch.inference_mode():
            return flat(*tensors)

    return call


def _count(call: Callable[[], object]) -> int:
    """How many calls in a row take long enough for the clock; what comes first is warmed up by it."""
    count = 1
    _seconds(call, 2)
    while (seconds := _seconds(call, count)) < _LEAST_SECONDS:
        count = max(count + 1, min(4 * count, int(count * _LEAST_SECONDS / max(seconds, 1e-6)) + 1))
    return count


def _seconds(call: Callable[[], object], count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        call()
    return time.process_time() - started


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    torch = require("torch", TORCH_EXTRA, "timing a torch model")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
