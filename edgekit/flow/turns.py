"""By turns: what is compared is measured in rounds, one after the other, so that what drifts falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from edgekit.core.progress import Step


def by_turns(
    measured: Mapping[str, Callable[[], Iterable[float]]], rounds: int, step: Step | None = None
) -> dict[str, list[float]]:
    """The samples of each, of `rounds` rounds in which each has one turn.

    Args:
        measured: Gives the samples of one turn, by the name of what is measured.
        rounds: How many turns each has.
        step: Advanced by one after each turn.
    """
    samples: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            samples[name] += measure()
            if step is not None:
                step.advance()
    return samples
