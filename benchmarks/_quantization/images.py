"""MNIST and Fashion-MNIST as the benchmark compiles with them: the splits of examples/mnist, but no test split.

The test images are judged by the benchmark itself, on the artifact, one by one: it needs each answer for the paired
interval. Decisions that a compile makes are made on the first images of `validation`.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mnist"
sys.path.insert(0, str(EXAMPLE))

import mnist_data  # noqa: E402 - from the example's folder
import task as example  # noqa: E402

VALIDATION = 2_000
REFERENCE_EVALUATED = 2_000
"""Test images that the Core ML reference evaluator, a slow interpreter, is given: the first, which are a random sample."""


class Mnist(example.Mnist):
    """See `edgekit.core.task.TrainableTask`."""

    limits: Mapping[str, int] = {"test": 0, "validation": VALIDATION}

    def examples(self, split: str) -> Iterator[Mapping[str, np.ndarray]]:
        images, _ = mnist_data.load(self.dataset, split)
        count = min(len(images), self.limits.get(split, len(images)))
        for start in range(0, count, example.BATCH):
            yield {"image": images[start : min(start + example.BATCH, count)]}

    def score(self, outputs: Sequence[Mapping[str, np.ndarray]], split: str) -> Mapping[str, float]:
        logits = np.concatenate([next(iter(batch.values())) for batch in outputs])
        labels = mnist_data.load(self.dataset, split)[1][: len(logits)]
        return {"top1": float(np.mean(logits.argmax(1) == labels))}

    def batches(self, split: str) -> Iterator[tuple[Mapping[str, np.ndarray], Any]]:
        """All of them, but in a run that shows no numbers."""
        return itertools.islice(
            super().batches(split), int(os.environ.get("EDGEKIT_BENCH_TRAIN", "1000000")) // example.BATCH
        )

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Mapping[str, np.ndarray], Any]) -> Any:
        return super().loss({"logits": next(iter(outputs.values()))}, batch)


class FashionMnist(Mnist):
    dataset = "fashion"


class MnistReferenceEvaluated(Mnist):
    limits: Mapping[str, int] = {"test": REFERENCE_EVALUATED, "validation": 0}


class FashionMnistReferenceEvaluated(MnistReferenceEvaluated):
    dataset = "fashion"
