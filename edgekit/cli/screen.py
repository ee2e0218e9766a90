"""Screen: the person's side of a command: answers on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from edgekit.core.errors import EdgekitError
from edgekit.core.progress import Step

_SHOW_AFTER_SECONDS = 1.0
_PIPED_WIDTH = 400
_REPORT_WIDTH = 120


class Screen:
    """Implements `edgekit.core.progress.Progress`.

    Args:
        as_json: Whether the answer is one JSON document.
        quiet: Whether notes and progress are left out.
        verbose: Whether every step is shown as a line of its own.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        # Piped output is read by grep and pasted into issues: a row stays one line there, however long.
        width = None if sys.stdout.isatty() else _PIPED_WIDTH
        self.out = _console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty())
        self.err = _console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self._live: Any = None

    @property
    def report_width(self) -> int:
        """Columns of a report: the terminal's, or what reads well where there is none."""
        return min(int(self.out.width), _REPORT_WIDTH)

    def answer(self, document: Any, *renderables: Any) -> None:
        """Show the answer: `document` with `--json`, else the renderables."""
        if self.as_json:
            import msgspec

            sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
        else:
            for renderable in renderables:
                self.out.print(renderable)

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.err.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that stays and that the person should act on."""
        self.err.print(f"warning: {text}", style="yellow", markup=False)

    def fail(self, error: EdgekitError) -> None:
        """Say what went wrong and what to do."""
        if self.as_json:
            failure = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
            self.answer({"schema_version": 1, "error": failure, "exit_code": error.exit_code, **error.details})
        self.err.print(f"error: {error.message}", style="bold red", markup=False)
        if error.hint:
            for line in error.hint.splitlines():
                self.err.print(f"  {line}", markup=False)

    def interrupted(self) -> None:
        """Say that the person stopped it."""
        if self.as_json:
            failure = {"type": "Interrupted", "message": "Interrupted; nothing is left half-written.", "hint": ""}
            self.answer({"schema_version": 1, "error": failure, "exit_code": 130})
        self.err.print("\ninterrupted; nothing is left half-written", markup=False)

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Step]:
        """Show a step: a bar on a terminal, a line when it took its time elsewhere."""
        logging.getLogger("edgekit").debug("%s …", title)
        started = time.monotonic()
        if self.quiet or self.as_json or not self.err.is_terminal:
            yield _Line(self, title)
            seconds = time.monotonic() - started
            if not self.quiet and (seconds > _SHOW_AFTER_SECONDS or self.verbose):
                self.err.print(f"  {title}: {seconds:.1f} s", markup=False)
            return
        with self._bars() as bars:
            task = bars.add_task(title, total=total)
            try:
                yield _Bar(bars, task)
            finally:
                bars.remove_task(task)
        seconds = time.monotonic() - started
        if seconds > _SHOW_AFTER_SECONDS:
            self.err.print(f"  {title}: {seconds:.1f} s", style="dim", markup=False)

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Any]:
        """The one live display; steps within steps share it."""
        if self._live is not None:
            yield self._live
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.err,
            transient=True,
        ) as live:
            self._live = live
            try:
                yield live
            finally:
                self._live = None


def _console(**options: Any) -> Any:
    """A console that outlives its reader: rich's own ends the program where a pipe is closed."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            if not self.stderr:
                raise BrokenPipeError
            # Nobody reads the progress any more; the work goes on.
            self.quiet = True

    return Piped(**options)


class _Line:
    def __init__(self, screen: Screen, title: str) -> None:
        self._screen = screen
        self._title = title

    def advance(self, done: float = 1.0) -> None:
        """A line has no bar to move."""

    def say(self, text: str) -> None:
        """Only shown with `--verbose`."""
        if self._screen.verbose:
            self._screen.err.print(f"  {self._title}: {text}", markup=False)


class _Bar:
    def __init__(self, bars: Any, task: Any) -> None:
        self._bars = bars
        self._task = task
        self._title = bars.tasks[-1].description

    def advance(self, done: float = 1.0) -> None:
        """Move the bar."""
        self._bars.advance(self._task, done)

    def say(self, text: str) -> None:
        """Show what the step is at."""
        self._bars.update(self._task, description=f"{self._title}: {text}")
