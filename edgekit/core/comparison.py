"""Whether two things differ, from samples of fresh processes: pure functions, and the one place that decides.

Samples of one process are alike (the same memory layout, the same seconds of a machine's life), so that they are no
independent evidence: a thousand of them in one process are one observation of what a process does. What is compared is
the median of each process, on a logarithmic scale, because times differ by factors.

- Measured in turns, in an order drawn by lot: the two of a round are a pair, and the signed-rank test of the pairs is
  exact whatever the machine does meanwhile, for under "no difference" only the lot decides which of two was larger.
- Measured one after the other: Mann–Whitney of the processes; and the interval allows each run an offset of its own, as
  large as its processes differ, because nothing in the samples tells a slower artifact from a slower hour.
- With too few processes for a rank test to reach the level asked for: Student's t, which then wants a clear difference.

Both have to agree before a difference is claimed: the test, and an interval of the ratio that leaves out 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.core.distributions import t_quantile, t_two_sided
from edgekit.core.rank_tests import least_p, least_p_unpaired, mann_whitney, require_finite, signed_rank
from edgekit.core.stats import Interval, mad

if TYPE_CHECKING:
    import numpy as np

ALPHA = 0.01
FEWEST_PROCESSES = 3
POWER = 0.9
_RESAMPLES = 2000
_NORMAL_MAD = 1.4826
_MANY = 8

Processes = Sequence[Sequence[float]]
"""Samples, process by process."""

TestName = Literal["signed rank", "paired t", "Mann–Whitney", "Welch's t"]


@dataclass(frozen=True)
class Difference:
    """What is known of B against A.

    Attributes:
        ratio: B over A: the Hodges–Lehmann estimate, with a bootstrap interval of the confidence 1 − alpha.
        p: How often two equal things would look as different as this.
        test: Which test gave `p`.
        alpha: The level that was asked for.
        different: Whether a difference is claimed.
        detectable: The smallest ratio above 1 that such samples would show in 9 of 10 comparisons.
        processes: Processes of A and of B.
        samples: Samples of A and of B.
    """

    ratio: Interval
    p: float
    test: TestName
    alpha: float
    different: bool
    detectable: float
    processes: tuple[int, int]
    samples: tuple[int, int]


def compare_samples(
    a: Processes,
    b: Processes,
    *,
    paired: bool = False,
    alpha: float = ALPHA,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Decide whether B differs from A.

    Args:
        a: Samples of A, above 0, by process.
        b: Samples of B.
        paired: Whether process i of A and process i of B are one round, in an order drawn by lot.
        alpha: How often equal things may be called different.
        resamples: Draws of the bootstrap.
        seed: Of the draws.

    Raises:
        ValueError: A value is not a finite number above 0, there are too few processes, nothing varies at all, or the
            rounds do not match; the message says which.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"a level of {alpha} is not between 0 and 0.5")
    _require_comparable(a, b, paired)
    left, right = _log_medians(a), _log_medians(b)
    p, test = _paired_p(left, right, alpha) if paired else _unpaired_p(left, right, alpha)
    draws, estimate = _draws(a, b, left, right, paired, resamples, seed)
    count = len(left) if paired else min(len(left), len(right))
    low, high = _tails(draws, count, alpha)
    interval = Interval(math.exp(estimate), math.exp(low), math.exp(high), 1 - alpha)
    freedom = len(left) - 1 if paired else len(left) + len(right) - 2
    needed = t_quantile(alpha / 2, freedom) + t_quantile(1 - POWER, freedom)
    return Difference(
        ratio=interval,
        p=p,
        test=test,
        alpha=alpha,
        different=p <= alpha and not low <= 0 <= high,
        detectable=math.exp(min(needed * float(draws.std()), 700.0)),
        processes=(len(a), len(b)),
        samples=(sum(map(len, a)), sum(map(len, b))),
    )


def processes_of(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    """Samples in a row, cut into processes.

    Raises:
        ValueError: The counts do not add up to the number of values.
    """
    if sum(counts) != len(values):
        raise ValueError(f"{len(values)} samples, but their processes count {sum(counts)}")
    cut, start = [], 0
    for count in counts:
        if count:
            cut.append(list(values[start : start + count]))
        start += count
    return cut


def median_interval(
    processes: Processes, *, confidence: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval:
    """The median over fresh processes of the median of a process, with its bootstrap interval, in the samples' unit.

    Raises:
        ValueError: A value is not a finite number above 0, or there are too few processes.
    """
    import numpy as np

    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    _require_processes(processes)
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(processes), size=(resamples, len(processes)))
    draws = np.median(_resampled(processes, chosen, generator), axis=1)
    low, high = _tails(draws, len(processes), 1 - confidence)
    return Interval(math.exp(statistics.median(_log_medians(processes))), math.exp(low), math.exp(high), confidence)


def within(processes: Processes, *, confidence: float = 0.95) -> float:
    """Half the width of `median_interval`, as a share of the median: the 0.02 of "known to 2 %".

    Raises:
        ValueError: As `median_interval`.
    """
    found = median_interval(processes, confidence=confidence)
    return (found.high - found.low) / 2 / found.estimate


def _require_processes(processes: Processes) -> None:
    if len(processes) < FEWEST_PROCESSES:
        count = sum(map(len, processes))
        what = "one sample" if count == 1 else f"{count} samples of {len(processes)} process(es)"
        raise ValueError(
            f"{what}: at least {FEWEST_PROCESSES} fresh processes are needed to tell noise from difference"
        )
    for samples in processes:
        require_finite(samples)
        if min(samples) <= 0:
            raise ValueError("a value is not above 0, and a ratio needs that")


def _require_comparable(a: Processes, b: Processes, paired: bool) -> None:
    for processes in (a, b):
        _require_processes(processes)
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} processes are no rounds: each has to have one of both")
    if all(len({value for samples in side for value in samples}) == 1 for side in (a, b)):
        raise ValueError("all samples of each are equal: the clock is too coarse for this, or nothing was measured")


def _log_medians(processes: Processes) -> list[float]:
    return [math.log(statistics.median(samples)) for samples in processes]


def _paired_p(left: Sequence[float], right: Sequence[float], alpha: float) -> tuple[float, TestName]:
    differences = [after - before for before, after in zip(left, right, strict=True)]
    if least_p(len(differences)) <= alpha:
        return signed_rank(differences).p, "signed rank"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _t_p(statistics.fmean(differences), error, len(differences) - 1), "paired t"


def _unpaired_p(left: Sequence[float], right: Sequence[float], alpha: float) -> tuple[float, TestName]:
    if least_p_unpaired(len(left), len(right)) <= alpha:
        return mann_whitney(left, right).p, "Mann–Whitney"
    parts = [statistics.variance(side) / len(side) for side in (left, right)]
    total = sum(parts)
    # Welch and Satterthwaite: how many degrees of freedom two unequal variances leave.
    spread = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (left, right), strict=True))
    freedom = total**2 / spread if spread else len(left) + len(right) - 2
    return _t_p(statistics.fmean(right) - statistics.fmean(left), math.sqrt(total), freedom), "Welch's t"


def _t_p(distance: float, error: float, freedom: float) -> float:
    if distance == 0:
        return 1.0
    return t_two_sided(distance / error if error else math.inf, freedom)


def _draws(
    a: Processes,
    b: Processes,
    left: Sequence[float],
    right: Sequence[float],
    paired: bool,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray[Any, Any], float]:
    """Logarithms of the ratio in bootstrap draws of processes, and of samples within them; and the estimate itself."""
    import numpy as np

    generator = np.random.default_rng(seed)
    n, m = len(a), len(b)
    chosen = generator.integers(n, size=(resamples, n))
    one = _resampled(a, chosen, generator)
    if paired:
        # A round is drawn as a whole: what the machine did in it is in both of its processes and cancels out.
        differences = _resampled(b, chosen, generator) - one
        i, j = np.triu_indices(n)
        observed = np.asarray(right) - np.asarray(left)
        averages = (differences[:, i] + differences[:, j]) / 2
        return np.median(averages, axis=1), float(np.median((observed[i] + observed[j]) / 2))
    other = _resampled(b, generator.integers(m, size=(resamples, m)), generator)
    between = (other[:, :, None] - one[:, None, :]).reshape(resamples, n * m)
    drift = math.hypot(_spread(left), _spread(right))
    draws = np.median(between, axis=1) + drift * generator.standard_normal(resamples)
    return draws, float(np.median(np.subtract.outer(np.asarray(right), np.asarray(left))))


def _spread(medians: Sequence[float]) -> float:
    """How far processes of one run lie apart; a burst decides nothing where there are enough of them to tell."""
    return _NORMAL_MAD * mad(medians) if len(medians) >= _MANY else statistics.stdev(medians)


def _resampled(
    processes: Processes, chosen: np.ndarray[Any, Any], generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Logarithm of the median of a resample of each chosen process, `chosen`'s shape.

    The median of n values drawn with replacement from n is one of them, and its place follows from a beta
    distribution, the middle order statistic's of n uniform numbers: one draw instead of n.
    """
    import numpy as np

    result = np.empty(chosen.shape)
    for index, samples in enumerate(processes):
        places = chosen == index
        drawn = int(places.sum())
        ordered, count = np.log(np.sort(np.asarray(samples, np.float64))), len(samples)
        middle = (count + 1) // 2
        lower = generator.beta(middle, count + 1 - middle, drawn)
        found = ordered[np.minimum((lower * count).astype(int), count - 1)]
        if count % 2 == 0:
            upper = lower + (1 - lower) * generator.beta(1, count - middle, drawn)
            found = (found + ordered[np.minimum((upper * count).astype(int), count - 1)]) / 2
        result[places] = found
    return result


def _tails(draws: np.ndarray[Any, Any], count: int, alpha: float) -> tuple[float, float]:
    """The percentile interval; for few processes with its tails taken further out.

    There a plain one is too narrow, by √((n − 1) / n) and by the normal distribution in place of Student's t
    (Hesterberg, "What teachers should know about the bootstrap", 2015, section 3.5).
    """
    import numpy as np

    tail = 50 * alpha
    if count < _MANY:
        reach = t_quantile(alpha / 2, count - 1) * math.sqrt(count / (count - 1))
        tail = 100 * statistics.NormalDist().cdf(-reach)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
