"""MNIST as in ../mnist: the same splits, the same score and loss, in another order each epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.core.task import Batch, Direction, Split, joined

sys.path.append(str(Path(__file__).resolve().parent.parent / "mnist"))

from mnist_data import CLASSES, load

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 128


class Mnist:
    """Top-1 accuracy on MNIST. See edgekit.core.task.TrainableTask for what each method owes."""

    metric = "top1"
    direction: Direction = "larger"
    tested: int | None = None
    """How many test images there are; all of them where None."""

    def __init__(self) -> None:
        self.epoch = 0

    def images(self, split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images and classes of a split."""
        images, labels = load("mnist", split)
        return (images[: self.tested], labels[: self.tested]) if split == "test" else (images, labels)

    def examples(self, split: Split) -> Iterator[Batch]:
        """Batches of `image` (N, 1, 28, 28), float32, -1 to 1."""
        images, _ = self.images(split)
        for start in range(0, len(images), BATCH):
            yield {"image": images[start : start + BATCH]}

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """`top1`: the share of images (0 to 1) whose largest logit, of (N, 10), is the class."""
        _, labels = self.images(split)
        # The only output: it is called `logits` where edgekit.yaml names it, and not where another factory is asked for.
        logits = joined(outputs, next(iter(outputs[0])))
        if logits.shape != (len(labels), CLASSES):
            raise ValueError(f"{split} has {len(labels)} images, but the outputs have the shape {logits.shape}.")
        return {"top1": float(np.mean(logits.argmax(1) == labels))}

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own, the same each time it is run."""
        self.epoch = epoch

    def batches(self, split: Split) -> Iterator[tuple[Batch, Any]]:
        """Shuffled batches with their classes (N,), int64."""
        images, labels = self.images(split)
        order = np.random.default_rng(self.epoch).permutation(len(images))
        for start in range(0, len(images), BATCH):
            rows = order[start : start + BATCH]
            yield {"image": images[rows]}, labels[rows]

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """Cross-entropy of the logits, a scalar torch tensor."""
        import torch

        (logits,) = outputs.values()
        return torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch[1], device=logits.device))


class ReferenceEvaluated(Mnist):
    """The same, with the first 2,000 test images only: Core ML's reference evaluator is a slow interpreter."""

    tested = 2_000
