"""Which of several quantized networks is closest to the float one, on examples that set nothing in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats

_EQUAL_DB = 200.0
_SILENCE = 1e-30
"""Added to the signal: outputs that are nothing but zeros are judged by their error alone."""
_HELD_OUT = 4
"""One example in that many decides between candidates, and sets no range."""

T = TypeVar("T")


def held_out(samples: Sequence[T]) -> tuple[list[T], list[T]]:
    """Examples that set ranges and biases, and those that judge them; too few of them do both."""
    if len(samples) < _HELD_OUT:
        return list(samples), list(samples)
    judging = list(samples[_HELD_OUT - 1 :: _HELD_OUT])
    return [one for place, one in enumerate(samples) if place % _HELD_OUT != _HELD_OUT - 1], judging


def decibels(found: Mapping[str, Floats], wanted: Mapping[str, Floats]) -> float:
    """The signal-to-noise ratio of outputs by name, in dB, averaged over the outputs; 200 where they are equal."""
    import numpy as np

    ratios = []
    for name, reference in wanted.items():
        real = np.isfinite(reference)
        signal = float(np.sum(reference[real] ** 2))
        noise = float(np.sum((found[name][real] - reference[real]) ** 2))
        # A broken file may give what is no number: the worst that there is.
        if not np.isfinite(noise):
            return -_EQUAL_DB
        ratios.append(min(10 * np.log10((signal + _SILENCE) / noise), _EQUAL_DB) if noise else _EQUAL_DB)
    return float(np.mean(ratios)) if ratios else _EQUAL_DB


def best_of(ratios: Mapping[str, float], scheme: str, count: int) -> tuple[str, str]:
    """The candidate with the highest ratio (of equal ones the first), and a sentence that says so.

    Args:
        ratios: Decibels by what was done, the least first.
        scheme: The scheme's name, for the sentence.
        count: How many held-out examples judged.
    """
    best = max(ratios, key=lambda name: round(ratios[name], 3))
    others = ", ".join(f"{name}: {ratio:.1f} dB" for name, ratio in ratios.items() if name != best)
    said = f"{scheme} has {best}: its outputs are {ratios[best]:.1f} dB above their error on {count} held-out examples"
    return best, f"{said} ({others})" if others else said
