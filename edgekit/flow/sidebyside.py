"""Several conversions at once: each is a child process, so threads here only wait for them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from edgekit.core.progress import Progress, Step

# The largest peak seen of a conversion of networks of some tens of megabytes is 1.15 GB.
_MEMORY_OF_ONE_MIB = 1500


def side_by_side(jobs: Sequence[Callable[[Progress], object]], progress: Progress) -> None:
    """Run jobs at the same time, as many as processors and free memory allow.

    Args:
        jobs: Each gets the progress it has to tell of its steps; a step that advances is where a job can be stopped.
        progress: Where they tell what they do.

    Raises:
        Exception: The first failure of a job, or an interrupt; the others are stopped before it is raised.
    """
    stop = threading.Event()
    watched = _Stoppable(progress, stop)
    with ThreadPoolExecutor(workers_for(len(jobs))) as pool:
        futures = [pool.submit(job, watched) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Where a job failed, or the person pressed Ctrl-C: no other one goes on, and none starts.
            stop.set()
            for future in futures:
                future.cancel()
    failures = [error for f in futures if not f.cancelled() and (error := f.exception()) is not None]
    for error in failures:
        if not isinstance(error, _StoppedError):
            raise error


def workers_for(jobs: int) -> int:
    """How many conversions run at once: no more than processors, and than free memory holds."""
    fitting = int(_available_mib() // _MEMORY_OF_ONE_MIB)
    return max(1, min(jobs, os.cpu_count() or 1, fitting))


def _available_mib() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return 2.0 * _MEMORY_OF_ONE_MIB


class _StoppedError(Exception):
    """A job that was stopped because another one failed."""


class _StoppableStep:
    def __init__(self, step: Step, stop: threading.Event) -> None:
        self._step = step
        self._stop = stop

    def advance(self, done: float = 1.0) -> None:
        """Move the step, or end it."""
        if self._stop.is_set():
            raise _StoppedError
        self._step.advance(done)

    def say(self, text: str) -> None:
        """See `Step.say`."""
        self._step.say(text)


class _Stoppable:
    """Progress whose steps end when they are told to."""

    def __init__(self, progress: Progress, stop: threading.Event) -> None:
        self._progress = progress
        self._stop = stop

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Step]:
        """See `Progress.step`."""
        if self._stop.is_set():
            raise _StoppedError
        with self._progress.step(title, total) as step:
            yield _StoppableStep(step, self._stop)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._progress.note(text)

    def warn(self, text: str) -> None:
        """See `Progress.warn`."""
        self._progress.warn(text)
