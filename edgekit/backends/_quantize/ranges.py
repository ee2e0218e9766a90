"""Ranges of activations, chosen on a histogram of their values.

A range that covers every value wastes its 256 steps on outliers; one that clips too many loses them. The least mean
squared error between the two is found by a search over both ends: R. Banner, Y. Nahshan and D. Soudry, "Post training
4-bit quantization of convolutional networks for rapid-deployment", NeurIPS 2019; M. Nagel et al., "A White Paper on
Neural Network Quantization", 2021, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.core.lowering import Ranges
    from edgekit.core.task import Array

    Floats = NDArray[np.float64]

_BINS = 8192
_STEPS = 255
_LARGEST_SAMPLE = 1 << 16
_PERCENTILE = 0.0001
"""The share of values beyond each end: clipping a thousandth cost accuracy, a ten-thousandth did not."""
_GRID = 64
_ROUNDS = 2
_SMALLEST = 1.0 / 16
"""The narrowest end that is tried, as a share of the widest."""


class Histogram:
    """Values of one tensor over all examples, in bins of equal width around zero; memory does not grow with examples.

    The width doubles when a value lies outside: two neighbours become one bin, and nothing is counted anew. A bin
    stands for the mean of its values, so that the many exact zeros of a ReLU stay zeros.

    Attributes:
        low: The least value, at most 0: a quantized range holds the zero exactly.
        high: The largest, at least 0.
    """

    def __init__(self) -> None:
        import numpy as np

        self.low = self.high = 0.0
        self._counts = np.zeros(_BINS, np.int64)
        self._sums = np.zeros(_BINS, np.float64)
        self._reach = 0.0

    def add(self, value: Array) -> None:
        """Count an array of any shape; infinities, as masks have them, are no values to quantize."""
        import numpy as np

        flat = value.ravel()
        # Channels lie along the last axis: an odd stride goes through all of them.
        stride = max(1, flat.size // _LARGEST_SAMPLE) | 1
        extremes = np.array([flat.min(initial=0.0), flat.max(initial=0.0)], np.float64)
        if not np.isfinite(extremes).all():
            flat = flat[np.isfinite(flat)]
            extremes = np.array([flat.min(initial=0.0), flat.max(initial=0.0)], np.float64)
        self.low, self.high = min(self.low, float(extremes[0])), max(self.high, float(extremes[1]))
        self._widen(float(np.abs(extremes).max()))
        if self._reach == 0.0:
            return
        taken = flat[::stride].astype(np.float64) if stride < flat.size else flat.astype(np.float64)
        places = ((taken + self._reach) * (_BINS / (2 * self._reach))).astype(np.int64)
        np.clip(places, 0, _BINS - 1, out=places)
        self._counts += np.bincount(places, minlength=_BINS)
        self._sums += np.bincount(places, weights=taken, minlength=_BINS)

    def _widen(self, extreme: float) -> None:
        import numpy as np

        if extreme > 0.0 and self._reach == 0.0:
            self._reach = extreme
        half, quarter = _BINS // 2, _BINS // 4
        while extreme > self._reach:
            for name in ("_counts", "_sums"):
                old = getattr(self, name)
                wider = np.zeros_like(old)
                wider[quarter : quarter + half] = old.reshape(half, 2).sum(axis=1)
                setattr(self, name, wider)
            self._reach *= 2

    def range(self, how: Ranges) -> tuple[float, float]:
        """The range (low ≤ 0, high ≥ 0) by `mse`, `entropy`, `percentile` or `minmax`."""
        import numpy as np

        if how == "minmax" or self.high == self.low or not self._counts.any():
            return self.low, self.high
        filled = self._counts > 0
        counts = self._counts[filled].astype(np.float64)
        values = self._sums[filled] / counts
        if how == "percentile":
            return _percentiles(values, counts, self.low, self.high)
        if how == "entropy":
            return _least_divergence(values, counts, self.low, self.high)
        return _least_error(values, counts, self.low, self.high)


def _percentiles(values: Floats, counts: Floats, low: float, high: float) -> tuple[float, float]:
    import numpy as np

    share = np.cumsum(counts) / counts.sum()
    lowest = values[np.searchsorted(share, _PERCENTILE)]
    highest = values[min(int(np.searchsorted(share, 1 - _PERCENTILE)), len(values) - 1)]
    return max(low, min(float(lowest), 0.0)), min(high, max(float(highest), 0.0))


def _least_divergence(values: Floats, counts: Floats, low: float, high: float) -> tuple[float, float]:
    """Both ends drawn in together to where the 256 steps tell least falsely how values are distributed.

    The Kullback-Leibler divergence of what a step stands for from what was there: S. Migacz, "8-bit Inference with
    TensorRT", GTC 2017.
    """
    import numpy as np

    grid = np.linspace(_SMALLEST, 1.0, _GRID)
    divergences = [_divergence(values, counts, low * share, high * share) for share in grid]
    place = len(grid) - 1 - int(np.argmin(divergences[::-1]))
    return float(low * grid[place]), float(high * grid[place])


def _divergence(values: Floats, counts: Floats, low: float, high: float) -> float:
    import numpy as np

    inside = (values >= low) & (values <= high)
    if not inside.any():
        return float("inf")
    # What lies outside is counted at the ends, where clipping puts it.
    there = np.where(inside, counts, 0.0)
    places = np.flatnonzero(inside)
    there[places[0]] += counts[values < low].sum()
    there[places[-1]] += counts[values > high].sum()
    steps = np.clip(np.round((values - low) / (high - low) * _STEPS), 0, _STEPS).astype(np.int64)
    kept = np.where(inside, counts, 0.0)
    # Each step's values, spread evenly over the bins that it stands for; what was clipped is not among them.
    total = np.bincount(steps, kept, _STEPS + 1)
    width = np.bincount(steps, inside.astype(np.float64), _STEPS + 1)
    spread = np.where(inside, total[steps] / np.maximum(width[steps], 1.0), 0.0)
    real = there > 0
    p, q = there[real] / there.sum(), np.maximum(spread[real] / kept.sum(), np.finfo(np.float64).tiny)
    return float(np.sum(p * np.log(p / q)))


def _least_error(values: Floats, counts: Floats, low: float, high: float) -> tuple[float, float]:
    """Both ends drawn in together, then each by itself."""
    import numpy as np

    grid = np.linspace(_SMALLEST, 1.0, _GRID)
    best = _best(values, counts, low * grid, high * grid)
    for _ in range(_ROUNDS):
        if high > 0.0:
            best = _best(values, counts, np.full(_GRID, best[0]), high * grid)
        if low < 0.0:
            best = _best(values, counts, low * grid, np.full(_GRID, best[1]))
    return best


def _best(values: Floats, counts: Floats, lows: Floats, highs: Floats) -> tuple[float, float]:
    import numpy as np

    errors = [_error(values, counts, low, high) for low, high in zip(lows, highs, strict=True)]
    # Of equal ones the widest: it clips least.
    place = len(errors) - 1 - int(np.argmin(errors[::-1]))
    return float(lows[place]), float(highs[place])


def _error(values: Floats, counts: Floats, low: float, high: float) -> float:
    import numpy as np

    scale = (high - low) / _STEPS
    zero_point = np.round(-low / scale)
    steps = np.clip(np.round(values / scale) + zero_point, 0, _STEPS)
    return float(np.sum(counts * ((steps - zero_point) * scale - values) ** 2))
