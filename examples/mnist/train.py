"""Train the networks and write their weights into the cache folder: one to five minutes each on one processor, ten to
twenty-five for the ResNet.

    python examples/mnist/train.py                                           # what is not there yet, of all seven
    python examples/mnist/train.py --dataset mnist --network cnn             # this one, anew
    python examples/mnist/train.py --dataset fashion --network mlp --seed 0  # another training: fashion_mlp_0

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
from networks import DATASETS, NETWORKS, SEED, weights_file
from torch import Tensor, nn

from edgekit.core.files import write_atomic

BATCH = 128
THREADS = 1
"""One, since sums split in another way give other weights."""


class Schedule(NamedTuple):
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        peak_rate: The largest learning rate.
        shift: By how many pixels an image is moved at most.
        flip: Whether half of the images are mirrored.
        momentum: Of SGD; AdamW where None.
        weight_decay: Of all weights.
        bfloat16: Whether convolutions and products are computed in bfloat16, channels last: twice as fast and more on a
            processor that has it, and slower on one that has not.
    """

    epochs: int
    peak_rate: float
    shift: int
    flip: bool = False
    momentum: float | None = None
    weight_decay: float = 0.02
    bfloat16: bool = False


SCHEDULES = {
    "cnn": Schedule(4, 4e-3, 1),
    "mlp": Schedule(12, 2e-3, 0),
    "vit": Schedule(6, 2e-3, 0),
    "resnet": Schedule(8, 0.15, 1, flip=True, momentum=0.9, weight_decay=5e-4, bfloat16=True),
}


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """The images (N, 1, 28, 28) moved by at most so many pixels in each direction, all alike; the edge is paper (-1)."""
    if most == 0:
        return images
    down, right = (int(torch.randint(0, 2 * most + 1, (), generator=generator)) for _ in range(2))
    padded = nn.functional.pad(images, (most, most, most, most), value=-1.0)
    return padded[:, :, down : down + SIDE, right : right + SIDE]


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images (N, 1, 28, 28), half of them with left and right exchanged."""
    turned = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(turned, images.flip(3), images)


def optimizer_of(module: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, or AdamW."""
    rate, decay = schedule.peak_rate, schedule.weight_decay
    if schedule.momentum is None:
        return torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(module.parameters(), rate, schedule.momentum, weight_decay=decay, nesterov=True)


def accuracy(module: nn.Module, dataset: str, split: str) -> float:
    """Share of the images of a split that the network names rightly."""
    images, labels = load(dataset, split)
    module.eval()
    with torch.inference_mode():
        answers = [module(torch.tensor(images[start : start + 500])).argmax(1) for start in range(0, len(images), 500)]
    return float(np.mean(torch.cat(answers).numpy() == labels))


def train(
    dataset: str, network: str, epochs: int | None = None, seed: int = SEED, say: Callable[[str], None] = print
) -> nn.Module:
    """Train on the `train` split from scratch; progress goes to `say`.

    Returns:
        The network after the last epoch, in evaluation mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    schedule = SCHEDULES[network]
    epochs = epochs or schedule.epochs
    images, labels = (torch.tensor(array) for array in load(dataset, "train"))
    module = NETWORKS[network]()
    if schedule.bfloat16:
        module.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(module, schedule)
    steps = -(-len(images) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.peak_rate, epochs=epochs, steps_per_epoch=steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(1, epochs + 1):
        module.train()
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            batch = shifted(images[rows], schedule.shift, generator)
            batch = mirrored(batch, generator) if schedule.flip else batch
            with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
                logits = module(batch)
            loss = criterion(logits.float(), labels[rows])
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
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the training ({SEED})")
    parser.add_argument("--epochs", type=int, help="passes over the training images, in place of the network's own")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    again = chosen.dataset is not None or chosen.network is not None
    for network in [chosen.network] if chosen.network else NETWORKS:
        for dataset in [chosen.dataset] if chosen.dataset else DATASETS[network]:
            path = weights_file(dataset, network, chosen.seed)
            if path.is_file() and not again:
                continue
            began = time.monotonic()
            module = train(dataset, network, chosen.epochs, chosen.seed)
            save(module, path)
            count = sum(p.numel() for p in module.parameters())
            print(
                f"wrote {path}: {count:,} weights, test top1 {accuracy(module, dataset, 'test'):.4f},"
                f" {time.monotonic() - began:.0f} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
