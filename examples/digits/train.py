"""Train the digits network and write `digits.safetensors` beside this file: about 10 seconds.

Run it as `python examples/digits/train.py`. Seeded: the same machine and torch give the same weights each time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from digits_data import load
from model import WEIGHTS, Digits
from torch import Tensor, nn

from edgekit.core.files import write_atomic

SEED = 7
EPOCHS = 30
BATCH = 64
PEAK_RATE = 4e-3
THREADS = 1
"""One, since sums split in another way give other weights; a second thread gains little on images this small."""


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, 1, 8, 8) moved by at most one pixel in each direction; the edge is filled with paper (-1)."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)
    count = len(images)
    down = torch.randint(0, 3, (count,), generator=generator)
    right = torch.randint(0, 3, (count,), generator=generator)
    return windows[torch.arange(count), :, down, right]


def accuracy(module: nn.Module, split: str) -> float:
    """Share of the images of a split that the network names rightly."""
    images, digits = load(split)
    module.eval()
    with torch.inference_mode():
        answers = module(torch.from_numpy(images.copy())).argmax(1).numpy()
    return float(np.mean(answers == digits))


def train(epochs: int = EPOCHS, say: Callable[[str], None] = print) -> Digits:
    """Train on the `train` split from scratch; progress goes to `say`. The test split is not looked at.

    Returns:
        The network after the last epoch, in evaluation mode.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images, digits = (torch.from_numpy(array.copy()) for array in load("train"))
    module = Digits()
    optimizer = torch.optim.AdamW(module.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, epochs=epochs, steps_per_epoch=steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(1, epochs + 1):
        module.train()
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = criterion(module(shifted(images[rows], generator)), digits[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if epoch % 5 == 0 or epoch == epochs:
            say(
                f"epoch {epoch:2d}/{epochs}  loss {total / len(images):.4f}"
                f"  validation top1 {accuracy(module, 'validation'):.4f}"
            )
    return module.eval()


def save(module: nn.Module, path: Path) -> None:
    """Write the weights whole or not at all."""
    from safetensors.torch import save as serialized

    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    write_atomic(path, serialized(state))


def main() -> int:
    """Train, save, report."""
    parser = argparse.ArgumentParser(description="Train the digits network.")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the training images ({EPOCHS})")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help=f"where the weights go ({WEIGHTS.name})")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    began = time.monotonic()
    module = train(chosen.epochs)
    save(module, chosen.out)
    print(
        f"wrote {chosen.out}: {sum(p.numel() for p in module.parameters()):,} weights,"
        f" test top1 {accuracy(module, 'test'):.4f}, {time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
