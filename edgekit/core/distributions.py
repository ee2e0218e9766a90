"""Student's t distribution, for the few processes that a comparison has; no library needed on the way."""

from __future__ import annotations

import math

_TINY = 1e-300
_PRECISION = 1e-15
_TERMS = 500


def t_two_sided(t: float, freedom: float) -> float:
    """The probability that Student's t is at least as far from 0 as `t`.

    Args:
        t: The statistic; may be infinite.
        freedom: Degrees of freedom, above 0, not necessarily whole.

    Raises:
        ValueError: `freedom` is not above 0, or `t` is no number.
    """
    if not freedom > 0 or math.isnan(t):
        raise ValueError(f"t = {t} with {freedom} degrees of freedom has no probability")
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(tail: float, freedom: float) -> float:
    """The value that Student's t exceeds with probability `tail` (0 < tail <= 0.5).

    Raises:
        ValueError: `tail` is out of range, or `freedom` is not above 0.
    """
    if not 0 < tail <= 0.5:
        raise ValueError(f"a tail of {tail} is not between 0 and 0.5")
    high = 1.0
    while t_two_sided(high, freedom) > 2 * tail and high < 1e15:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if t_two_sided(middle, freedom) > 2 * tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The fraction converges fast on one side of the mean only; the other side is its mirror image.
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Lentz's method."""
    c, d = 1.0, _away_from_zero(1 - (a + b) * x / (a + 1))
    d = 1 / d
    total = d
    for m in range(1, _TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            total *= d * c
        if abs(d * c - 1) < _PRECISION:
            break
    return total


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
