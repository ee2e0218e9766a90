"""What mends a network that was made smaller, where there is neither ImageNet nor a label: its own answers.

Crops of photos that are in neither `validation` nor `test`, distorted in many ways, are put to the whole network; the
smaller one learns to answer alike (recipe-pruned.yaml). What is decided by is the cosine of both answers: it moves long
before both name the same class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from model import build
from photos import BATCH, PHOTOS, SIDE, Photo, Photos, load, locate, normalized

from edgekit.core.task import Batch, Split, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels = NDArray[np.uint8]
    Random = np.random.Generator

CROPS = 960
"""Crops to learn from. They stay the same in each epoch, so that the whole network is asked once for each."""
SEED = 5
SCALES = (0.2, 1.0)
"""Side of a crop, as a share of the photo's shorter side."""
ASPECTS = (0.75, 1.33)
MIXED = 0.5
"""Share of the crops that have a part of another photo in them: half of these as a rectangle, half shining through."""
GREY = 0.1
LIGHT = 0.3
"""How far brightness and contrast go up or down, as a share."""

MORE: Mapping[str, Photo] = {
    name: Photo((f"skimage/data/{file}",))
    for name, file in {
        "brick": "brick.png",
        "cell": "cell.png",
        "clock": "clock_motion.png",
        "coins": "coins.png",
        "grass": "grass.png",
        "gravel": "gravel.png",
        "hubble": "hubble_deep_field.jpg",
        "ihc": "ihc.png",
        "moon": "moon.png",
        "page": "page.png",
        "text": "text.png",
    }.items()
}
"""What else scikit-image ships: not good to calibrate with, but good to learn from."""


def distorted(image: Image, random: Random) -> NDArray[np.float32]:
    """A part of an image of random size, shape, place, handedness and light: (224, 224, 3), 0 to 255."""
    from PIL import Image as Pillow

    shorter, shape = min(image.size) * random.uniform(*SCALES), np.sqrt(random.uniform(*ASPECTS))
    width, height = min(shorter * shape, image.width), min(shorter / shape, image.height)
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    pixels = np.asarray(image.resize((SIDE, SIDE), Pillow.Resampling.BICUBIC, box=box), np.float32)
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    if random.random() < GREY:
        pixels = pixels.mean(2, keepdims=True).repeat(3, 2)
    contrast, light = 1 + random.uniform(-LIGHT, LIGHT), 1 + random.uniform(-LIGHT, LIGHT)
    tint = 1 + random.uniform(-LIGHT, LIGHT, 3) / 3
    middle = pixels.mean()
    return (((pixels - middle) * contrast + middle) * light * tint).clip(0, 255).astype(np.float32)


def mixed(pixels: NDArray[np.float32], other: NDArray[np.float32], random: Random) -> NDArray[np.float32]:
    """An image with another in it: as a rectangle (CutMix, Yun et al., ICCV 2019) or shining through (mixup)."""
    if random.random() < 0.5:
        share = random.uniform(0.2, 0.8)
        return pixels * share + other * (1 - share)
    result = pixels.copy()
    high, wide = (random.uniform(0.3, 0.8, 2) * SIDE).astype(int)
    top, left = random.integers(0, SIDE - high), random.integers(0, SIDE - wide)
    result[top : top + high, left : left + wide] = other[top : top + high, left : left + wide]
    return result


def pool(photos: Mapping[str, Photo], count: int, seed: int = SEED) -> Pixels:
    """Distorted crops (count, 224, 224, 3), 0 to 255, of photos that take turns; always the same."""
    from PIL import Image as Pillow

    images = [[Pillow.open(locate(file)).convert("RGB") for file in photo.files] for photo in photos.values()]
    random = np.random.default_rng(seed)

    def one(number: int) -> NDArray[np.float32]:
        views = images[number % len(images)]
        return distorted(views[random.integers(len(views))], random)

    crops = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for number in range(count):
        pixels = one(number)
        if random.random() < MIXED:
            pixels = mixed(pixels, one(int(random.integers(len(images)))), random)
        crops[number] = pixels.round()
    return crops


def answers(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the whole network says of images (N, 3, 224, 224): logits (N, 1000)."""
    import torch

    module, _ = build()
    with torch.inference_mode():
        parts = [module(torch.tensor(images[start : start + BATCH])).numpy() for start in range(0, len(images), BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, 1000), np.float32)


class Recovered(Photos):
    """How close the network's answers are to the whole one's. See edgekit.core.task.TrainableTask."""

    metric = "cosine"

    def __init__(self) -> None:
        self.epoch = 0
        self._crops: Pixels | None = None

    def photos(self) -> Mapping[str, Photo]:
        """What to learn from: nothing that anything is judged on."""
        return {**PHOTOS["calibration"], **MORE}

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        self.epoch = epoch

    def batches(self, split: Split) -> Iterator[tuple[Batch, Any]]:
        """Batches of `image`; there are no labels."""
        if self._crops is None:
            self._crops = pool(self.photos(), CROPS)
        order = np.random.default_rng(self.epoch).permutation(len(self._crops))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield {"image": normalized(self._crops[order[start : start + BATCH]])}, None

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """How unsure the network is of what it says itself: what the importance of a channel can be told by."""
        import torch

        logits = outputs["logits"]
        return torch.nn.functional.cross_entropy(logits, logits.detach().argmax(1))

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """`agreement` with the whole network, the mean `cosine` of both logits, and what `Photos` tells."""
        logits, whole = joined(outputs, "logits").astype(np.float64), self.whole(split).astype(np.float64)
        norms = np.linalg.norm(logits, axis=1) * np.linalg.norm(whole, axis=1)
        return {
            "agreement": float((logits.argmax(1) == whole.argmax(1)).mean()),
            "cosine": float(((logits * whole).sum(1) / norms).mean()),
            **self.labelled(outputs, split),
        }

    def labelled(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """What the labels of a split tell."""
        return super().score(outputs, split)

    def whole(self, split: Split) -> NDArray[np.float32]:
        """The whole network's answers to a split."""
        return _whole(split)


@cache
def _whole(split: Split) -> NDArray[np.float32]:
    return answers(load(split)[0])
