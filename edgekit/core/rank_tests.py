"""Tests on ranks: they ask which of two is larger, not by how much, so that a few wild samples decide nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

EXACT_UP_TO = 20
"""Mann–Whitney is exact where neither group has more values than this and no two are equal."""

Method = Literal["exact", "normal"]


@dataclass(frozen=True)
class RankTest:
    """What a rank test found.

    Attributes:
        statistic: U of the first group (Mann–Whitney), or the sum of the ranks of positive differences (signed ranks).
        p: Two-sided: how often equal things would look as different as this.
        method: Counted out over every arrangement, or by the normal approximation.
    """

    statistic: float
    p: float
    method: Method


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> RankTest:
    """Whether values of one group tend to be larger than those of the other (Mann & Whitney, 1947), two-sided.

    Exact for small groups without equal values; else the normal approximation with the correction for ties and for
    continuity.

    Raises:
        ValueError: A group is empty, or a value is not finite.
    """
    require_finite(a, b)
    n, m = len(a), len(b)
    ranks = _ranks([*a, *b])
    u = sum(ranks[:n]) - n * (n + 1) / 2
    ties = _ties([*a, *b])
    if max(n, m) <= EXACT_UP_TO and not ties:
        return RankTest(u, _two_sided(_u_counts(n, m), round(min(u, n * m - u))), "exact")
    total = n + m
    variance = n * m / 12 * (total + 1 - sum(t**3 - t for t in ties) / (total * (total - 1)))
    return RankTest(u, _normal_p(abs(u - n * m / 2), variance), "normal")


def signed_rank(differences: Sequence[float]) -> RankTest:
    """Whether differences of pairs lean to one side of 0 (Wilcoxon, 1945), two-sided and exact.

    Every choice of signs is counted, equal differences and zeros included: zeros are left out, and equal sizes share
    their mean rank. The p-value rests only on the sign of each difference being a fair coin where nothing differs; who
    tosses that coin himself, by drawing at random which of a pair is measured first, needs no other assumption.

    Raises:
        ValueError: There are no differences, or one is not finite.
    """
    require_finite(differences)
    kept = [value for value in differences if value != 0]
    if not kept:
        return RankTest(0.0, 1.0, "exact")
    # Mean ranks are whole or half: doubled, they can be counted.
    doubled = [round(2 * rank) for rank in _ranks([abs(value) for value in kept])]
    positive = sum(rank for rank, value in zip(doubled, kept, strict=True) if value > 0)
    counts = _sum_counts(doubled)
    return RankTest(positive / 2, _two_sided(counts, min(positive, sum(doubled) - positive)), "exact")


def least_p(pairs: int) -> float:
    """The smallest p-value that `signed_rank` can give for so many pairs: all differences on one side."""
    return min(1.0, 2.0 ** (1 - pairs))


def least_p_unpaired(n: int, m: int) -> float:
    """The smallest p-value that the exact `mann_whitney` can give for groups of `n` and `m`: they do not overlap."""
    return min(1.0, 2 / math.comb(n + m, n))


def require_finite(*groups: Iterable[float]) -> None:
    """Refuse what no statistic can be made of.

    Raises:
        ValueError: A group is empty, or a value in it is NaN or infinite.
    """
    for group in groups:
        values = list(group)
        if not values:
            raise ValueError("there are no values")
        wrong = sum(1 for value in values if not math.isfinite(value))
        if wrong:
            raise ValueError(f"{wrong} of {len(values)} values are not finite numbers")


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            ranks[order[place]] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def _ties(values: Sequence[float]) -> list[int]:
    """How many values are equal, for each value that occurs more than once."""
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return [count for count in counts.values() if count > 1]


def _u_counts(n: int, m: int) -> list[int]:
    """In how many of the arrangements of two groups U has each value: the coefficients of a Gaussian binomial."""
    counts = [1] + [0] * (n * m)
    for step in range(1, n + 1):
        # Multiply by 1 − q^(m + step), then divide by 1 − q^step.
        for place in range(n * m, m + step - 1, -1):
            counts[place] -= counts[place - m - step]
        for place in range(step, n * m + 1):
            counts[place] += counts[place - step]
    return counts


def _sum_counts(parts: Sequence[int]) -> list[int]:
    """How many subsets of `parts` have each sum."""
    counts = [1] + [0] * sum(parts)
    for part in parts:
        for place in range(len(counts) - 1, part - 1, -1):
            counts[place] += counts[place - part]
    return counts


def _two_sided(counts: Sequence[int], least: int) -> float:
    """Twice the share of arrangements whose statistic is at most `least`, the smaller tail's; the counts are symmetric."""
    return min(1.0, 2 * sum(counts[: least + 1]) / sum(counts))


def _normal_p(distance: float, variance: float) -> float:
    if variance <= 0:
        return 1.0
    z = max(0.0, distance - 0.5) / math.sqrt(variance)
    return min(1.0, 2 * statistics.NormalDist().cdf(-z))
