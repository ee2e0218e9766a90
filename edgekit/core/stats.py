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
