"""What the digits network is for: which digit is it, and how often is that right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from digits_data import load

from edgekit.core.task import Batch, Direction, Split, joined

BATCH = 64
ORDER_SEED = 11


class Digits:
    """Top-1 accuracy on scikit-learn's digits. See edgekit.core.task.TrainableTask for what each method owes."""

    metric = "top1"
    direction: Direction = "larger"

    def examples(self, split: Split) -> Iterator[Batch]:
        """Batches of `image` (N, 1, 8, 8), float32, -1 to 1."""
        images, _ = load(split)
        for start in range(0, len(images), BATCH):
            yield {"image": images[start : start + BATCH]}

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """`top1`: the share of images (0 to 1) whose largest of `logits` (N, 10) is the digit's."""
        _, digits = load(split)
        logits = joined(outputs, "logits")
        if logits.shape != (len(digits), 10):
            raise ValueError(f"{split} has {len(digits)} images, but the outputs have the shape {logits.shape}.")
        return {"top1": float(np.mean(logits.argmax(1) == digits))}

    def batches(self, split: Split) -> Iterator[tuple[Batch, Any]]:
        """Shuffled batches (in the same order each time) with their digits (N,), int64."""
        images, digits = load(split)
        order = np.random.default_rng(ORDER_SEED).permutation(len(images))
        for start in range(0, len(images), BATCH):
            rows = order[start : start + BATCH]
            yield {"image": images[rows]}, digits[rows]

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """Cross-entropy of `logits`, a scalar torch tensor."""
        import torch

        logits = outputs["logits"]
        return torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch[1], device=logits.device))
