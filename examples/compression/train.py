"""Train what the recipes start from, and write it into the cache folder: five minutes on one processor.

    python examples/compression/train.py       # what is not there yet

The teacher (a CNN), three MLPs to prune and quantize, one a seed, and for each seed the random weights that a student
starts with, so that it starts alike with a teacher and without.
"""

from __future__ import annotations

import sys
import time

import torch
from model import SIDE, cnn, mlp, student, weights_file
from safetensors.torch import save
from task import Mnist
from torch import Tensor, nn

from edgekit.core.files import write_atomic

SEEDS = (0, 1, 2)
EPOCHS = {"cnn": 4, "mlp": 10}
PEAK_RATE = 4e-3
WEIGHT_DECAY = 0.01
THREADS = 1
"""One, since sums split in another way give other weights."""


def moved(images: Tensor, most: int = 1) -> Tensor:
    """The images (N, 1, 28, 28) moved by at most so many pixels in each direction, all alike; the edge is paper (-1)."""
    down, right = torch.randint(0, 2 * most + 1, (2,)).tolist()
    return nn.functional.pad(images, (most,) * 4, value=-1.0)[:, :, down : down + SIDE, right : right + SIDE]


def trained(module: nn.Module, kind: str, seed: int) -> nn.Module:
    """Train on the `train` split from scratch; the CNN sees its images moved by a pixel, in bfloat16."""
    torch.manual_seed(seed)
    task, epochs, convolutional = Mnist(), EPOCHS[kind], kind == "cnn"
    optimizer = torch.optim.AdamW(module.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * sum(1 for _ in task.batches("train"))
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    if convolutional:
        module.to(memory_format=torch.channels_last)
    for epoch in range(1, epochs + 1):
        module.train()
        task.set_epoch(1000 * (seed + 1) + epoch)
        for inputs, labels in task.batches("train"):
            images = torch.from_numpy(inputs["image"])
            with torch.autocast("cpu", torch.bfloat16, enabled=convolutional):
                logits = module(moved(images) if convolutional else images)
            loss = task.loss({"logits": logits.float()}, (inputs, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return module.eval()


def top1(module: nn.Module, split: str) -> float:
    """Share of the images of a split that the network names rightly."""
    task = Mnist()
    with torch.inference_mode():
        outputs = [{"logits": module(torch.tensor(batch["image"])).numpy()} for batch in task.examples(split)]
    return task.score(outputs, split)["top1"]


def main() -> int:
    """Train, save, report."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    wanted = [("cnn", cnn, "cnn", 0), *((f"mlp-seed{seed}", mlp, "mlp", seed) for seed in SEEDS)]
    for seed in SEEDS:
        write_weights(student(seed)[0], f"student-seed{seed}")
    for name, factory, kind, seed in wanted:
        if weights_file(name).is_file():
            continue
        began = time.monotonic()
        module = trained(factory(seed)[0], kind, seed)
        write_weights(module, name)
        told = f"validation top1 {top1(module, 'validation'):.4f}, {time.monotonic() - began:.0f} s"
        print(f"wrote {weights_file(name)}: {told}", flush=True)
    return 0


def write_weights(module: nn.Module, name: str) -> None:
    """Write weights whole or not at all."""
    write_atomic(weights_file(name), save({key: tensor.contiguous() for key, tensor in module.state_dict().items()}))


if __name__ == "__main__":
    sys.exit(main())
