"""Weights rounded so that the layer's results move least, not the weights.

A weight rounded up is made good by those that are not rounded yet, as far as the data that they multiply go together:
E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats

_DAMPING = 0.1
"""Added to the diagonal, as a share of its mean. A hundredth, as the paper has it, fitted the few photos of a small
calibration set: better on its own crops, worse on those of other photos."""
_BLOCK = 64


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
    """Weights on any grid that stand for these.

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
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.zeros((len(left), end - start))
        for place in range(start, end):
            found[:, place] = nearest(left[:, place], int(order[place]))
            error = (left[:, place] - found[:, place]) / factor[place, place]
            left[:, place:end] -= np.outer(error, factor[place, place:end])
            errors[:, place - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    moved = np.empty_like(found)
    moved[:, order] = found
    return moved
