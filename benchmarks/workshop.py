"""How cells are made: child processes on a processor of their own, a folder that keeps artifacts, a file that keeps cells."""

from __future__ import annotations

import fnmatch
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from edgekit.core.files import staged_directory, write_atomic

Found = dict[str, Any]
QUICK_EXAMPLES = 24
ALONE = 2
"""The phase of cells beside which nothing else runs."""


class CellError(Exception):
    """Why a cell could not be made: the last words of what failed."""


@dataclass(frozen=True)
class Ended:
    """A child process that ended.

    Attributes:
        code: Its exit code.
        stdout: What it printed.
        stderr: What it complained of.
        seconds: Wall time.
        cpu_seconds: Processor time, of all its threads.
        peak_rss_mib: Peak memory.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_rss_mib: float

    def document(self) -> Found:
        """The JSON that it printed last.

        Raises:
            CellError: There is none, or it failed.
        """
        if self.code != 0:
            raise CellError(self.last_words())
        try:
            return json.loads(self.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise CellError(f"no JSON in what was printed: {self.stdout[-300:]!r}") from error

    def last_words(self) -> str:
        lines = self.stderr.strip().splitlines()
        return lines[-1][:400] if lines else f"ended with {self.code}"


@dataclass(frozen=True)
class Cell:
    """One thing to find out.

    Attributes:
        key: Its name in the file of cells, from wide to narrow: `photos-A/litert/static_wi8_ai8/edgekit`.
        make: Finds it out.
        phase: Cells of phase 0 come first; those of phase 1 look at what they found; those of phase 2 time, alone.
    """

    key: str
    make: Callable[[Workshop, Cell], Found]
    phase: int = 0


@dataclass
class Workshop:
    """Where cells are made.

    Attributes:
        folder: Where artifacts, prepared networks and edgekit's cache are kept from one run to the next.
        cells_file: The file of what was found.
        quick: Whether a few examples are enough: shows that everything works, and no numbers.
        jobs: How many cells are made at a time, each on a processor of its own.
    """

    folder: Path
    cells_file: Path
    quick: bool = False
    jobs: int = 2
    cells: dict[str, Found] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _subjects: dict[str, threading.Lock] = field(default_factory=dict)
    _processors: queue.Queue[int] = field(default_factory=queue.Queue)
    _local: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.cells_file.exists():
            self.cells = json.loads(self.cells_file.read_text())
        for processor in sorted(os.sched_getaffinity(0)):
            self._processors.put(processor)
        self.jobs = min(self.jobs, self._processors.qsize())

    def wanted(self, cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
        """The cells whose keys have one of the patterns in them."""
        return [cell for cell in cells if not only or any(fnmatch.fnmatch(cell.key, f"*{one}*") for one in only)]

    def run(self, cells: Sequence[Cell], only: Sequence[str], again: bool) -> None:
        """Make the cells that are not known yet; what failed before is tried again."""
        wanted = self.wanted(cells, only)
        open_ = [c for c in wanted if again or c.key not in self.cells or "error" in self.cells[c.key]]
        print(f"{len(open_)} of {len(wanted)} cells to make, {self.jobs} at a time", flush=True)
        for phase in range(ALONE):
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(self._make, cell) for cell in open_ if cell.phase == phase]
                for future in futures:
                    future.result()
        # What was made anew is timed anew, too.
        made = {_group(cell) for cell in open_ if cell.phase != ALONE}
        for cell in wanted:
            if cell.phase == ALONE and (cell in open_ or _group(cell) in made):
                self._make(cell)

    def _make(self, cell: Cell) -> None:
        started = time.monotonic()
        with self._on_a_processor():
            try:
                found = cell.make(self, cell)
            except CellError as error:
                found = {"error": str(error)}
        found["took"] = round(time.monotonic() - started, 1)
        with self._lock:
            self.cells[cell.key] = found
            write_atomic(self.cells_file, json.dumps(self.cells, indent=1, sort_keys=True) + "\n")
        print(f"{cell.key}  {json.dumps(found)[:260]}", flush=True)

    @contextmanager
    def _on_a_processor(self) -> Iterator[None]:
        processor = self._processors.get()
        self._local.processor = processor
        try:
            yield
        finally:
            self._processors.put(processor)

    def child(self, argv: Sequence[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Ended:
        """Run a command on this worker's processor, with one thread a library where libraries can be told."""
        pinned = [*self._pinning(), *argv]
        settings = {
            **os.environ,
            "CI": "true",
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "EDGEKIT_CACHE_DIR": str(self.folder / "cache"),
            **(env or {}),
        }
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            started = time.monotonic()
            process = subprocess.Popen(pinned, cwd=cwd, env=settings, stdout=out, stderr=err)
            # Not wait(): several children run at a time, and only this tells what one of them took.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - started
            out.seek(0)
            err.seek(0)
            return Ended(
                process.returncode,
                out.read().decode(errors="replace"),
                err.read().decode(errors="replace"),
                seconds,
                usage.ru_utime + usage.ru_stime,
                usage.ru_maxrss / 1024,
            )

    def python(self, module: str, *arguments: str) -> Ended:
        """Run one of our modules, by its name inside `benchmarks`, as a program."""
        return self.child([sys.executable, "-m", f"benchmarks.{module}", *arguments])

    def asked(self, module: str, verb: tuple[str, ...], request: Mapping[str, Any]) -> Ended:
        """Run one of our modules with a request as a JSON file."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as stream:
            json.dump(request, stream)
        try:
            return self.python(module, *verb, stream.name)
        finally:
            Path(stream.name).unlink()

    def _pinning(self) -> list[str]:
        taskset = shutil.which("taskset")
        processor = getattr(self._local, "processor", None)
        return [taskset, "-c", str(processor)] if taskset and processor is not None else []

    def prepared(self, subject: str, module: str, word: str) -> Path:
        """The folder of a network with its data and its float answers; made when first asked for.

        Args:
            subject: What the folder is called.
            module: The module that makes it: called with `word`, the folder, and a number of examples where few do.
            word: Its first argument.

        Raises:
            CellError: It cannot be made.
        """
        with self._lock:
            lock = self._subjects.setdefault(subject, threading.Lock())
        folder = self.folder / "subjects" / subject
        with lock:
            if not folder.is_dir():
                with staged_directory(folder) as staging:
                    limit = [str(QUICK_EXAMPLES)] if self.quick else []
                    ended = self.python(module, word, str(staging), *limit)
                    if ended.code != 0:
                        raise CellError(f"preparing {subject}: {ended.last_words()}")
        return folder

    def artifacts(self, key: str) -> Path:
        """An empty folder for what a cell makes."""
        folder = self.folder / "artifacts" / key.replace("/", "--")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def model(self, key: str) -> Found | None:
        """How a cell's artifact is run, where it still lies here."""
        path = self.folder / "artifacts" / key.replace("/", "--") / "run.json"
        if not path.is_file():
            return None
        found: Found = json.loads(path.read_text())
        return found if Path(found["main"]).exists() else None


def _group(cell: Cell) -> str:
    """Subject and backend of a cell: what is timed together."""
    return "/".join(cell.key.split("/")[:2])
