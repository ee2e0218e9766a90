"""Train the base on numbers in plain English, and write its weights into the cache folder: half a minute on one core.

python examples/mt5_lora/train.py              # MT5_SEED=0
python examples/mt5_lora/train.py --seed 1     # another training of it: MT5_SEED=1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from model import NumberWriter, parameters_of, weights_file
from numbers_data import load
from torch import nn

from edgekit.core.files import write_atomic

BATCH = 128
EPOCHS = 13
PEAK_RATE = 3e-3


def accuracy(module: nn.Module, split: str) -> float:
    """Share of the numbers of a split, in plain English, that are written without a mistake."""
    words, given, digits = (torch.from_numpy(array) for array in load(split, "english"))
    module.eval()
    with torch.inference_mode():
        return float((module(words, given).argmax(-1) == digits).all(1).float().mean())


def train(seed: int, epochs: int = EPOCHS, say: Callable[[str], None] = print) -> nn.Module:
    """The base after the last epoch, in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    words, given, digits = (torch.from_numpy(array) for array in load("base", "english"))
    module = NumberWriter()
    optimizer = torch.optim.AdamW(module.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    steps = -(-len(words) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, epochs=epochs, steps_per_epoch=steps)
    for epoch in range(1, epochs + 1):
        module.train()
        total = 0.0
        for rows in torch.randperm(len(words), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(module(words[rows], given[rows]).flatten(0, 1), digits[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            rates.step()
            total += loss.item() * len(rows)
        say(
            f"epoch {epoch}/{epochs}  loss {total / len(words):.4f}  validation exact {accuracy(module, 'validation'):.4f}"
        )
    return module.eval()


def main() -> int:
    """Train, save, report."""
    from safetensors.torch import save_model

    parser = argparse.ArgumentParser(description="Train the base of this example.")
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    began, path = time.monotonic(), weights_file(seed)
    module = train(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    save_model(module, str(whole))
    write_atomic(path, whole.read_bytes())
    whole.unlink()
    print(f"wrote {path}: {parameters_of(module):,} parameters, test exact {accuracy(module, 'test'):.4f},"
          f" {time.monotonic() - began:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
