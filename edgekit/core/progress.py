"""How long work tells what it is doing, without knowing who listens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Protocol

logger = logging.getLogger("edgekit")


class Step(Protocol):
    """One running step."""

    def advance(self, done: float = 1.0) -> None:
        """`done` more units of the step's total are finished."""

    def say(self, text: str) -> None:
        """What the step is at, in a few words."""


class Progress(Protocol):
    """Something that shows steps to a person."""

    def step(self, title: str, total: float | None = None) -> contextlib.AbstractContextManager[Step]:
        """A step that runs until the context ends. `total` is None where the length is not known."""

    def note(self, text: str) -> None:
        """A line that stays: what was found or done."""

    def warn(self, text: str) -> None:
        """A line that stays and that the person should act on."""


class _SilentStep:
    def advance(self, done: float = 1.0) -> None:
        """Shows nothing."""

    def say(self, text: str) -> None:
        """Shows nothing, but a log that was asked for has it."""
        logger.debug("%s", text)


class Silent:
    """Progress for library use: goes to the `edgekit` logger only."""

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Step]:
        """Log the start of a step."""
        logger.debug("%s", title)
        yield _SilentStep()

    def note(self, text: str) -> None:
        """Log a line."""
        logger.info("%s", text)

    def warn(self, text: str) -> None:
        """Log a warning."""
        logger.warning("%s", text)
