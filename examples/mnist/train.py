"""Train the networks and write their weights into the cache folder: one to five minutes each on one processor.

    python examples/mnist/train.py                                  # what is not there yet, of all six
    python examples/mnist/train.py --dataset mnist --network cnn    # this one, anew

Seeded: the same machine and torch give the same weights each time. The test split is not looked at until the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mnist_data import SIDE, SOURCES, load
from networks import NETWORKS, weights_file
from torch import Tensor, nn

from edgekit.core.files import write_atomic

SEED = 7
BATCH = 128
THREADS = 1
"""One, since sums split in another way give other weights."""


class Schedule(NamedTuple):
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        peak_rate: The largest learning rate.
        shift: By how many pixels an image is moved at most.
    """

    epochs: int
    peak_rate: float
    shift: int


SCHEDULES = {"cnn": Schedule(4, 4e-3, 1), "mlp": Schedule(12, 2e-3, 0), "vit": Schedule(6, 2e-3, 0)}


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """The images (N, 1, 28, 28) moved by at most so many pixels in each direction, all alike; the edge is paper (-1)."""
    if most == 0:
        return images
    down, right = (int(torch.randint(0, 2 * most + 1, (), generator=generator)) for _ in range(2))
    padded = nn.functional.pad(images, (most, most, most, most), value=-1.0)
    return padded[:, :, down : down + SIDE, right : right + SIDE]


def accuracy(module: nn.Module, dataset: str, split: str) -> float:
    """Share of the images of a split that the network names rightly."""
    images, labels = load(dataset, split)
    module.eval()
    with torch.inference_mode():
        answers = [module(torch.tensor(images[start : start + 500])).argmax(1) for start in range(0, len(images), 500)]
    return float(np.mean(torch.cat(answers).numpy() == labels))


def train(dataset: str, network: str, epochs: int | None = None, say: Callable[[str], None] = print) -> nn.Module:
    """Train on the `train` split from scratch; progress goes to `say`.

    Returns:
        The network after the last epoch, in evaluation mode.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    schedule = SCHEDULES[network]
    epochs = epochs or schedule.epochs
    images, labels = (torch.tensor(array) for array in load(dataset, "train"))
    module = NETWORKS[network]()
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.peak_rate, weight_decay=0.02)
    steps = -(-len(images) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.peak_rate, epochs=epochs, steps_per_epoch=steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(1, epochs + 1):
        module.train()
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = criterion(module(shifted(images[rows], schedule.shift, generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            total += loss.item() * len(rows)
        said = f"loss {total / len(images):.4f}  validation top1 {accuracy(module, dataset, 'validation'):.4f}"
        say(f"{dataset} {network}  epoch {epoch:2d}/{epochs}  {said}")
    return module.eval()


def save(module: nn.Module, path: Path) -> None:
    """Write the weights whole or not at all."""
    from safetensors.torch import save as serialized

    write_atomic(path, serialized({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))


def main() -> int:
    """Train, save, report."""
    parser = argparse.ArgumentParser(description="Train the networks of this example.")
    parser.add_argument("--dataset", choices=list(SOURCES), help="only this data set, and train anew")
    parser.add_argument("--network", choices=list(NETWORKS), help="only this network, and train anew")
    parser.add_argument("--epochs", type=int, help="passes over the training images, in place of the network's own")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    again = chosen.dataset is not None or chosen.network is not None
    for dataset in [chosen.dataset] if chosen.dataset else SOURCES:
        for network in [chosen.network] if chosen.network else NETWORKS:
            path = weights_file(dataset, network)
            if path.is_file() and not again:
                continue
            began = time.monotonic()
            module = train(dataset, network, chosen.epochs)
            save(module, path)
            count = sum(p.numel() for p in module.parameters())
            print(
                f"wrote {path}: {count:,} weights, test top1 {accuracy(module, dataset, 'test'):.4f},"
                f" {time.monotonic() - began:.0f} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
