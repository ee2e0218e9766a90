"""What the stages of a compression cost on this host, timed by turns: their torch programs, or a target's own files.

Processor time of a framework that no device runs is enough to see whether a pass made the network faster at all; in a
target's runtime one sees whether it will there. What a device needs, `deploy` measures.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.backends.base import Backend
from edgekit.core.errors import ConfigError, MissingExtraError
from edgekit.core.extras import require
from edgekit.core.lowering import AUTO, Lowering
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.progress import Progress, Silent, Step
from edgekit.core.target import Target
from edgekit.flow.build import Builder, choose_backend
from edgekit.flow.pipeline import Compressed, Stage
from edgekit.flow.recipe import Recipe
from edgekit.flow.turns import by_turns
from edgekit.flow.verify import time_here

IN_TORCH = "torch on this host, one thread, processor time; the device's own numbers come from deploy"
"""What is timed where no target is given."""
_ROUNDS = 20
_FEWEST_ROUNDS = 5
_LEAST_SECONDS = 0.005
_LONGEST_SECONDS = 20.0
_FILE_ROUNDS = 3
_FILE_SECONDS = 0.3
_AGAIN = "again"


@dataclass(frozen=True)
class Timing:
    """How long one inference of a stage takes.

    Attributes:
        ms: In milliseconds: of torch the least processor time, in a runtime the median of the samples.
        ratio: Against the source's; below 1 is faster.
        file_bytes: Size of the file that was timed; None for a torch program, which has none.
    """

    ms: float
    ratio: float
    file_bytes: int | None = None


@dataclass(frozen=True)
class Timings:
    """The stages of one run, timed by turns.

    Attributes:
        stages: By stage, in order; None for a program that is no live torch module.
        again: Of the source, timed a second time like another stage: how far its ratio is from 1 is the noise.
        rounds: How many turns each had.
        of: What was timed, in words.
        lowered: Of the last stage lowered as the recipe says; None where that was not timed or changes nothing.
    """

    stages: tuple[Timing | None, ...]
    again: Timing
    rounds: int
    of: str = IN_TORCH
    lowered: Timing | None = None


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
    with _one_thread(), progress.step("timing the stages", total=_ROUNDS) as step:
        least, rounds = _by_turns({**calls, _AGAIN: calls[source]}, step)

    def timing(key: str) -> Timing:
        return Timing(1000 * least[key], least[key] / least[source])

    found = (stage.state.info.digest for stage in stages)
    return Timings(tuple(timing(key) if key in calls else None for key in found), timing(_AGAIN), rounds)


def runnable_backend(target: Target, name: str | None = None) -> Backend:
    """The backend whose runtime on this host the stages are timed in.

    Raises:
        ConfigError: The target does not run that backend's artifacts, or its runtime does not exist here.
        MissingExtraError: Its runtime is not installed.
    """
    backend = choose_backend(target, name)
    if backend.can_run():
        return backend
    if backend.reference_driver is not None:
        raise ConfigError(
            f"The runtime of {backend.name} does not exist on this host, so no stage can be timed in it.",
            "Leave --target out: the stages are then timed in torch.",
        )
    raise MissingExtraError(
        f"Timing the stages in {backend.name} needs its runtime, which is not installed.",
        f"pip install 'edgekit[{backend.runtime_extra}]'",
    )


def time_files(compressed: Compressed, recipe: Recipe, builder: Builder, where: tuple[Target, str | None]) -> Timings:
    """Convert each stage for a target, as float32, prove it, and time it in the target's runtime on this host.

    Args:
        compressed: What the passes made.
        recipe: Its lowering is what the last stage is timed with, too.
        builder: Makes the files.
        where: The target, and one of its backends; None for its first.

    Raises:
        ConfigError: The backend's runtime is not to be had on this host.
        UnsupportedModelError: The backend cannot take a stage.
        VerificationError: A file does not compute what its stage computes.
    """
    target, backend = where[0], runnable_backend(*where)
    wanted = [(stage.state, Lowering()) for stage in compressed.stages]
    # The ladder's scheme is not known before it is climbed, which `deploy` does.
    if recipe.lowering != Lowering() and recipe.lowering.precision != AUTO:
        wanted.append((compressed.state, recipe.lowering))
    made = [builder.stage(state, lowering, target, backend.name) for state, lowering in wanted]
    files = {artifact.digest: (artifact, inputs) for artifact, inputs in made}
    digests = [artifact.digest for artifact, _ in made]
    with tempfile.TemporaryDirectory(prefix="edgekit-timing-") as work:
        out = Path(work) / "out"
        calls = {
            digest: functools.partial(time_here, artifact, target, inputs, _FILE_SECONDS, out, Silent())
            for digest, (artifact, inputs) in files.items()
        }
        calls[_AGAIN] = calls[digests[0]]
        with builder.progress.step(f"timing the stages in {backend.name}", _FILE_ROUNDS * len(calls)) as step:
            samples = by_turns(calls, _FILE_ROUNDS, step)
    medians = {name: statistics.median(values) for name, values in samples.items()}

    def timing(name: str, digest: str) -> Timing:
        return Timing(medians[name], medians[name] / medians[digests[0]], files[digest][0].bytes)

    count = len(compressed.stages)
    return Timings(
        tuple(timing(digest, digest) for digest in digests[:count]),
        timing(_AGAIN, digests[0]),
        _FILE_ROUNDS,
        f"{backend.name} {backend.runtime_version(target)} on this host, float32, threads: {target.threads}; the device's own numbers come from deploy",
        timing(digests[count], digests[count]) if len(digests) > count else None,
    )


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
