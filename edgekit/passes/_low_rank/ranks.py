"""How many components of a layer are kept: pure functions of its singular values.

By energy, by ratio, or by what is no noise: S. Nakajima, M. Sugiyama, S. D. Babacan and R. Tomioka, "Global Analytic
Solution of Fully-observed Variational Bayesian Matrix Factorization", JMLR 2013 (EVBMF), theorem 2 and corollary 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.core.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

_TAU = 2.5129
"""The constant of the global solution: beyond it a component has more signal than noise."""


def by_energy(values: Values, energy: float) -> int:
    """The least rank that keeps this share of the sum of squared singular values."""
    import numpy as np

    squares = np.cumsum(values**2)
    if squares[-1] <= 0:
        return 1
    return int(min(np.searchsorted(squares, energy * squares[-1] * (1 - 1e-12)) + 1, len(values)))


def by_ratio(values: Values, ratio: float) -> int:
    """This share of the full rank, at least one."""
    return max(1, round(ratio * len(values)))


def by_evbmf(values: Values, rows: int, columns: int) -> int:
    """The rank that variational Bayes finds in a matrix, its noise unknown; at least one.

    Args:
        values: All singular values of the matrix, in descending order.
        rows: Its rows.
        columns: Its columns.
    """
    import numpy as np

    small, large = sorted((rows, columns))
    alpha = small / large
    threshold = (1 + _TAU) * (1 + alpha / _TAU)
    total = float(np.sum(values**2))
    if total <= 0:
        return 1
    places = min(math.ceil(small / (1 + alpha)) - 1, small) - 1
    lower = max(values[places + 1] ** 2 / (large * threshold), float(np.mean(values[places + 1 :] ** 2)) / large)
    upper = total / (large * small)
    if lower >= upper:
        variance = upper
    else:
        optimize = require("scipy.optimize", "compression", "ranks by EVBMF")
        variance = float(
            optimize.minimize_scalar(
                _free_energy, args=(values, large, small, threshold), bounds=(lower, upper), method="bounded"
            ).x
        )
    return max(1, int(np.sum(values > math.sqrt(large * variance * threshold))))


def _free_energy(variance: float, values: Values, large: int, small: int, threshold: float) -> float:
    import numpy as np

    alpha = small / large
    scaled = values**2 / (large * variance)
    signal, noise = scaled[scaled > threshold], scaled[scaled <= threshold]
    tau = 0.5 * (signal - (1 + alpha) + np.sqrt(np.maximum((signal - (1 + alpha)) ** 2 - 4 * alpha, 0.0)))
    return float(
        np.sum(noise - np.log(noise))
        + np.sum(signal - tau)
        + np.sum(np.log((tau + 1) / signal))
        + alpha * np.sum(np.log(tau / alpha + 1))
    )


def common_energy(cost_at: Callable[[float], int], allowed: int, energies: Sequence[float] = ()) -> float:
    """The largest energy, the same for all layers, at which they cost no more than is allowed.

    Args:
        cost_at: What all layers cost at an energy; grows with it.
        allowed: The most that they may cost.
        energies: What is tried, ascending; a fine grid where none are given.
    """
    tried = list(energies) or [step / 200 for step in range(1, 200)]
    low, high = 0, len(tried)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if cost_at(tried[middle]) <= allowed else (low, middle)
    return tried[max(0, low - 1)]
