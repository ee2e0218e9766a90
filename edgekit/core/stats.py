"""Statistics of samples: pure functions on sequences of numbers, no library needed to read a stored result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What is shown of a set of samples; the field names are those of the results.

    `std` is the sample standard deviation (n − 1) and `cv` is `std / mean`; both are None for a single sample.
    """

    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    std: float | None
    cv: float | None


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile (0 to 100) by linear interpolation between closest ranks, as NumPy's default.

    Raises:
        ValueError: There are no values, or `q` is out of range.
    """
    if not values:
        raise ValueError("no values")
    if not 0 <= q <= 100:
        raise ValueError(f"percentile {q} is not between 0 and 100")
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def mad(values: Sequence[float]) -> float:
    """The median absolute deviation from the median, unscaled."""
    centre = statistics.median(values)
    return statistics.median(abs(value - centre) for value in values)


def outliers(values: Sequence[float], threshold: float = 5.0) -> list[int]:
    """Indexes of the values further than `threshold` scaled MADs from the median.

    The factor 1.4826 makes the MAD an estimate of the standard deviation under a normal distribution. Where more than
    half of the values are equal the MAD is 0 and nothing is called an outlier: there is no scale to judge by.
    """
    if len(values) < 3:
        return []
    scale = 1.4826 * mad(values)
    if scale == 0:
        return []
    centre = statistics.median(values)
    return [index for index, value in enumerate(values) if abs(value - centre) > threshold * scale]


def share_error(value: float | None, examples: int) -> float | None:
    """The standard error of a share of examples, sqrt(p (1 − p) / n); None for what is no share, and of nothing."""
    if value is None or not 0 <= value <= 1 or examples < 1:
        return None
    return math.sqrt(value * (1 - value) / examples)


def summarize(values: Sequence[float]) -> Summary:
    """The statistics shown of a set of samples.

    Raises:
        ValueError: There are no values, or one of them is not finite.
    """
    if not values:
        raise ValueError("no values")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not finite")
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(
        min=min(values),
        mean=mean,
        p50=percentile(values, 50),
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99),
        max=max(values),
        std=std,
        cv=std / mean if std is not None and mean else None,
    )


@dataclass(frozen=True)
class Interval:
    """Where a quantity lies, as far as the samples tell.

    Attributes:
        estimate: Its value on the samples.
        low: The interval's lower end.
        high: Its upper end.
        confidence: How often such intervals hold the true value.
    """

    estimate: float
    low: float
    high: float
    confidence: float


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of the mean of `after - before`, the same examples measured twice.

    Pairs are drawn together (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13): what makes
    an example hard is in both of its values and cancels out. Drawing pairs with replacement draws how often each
    distinct difference occurs from a multinomial distribution; scores that are right or wrong have three.

    Args:
        before: One value an example.
        after: The value of the same examples, in the same order.
        confidence: Between 0 and 1.
        resamples: How many times the examples are drawn anew.
        seed: Of the draws.

    Raises:
        ValueError: There are no values or not equally many, one is not finite, or `confidence` is out of range.
    """
    import numpy as np

    if not before or len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after are no pairs")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if not np.isfinite(differences).all():
        raise ValueError("a value is not finite")
    values, counts = np.unique(differences, return_counts=True)
    count = len(differences)
    drawn = np.random.default_rng(seed).multinomial(count, counts / count, size=resamples)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn @ values / count, [tail, 100 - tail])
    return Interval(float(differences.mean()), float(low), float(high), confidence)
