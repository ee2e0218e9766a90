"""What the model is for: numbers that are said as French says them, written in digits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numbers_data import Wording, load

from edgekit.core.task import Batch, Direction, Split, joined

BATCH = 100


class French:
    """Share of the numbers that are written without a mistake. See edgekit.core.task.TrainableTask.

    The decoder is given the right digits before each place. A number counts where it then says each of them: exactly
    where it would also write them all, given its own digits one by one.
    """

    metric = "exact"
    direction: Direction = "larger"
    wording: Wording = "french"

    def examples(self, split: Split) -> Iterator[Batch]:
        """Batches of `words` (N, 10) and `digits` (N, 4), int64."""
        words, given, _ = load(split, self.wording)
        for start in range(0, len(words), BATCH):
            yield {"words": words[start : start + BATCH], "digits": given[start : start + BATCH]}

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """`exact`: whole numbers that are right; `digits`: single digits that are (0 to 1)."""
        right = joined(outputs, "output").argmax(-1) == load(split, self.wording)[2]
        return {"exact": float(right.all(axis=1).mean()), "digits": float(right.mean())}

    def batches(self, split: Split) -> Iterator[tuple[Batch, Any]]:
        """Batches in an order drawn from numpy's generator, which the training loop seeds, with the digits (N, 4)."""
        words, given, digits = load(split, self.wording)
        order = np.random.permutation(len(words))  # noqa: NPY002 - as said above
        for start in range(0, len(words), BATCH):
            rows = order[start : start + BATCH]
            yield {"words": words[rows], "digits": given[rows]}, digits[rows]

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """Cross-entropy of the digits, a scalar torch tensor."""
        import torch

        return torch.nn.functional.cross_entropy(outputs["output"].flatten(0, 1), torch.as_tensor(batch[1]).flatten())


class English(French):
    """The same in the wording that the base has learned."""

    wording: Wording = "english"
