"""Weights rounded so that the layer's results move least, not the weights.

A weight rounded up is made good by those that are not rounded yet, as far as the data that they multiply go together:
E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023.
"""

from __future__ import annotations

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

    count = weights.shape[1]
    # Those whose data are large go first: the others can make good for them.
    order = np.argsort(-np.diag(second_moment), kind="stable")
    damped = second_moment[np.ix_(order, order)] + np.eye(count) * (
        _DAMPING * float(np.mean(np.diag(second_moment))) + 1e-12
    )
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weights[:, order].copy()
    steps = np.zeros_like(left)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.zeros((len(left), end - start))
        for place in range(start, end):
            steps[:, place] = np.clip(np.round(left[:, place] / scale), -largest, largest)
            error = (left[:, place] - steps[:, place] * scale) / factor[place, place]
            left[:, place:end] -= np.outer(error, factor[place, place:end])
            errors[:, place - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    found = np.empty_like(steps)
    found[:, order] = steps
    return found
