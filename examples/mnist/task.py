"""What the networks are for: which of ten classes is it, and how often is that right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mnist_data import CLASSES, load

from edgekit.core.task import Batch, Direction, Split, joined

BATCH = 128
ORDER_SEED = 11


class Mnist:
    """Top-1 accuracy on MNIST. See edgekit.core.task.TrainableTask for what each method owes."""

    dataset = "mnist"
    metric = "top1"
    direction: Direction = "larger"

    def examples(self, split: Split) -> Iterator[Batch]:
        """Batches of `image` (N, 1, 28, 28), float32, -1 to 1."""
        images, _ = load(self.dataset, split)
        for start in range(0, len(images), BATCH):
            yield {"image": images[start : start + BATCH]}

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """`top1`: the share of images (0 to 1) whose largest of `logits` (N, 10) is the class."""
        _, labels = load(self.dataset, split)
        logits = joined(outputs, "logits")
        if logits.shape != (len(labels), CLASSES):
            raise ValueError(f"{split} has {len(labels)} images, but the outputs have the shape {logits.shape}.")
        return {"top1": float(np.mean(logits.argmax(1) == labels))}

    def batches(self, split: Split) -> Iterator[tuple[Batch, Any]]:
        """Shuffled batches (in the same order each time) with their classes (N,), int64."""
        images, labels = load(self.dataset, split)
        order = np.random.default_rng(ORDER_SEED).permutation(len(images))
        for start in range(0, len(images), BATCH):
            rows = order[start : start + BATCH]
            yield {"image": images[rows]}, labels[rows]

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """Cross-entropy of `logits`, a scalar torch tensor."""
        import torch

        logits = outputs["logits"]
        return torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch[1], device=logits.device))


class FashionMnist(Mnist):
    """Top-1 accuracy on Fashion-MNIST."""

    dataset = "fashion"


class MirroredFashionMnist(FashionMnist):
    """Fashion-MNIST; what is trained on has each image twice, the second time with left and right exchanged.

    A student that learns from a teacher's answers needs no labels for new images, and clothes have no left and right.
    """

    def batches(self, split: Split) -> Iterator[tuple[Batch, Any]]:
        """Each batch of `FashionMnist`, and its mirror image after it."""
        for batch, labels in super().batches(split):
            yield batch, labels
            yield {"image": np.ascontiguousarray(batch["image"][..., ::-1])}, labels
