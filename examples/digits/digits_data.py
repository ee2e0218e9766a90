"""The handwritten digits of scikit-learn, split once for everything: 1,797 images of 8×8 pixels, values 0 to 16."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 20260
SIZES = {"calibration": 128, "validation": 360, "test": 360}
"""Images of each split; `train` takes the rest."""
PIXEL_MEAN = 8.0
PIXEL_STD = 8.0
"""In raw pixel values: what the network sees is (pixel - mean) / std, from -1 to 1. edgekit.yaml says the same."""


def normalized(pixels: NDArray[np.float64]) -> NDArray[np.float32]:
    """Raw pixels (N, 8, 8), 0 to 16, as the network's input (N, 1, 8, 8), -1 to 1."""
    return ((pixels[:, None] - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)


@cache
def split_indices() -> dict[str, NDArray[np.int64]]:
    """Rows of scikit-learn's data set in each split: every row in exactly one, all digits in the same proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    targets = load_digits().target
    rest = np.arange(len(targets))
    splits: dict[str, NDArray[np.int64]] = {}
    for name, size in SIZES.items():
        rest, chosen = train_test_split(rest, test_size=size, random_state=SEED, stratify=targets[rest])
        splits[name] = chosen
    splits["train"] = rest
    return splits


@cache
def load(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (N, 1, 8, 8), float32, -1 to 1, and their digits (N,) of a split, always in the same order.

    Raises:
        KeyError: There is no such split.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = split_indices()[split]
    images, digits = normalized(data.images[rows]), data.target[rows].astype(np.int64)
    # Both are kept and shared between callers.
    images.setflags(write=False)
    digits.setflags(write=False)
    return images, digits
