"""Weights rounded so that the layer's results move least, not the weights.

A weight rounded up is made good by those that are not rounded yet, as far as the data that they multiply go together:
E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.backends._quantize.ranges import Floats

_DAMPING = 0.1
"""Added to the diagonal, as a share of its mean. A hundredth, as the paper has it, fitted the few photos of a small
calibration set: better on its own crops, worse on those of other photos."""
_BLOCK = 64
_PRUNED = 0.5
"""The share of zeros from which on they are no chance: pruning put them there, and rounding leaves them."""


def rounded(weights: Floats, scale: Floats, second_moment: Floats, largest: int) -> Floats:
    """Whole numbers that stand for the weights.

    Args:
        weights: Shape (out, in).
        scale: One step of each output channel, shape (out,).
        second_moment: The mean of the products of every two of a layer's data, shape (in, in).
        largest: The largest of the whole numbers, and the least without its sign.
    """
    import numpy as np

    def nearest(column: Floats, _: int) -> Floats:
        return np.asarray(np.clip(np.round(column / scale), -largest, largest) * scale)

    return np.asarray(np.round(compensated(weights, second_moment, nearest) / scale[:, None]))


def compensated(weights: Floats, second_moment: Floats, nearest: Callable[[Floats, int], Floats]) -> Floats:
    """Weights on any grid that stand for these; where most of them are zero, those stay zero.

    What the zeros cannot make good, the others do: E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can
    Be Accurately Pruned in One-Shot", ICML 2023.

    Args:
        weights: Shape (out, in).
        second_moment: The mean of the products of every two of a layer's data, shape (in, in).
        nearest: The values of the grid nearest to some, one of each output channel, at a place along the inputs.
    """
    import numpy as np

    count = weights.shape[1]
    # Those whose data are large go first: the others can make good for them.
    order = np.argsort(-np.diag(second_moment), kind="stable")
    damped = second_moment[np.ix_(order, order)] + np.eye(count) * (
        _DAMPING * float(np.mean(np.diag(second_moment))) + 1e-12
    )
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weights[:, order].copy()
    found = np.zeros_like(left)
    zeros = pruned(left)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.zeros((len(left), end - start))
        for place in range(start, end):
            found[:, place] = nearest(np.where(zeros[:, place], 0.0, left[:, place]), int(order[place]))
            error = (left[:, place] - found[:, place]) / factor[place, place]
            left[:, place:end] -= np.outer(error, factor[place, place:end])
            errors[:, place - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    moved = np.empty_like(found)
    moved[:, order] = found
    return moved


def pruned(weights: NDArray[Any]) -> NDArray[np.bool_]:
    """Which weights pruning has set to zero, so that they stay it: none where fewer than half are zero, by chance."""
    import numpy as np

    zeros = np.equal(weights, 0)
    return np.asarray(zeros if zeros.mean() >= _PRUNED else np.zeros(weights.shape, bool), bool)
