"""Random numbers of a training run: the same in each run, and those of the program around it untouched."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA

_STRIDE = 1_000_003
_LARGEST = 2**32


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Give the generators of Python, NumPy and torch back as they were when the block ends."""
    torch = require("torch", TORCH_EXTRA, "training")
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the person's task may draw from the global generator
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - as above


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed all three for one epoch: an epoch is repeatable without those before it, as a resumed run needs it."""
    torch = require("torch", TORCH_EXTRA, "training")
    import numpy as np

    value = (seed * _STRIDE + epoch) % _LARGEST
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 - as above
    torch.manual_seed(value)
