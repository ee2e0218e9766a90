"""How many units each group keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.core.errors import PassError
from edgekit.passes._channels.cut import Removal
from edgekit.passes._channels.groups import Group, torch_

ROUNDINGS = (8, 4, 2, 1)
_FAR = 0.125
"""The share of its channels by which rounding may move a layer, where it is adaptive."""
Initial = dict[tuple[str, ...], int]
"""How many units each group had before the first step, by its layers."""


@dataclass(frozen=True)
class Wish:
    """What is to be removed, in all since the first step.

    Attributes:
        ratio: Share of the channels.
        heads: Share of the heads.
        scope: Whether each group loses that share, or the least important of all groups go.
        round_to: The channels that stay are a multiple of it.
        adaptive: Whether a layer takes half of that, or less, where it would come out much wider or narrower.
        max_ratio: No group loses more than this share.
    """

    ratio: float
    heads: float
    scope: Literal["local", "global"]
    round_to: int
    adaptive: bool
    max_ratio: float


def choose(groups: Sequence[Group], scores: Sequence[Any], initial: Initial, wish: Wish) -> Removal:
    """The units of least importance, as many as are to go; groups that lose nothing are left out.

    Raises:
        PassError: The ratio would leave nothing of a layer.
    """
    exact = _exact(groups, scores, initial, wish)
    removal = []
    for group, values, left in zip(groups, scores, exact, strict=True):
        kept = _rounded(group, initial[group.layers], left, wish)
        count = len(group.units) - kept
        if count > 0:
            least = torch_().argsort(values, stable=True)[:count].tolist()
            channels = [channel for unit in least for channel in group.units[unit]]
            removal.append((group, group.removal(channels), count))
    return removal


def _exact(groups: Sequence[Group], scores: Sequence[Any], initial: Initial, wish: Wish) -> list[float]:
    """How many units each group should keep, before rounding."""
    left = [initial[group.layers] * (1 - (wish.heads if group.heads else wish.ratio)) for group in groups]
    if wish.scope == "global":
        for heads in (False, True):
            members = [number for number, group in enumerate(groups) if group.heads == heads]
            for number, kept in _globally(members, groups, scores, initial, wish, heads=heads).items():
                left[number] = kept
        return left
    for group, kept in zip(groups, left, strict=True):
        if kept < 1 < initial[group.layers]:
            had = initial[group.layers]
            raise PassError(
                f"prune_channels: ratio {wish.ratio:g} would leave nothing of '{group.label}', which has {had} channels.",
                f"Give a ratio of at most {math.floor(100 * (1 - 1 / had)) / 100:g}, or skip: ['{group.layers[0]}'].",
            )
    return left


def _globally(
    members: Sequence[int], groups: Sequence[Group], scores: Sequence[Any], initial: Initial, wish: Wish, *, heads: bool
) -> dict[int, float]:
    """Units kept by group where all of them are ranked together; wide units count as many channels."""
    kept = {number: len(groups[number].units) for number in members}
    width = {number: groups[number].size // len(groups[number].units) for number in members}
    least = {number: max(1, math.ceil(initial[groups[number].layers] * (1 - wish.max_ratio))) for number in members}
    had = {number: initial[groups[number].layers] for number in members}
    share = wish.heads if heads else wish.ratio
    gone = sum(width[number] * (had[number] - kept[number]) for number in members)
    left = share * sum(width[number] * had[number] for number in members) - gone
    ranked = sorted((float(value), number, place) for number in members for place, value in enumerate(scores[number]))
    for _, number, _ in ranked:
        if left < width[number] / 2:
            break
        if kept[number] > least[number]:
            kept[number] -= 1
            left -= width[number]
    return {number: float(count) for number, count in kept.items()}


def _rounded(group: Group, had: int, left: float, wish: Wish) -> int:
    """Units to keep: the nearest multiple, never none and never fewer than `max_ratio` allows."""
    width = 1 if group.heads else group.size // len(group.units)
    step = 1 if group.heads else wish.round_to // math.gcd(wish.round_to, width)
    least = max(1.0, had * (1 - wish.max_ratio)) - 1e-9
    while True:
        # Halfway goes down: what rounds up removes nothing.
        kept = max(step, step * math.ceil(left / step - 0.5 - 1e-9))
        while kept < least:
            kept += step
        if not wish.adaptive or step == 1 or abs(kept - left) <= _FAR * had:
            return min(kept, len(group.units))
        step = max(1, step // 2)
