"""What a smaller EfficientNet-Lite0 learns from and is decided by: one half of the photos; it is judged on the other.

The halves, the calibration crops and the 500 judged crops are those of the quantization benchmark. Two photos of each
half are not learnt from: their crops choose the epoch, and chose the recipe.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._quantization import crops
from edgekit.core.user_code import load_module

# First: this folder has a photos.py, too.
sys.path.insert(0, str(crops.EXAMPLE))
recover = load_module(crops.EXAMPLE / "recover.py")

HELD_OUT: Mapping[str, tuple[str, ...]] = {"A": ("china", "coins"), "B": ("coffee", "clock")}


DECIDING = 48


@cache
def held_out(half: str) -> np.ndarray:
    """The crops (48, 3, 224, 224) that decisions are made by."""
    pixels, names = crops.half(half)
    return crops.normalized(pixels[np.isin(names, HELD_OUT[half])][:DECIDING])


@cache
def whole(half: str) -> np.ndarray:
    """What the whole network says of them."""
    return recover.answers(held_out(half))


class LearntFromA(recover.Recovered):  # type: ignore[name-defined, misc]  # loaded by its path
    """See `edgekit.core.task.TrainableTask`; `test` is empty, since the benchmark judges artifacts itself."""

    half = "A"

    def __init__(self) -> None:
        super().__init__()
        if "EDGEKIT_BENCH_TRAIN" in os.environ:
            recover.CROPS = int(os.environ["EDGEKIT_BENCH_TRAIN"])

    def photos(self) -> Mapping[str, Any]:
        found = crops.HALVES[self.half].items()
        return {name: recover.Photo(files) for name, files in found if name not in HELD_OUT[self.half]}

    def examples(self, split: str) -> Iterator[Mapping[str, np.ndarray]]:
        images: Sequence[Any] = ()
        if split == "calibration":
            images = crops.normalized(crops.half(self.half)[0][: crops.CALIBRATION])
        elif split == "validation":
            images = held_out(self.half)
        for start in range(0, len(images), recover.BATCH):
            yield {"image": images[start : start + recover.BATCH]}

    def score(self, outputs: Sequence[Mapping[str, np.ndarray]], split: str) -> Mapping[str, float]:
        # Without a project file the output has no name of ours.
        return super().score([{"logits": next(iter(batch.values()))} for batch in outputs], split)

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Mapping[str, np.ndarray], Any]) -> Any:
        return super().loss({"logits": next(iter(outputs.values()))}, batch)

    def labelled(self, outputs: Sequence[Mapping[str, np.ndarray]], split: str) -> Mapping[str, float]:
        return {}

    def whole(self, split: str) -> np.ndarray:
        # Of the other splits nothing is said: calibration is not scored, test is empty.
        return whole(self.half)


class LearntFromB(LearntFromA):
    half = "B"


def prepare(half: str, folder: Path, limit: int | None = None) -> None:
    """Write the judged crops, the photo of each, and what the whole network says of them."""
    pixels, names = crops.half(crops.OTHER[half])
    image = crops.normalized(pixels[:limit])
    np.save(folder / "image.npy", image)
    np.save(folder / "reference.npy", recover.answers(image))
    (folder / "names.json").write_text(json.dumps(names[:limit]))


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
