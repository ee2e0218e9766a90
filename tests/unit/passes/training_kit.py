"""A small problem that is learned in a second, for the tests of passes that train."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import TorchProgram

SIZES = {"train": 192, "calibration": 32, "validation": 96}
BATCH = 32
CLASSES = 4


def examples_of(split):
    """Noisy images (N, 1, 6, 6) of one of four bright corners."""
    generator = np.random.default_rng(sorted(SIZES).index(split))
    labels = generator.integers(0, CLASSES, SIZES[split])
    images = generator.normal(0, 0.7, (SIZES[split], 1, 6, 6)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 3 * (label // 2) :, 3 * (label % 2) :][:3, :3] += 1.0
    return images, labels


class Corners:
    """Which corner is bright?"""

    metric = "top1"
    direction = "larger"

    def __init__(self):
        self.splits = set(SIZES)

    def examples(self, split):
        if split in self.splits:
            images, _ = examples_of(split)
            for start in range(0, len(images), BATCH):
                yield {"image": images[start : start + BATCH]}

    def score(self, outputs, split):
        _, labels = examples_of(split)
        logits = np.concatenate([batch["logits"] for batch in outputs])
        return {"top1": float((logits.argmax(1) == labels).mean())}

    def batches(self, split):
        images, labels = examples_of(split)
        order = np.random.permutation(len(images))  # noqa: NPY002 - from the generator that the loop seeds
        for start in range(0, len(images), BATCH):
            rows = order[start : start + BATCH]
            yield {"image": images[rows]}, labels[rows]

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs["logits"], torch.as_tensor(batch[1]))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, CLASSES),
    )


def model_of(module=None, seed=0):
    """A model around a module, untrained where none is given."""
    torch.manual_seed(seed)
    module = (module or cnn()).eval()
    examples = {"image": np.zeros((1, 1, 6, 6), np.float32)}
    program = TorchProgram(module, ("image",), ("logits",), False, examples)
    specs = (TensorSpec("image", (1, 1, 6, 6)),), (TensorSpec("logits", (1, CLASSES)),)
    return Model("corners", program, *specs, examples, program.digest(), "model.py:build")


def accuracy(model):
    task = Corners()
    return task.score([model.program.run(batch) for batch in task.examples("validation")], "validation")["top1"]


def state_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.program.module.state_dict().items()}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


class Heard:
    """Progress that remembers what it was told."""

    def __init__(self):
        self.said, self.notes, self.warnings, self.done, self.total = [], [], [], 0, None

    @contextmanager
    def step(self, title, total=None):
        self.total = total
        yield self

    def advance(self, done=1.0):
        self.done += done

    def say(self, text):
        self.said.append(text)

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)
