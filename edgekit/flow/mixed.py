"""Mixed precision chosen from what each layer costs: pure functions.

A budget is spent where it buys most: each layer goes down the lower convex hull of its (bytes saved, loss) points, and of
all steps on all hulls the one with the least loss a byte comes next (the greedy solution of the multiple-choice knapsack:
P. Sinha and A. Zoltners, "The Multiple-Choice Knapsack Problem", Operations Research 27, 1979). Losses are added up,
which is how errors of separate layers combine as long as each is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekit.core.errors import BudgetError, ConfigError
from edgekit.flow.sensitivity import Sensitivity

FLOAT32 = "float32"
_NOISE_COUNTS = 1e-6
"""How much the outputs' noise counts beside the loss: it decides between layers whose loss on the examples is the same."""


@dataclass(frozen=True)
class Choice:
    """What one layer costs and saves in one precision.

    Attributes:
        layer: Its path.
        precision: The precision.
        loss: What it costs, in the budget's unit; 0 or more.
        bytes_saved: Against float32.
        noise: Power of the outputs' error as a share of the signal's: tells apart what costs the same on the examples.
    """

    layer: str
    precision: str
    loss: float
    bytes_saved: int
    noise: float = 0.0

    @property
    def weight(self) -> float:
        """What is minimised a byte."""
        return self.loss + _NOISE_COUNTS * min(self.noise, 1.0)


@dataclass(frozen=True)
class _Step:
    layer: str
    precision: str
    loss: float
    bytes_saved: int
    price: float


def choices_of(sensitivity: Sensitivity, precisions: Sequence[str] = ()) -> list[Choice]:
    """The choices that a measured sensitivity offers.

    Args:
        sensitivity: What was measured.
        precisions: Those to choose from; all that were measured where empty.
    """
    return [
        Choice(effect.layer, effect.precision, sensitivity.loss(effect), effect.bytes_saved, effect.noise)
        for effect in sensitivity.effects
        if not precisions or effect.precision in precisions
    ]


def choose_mixed(
    choices: Sequence[Choice], *, max_loss: float | None = None, min_bytes_saved: int | None = None
) -> dict[str, str]:
    """A precision for each layer, `float32` where none pays.

    Args:
        choices: What each layer costs and saves; a layer that is not among them does not occur in the answer.
        max_loss: The losses of all layers together stay within it, and as many bytes are saved as that allows.
        min_bytes_saved: At least so many bytes are saved, at as little loss as that allows.

    Returns:
        Overrides by path, in the order of `choices`. A larger budget never takes a saving back.

    Raises:
        ConfigError: Not exactly one of the two budgets is given.
        BudgetError: So many bytes cannot be saved.
    """
    if (max_loss is None) == (min_bytes_saved is None):
        raise ConfigError("Mixed precision is chosen under a budget of accuracy or of size: give one of the two.")
    found = dict.fromkeys((choice.layer for choice in choices), FLOAT32)
    loss, saved = 0.0, 0
    for step in _steps(choices):
        if min_bytes_saved is not None and saved >= min_bytes_saved:
            break
        # Losses are shares of some hundred examples: a rounding error must not decide.
        if max_loss is not None and loss + step.loss > max_loss + 1e-9:
            break
        found[step.layer] = step.precision
        loss, saved = loss + step.loss, saved + step.bytes_saved
    if min_bytes_saved is not None and saved < min_bytes_saved:
        raise BudgetError(
            f"The precisions tried save at most {saved:,} bytes; the budget asks for {min_bytes_saved:,}.",
            "Try precisions of fewer bits, or allow a larger file.",
        )
    return found


def keep_order(choices: Iterable[Choice]) -> list[str]:
    """Layers in the order in which they are best kept in float32: those first that cost most a byte saved."""
    priced = {choice.layer: choice.weight / max(choice.bytes_saved, 1) for choice in choices}
    return sorted(priced, key=lambda layer: -priced[layer])


def _steps(choices: Sequence[Choice]) -> list[_Step]:
    by_layer: dict[str, list[Choice]] = {}
    for choice in choices:
        by_layer.setdefault(choice.layer, []).append(choice)
    steps = [step for layer, offered in by_layer.items() for step in _hull(layer, offered)]
    # Stable: the steps of one layer stay in their order where prices are the same.
    return sorted(steps, key=lambda step: step.price)


def _hull(layer: str, offered: Sequence[Choice]) -> list[_Step]:
    """The steps from float32 down to the precision that saves most, each dearer a byte than the one before it."""
    at, weight, steps = Choice(layer, FLOAT32, 0.0, 0), 0.0, []
    left = list(offered)
    while left := [choice for choice in left if choice.bytes_saved > at.bytes_saved]:
        prices = {
            place: (max(choice.weight - weight, 0.0) / (choice.bytes_saved - at.bytes_saved), -choice.bytes_saved)
            for place, choice in enumerate(left)
        }
        # Of equally dear ones the one that saves most, so that no step follows at the same price.
        place = min(prices, key=lambda p: prices[p])
        best, loss = left[place], max(left[place].loss, at.loss)
        steps.append(_Step(layer, best.precision, loss - at.loss, best.bytes_saved - at.bytes_saved, prices[place][0]))
        at, weight = Choice(layer, best.precision, loss, best.bytes_saved), max(weight, best.weight)
    return steps
