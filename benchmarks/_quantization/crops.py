"""Crops of the photos that scikit-image and scikit-learn ship inside their wheels, in two halves that share no photo.

Written down before anything was tuned on them: which photos there are, their halves (every other one of the coloured
ones and of the grey ones, in the order of the alphabet), and how they are cropped. A network is calibrated on crops of
one half and judged on crops of the other; then the halves are swapped. Drawings and cut-outs in the same folders
(phantom, color, logo, horse, chessboard, microaneurysms) are no photos, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.user_code import load_module

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "efficientnet_lite0"
_SKIMAGE, _SKLEARN = "skimage/data/", "sklearn/datasets/images/"

HALVES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "A": {
        "astronaut": (f"{_SKIMAGE}astronaut.png",),
        "china": (f"{_SKLEARN}china.jpg",),
        "flower": (f"{_SKLEARN}flower.jpg",),
        "ihc": (f"{_SKIMAGE}ihc.png",),
        "retina": (f"{_SKIMAGE}retina.jpg",),
        "brick": (f"{_SKIMAGE}brick.png",),
        "cell": (f"{_SKIMAGE}cell.png",),
        "coins": (f"{_SKIMAGE}coins.png",),
        "gravel": (f"{_SKIMAGE}gravel.png",),
        "page": (f"{_SKIMAGE}page.png",),
    },
    "B": {
        "chelsea": (f"{_SKIMAGE}chelsea.png",),
        "coffee": (f"{_SKIMAGE}coffee.png",),
        "hubble": (f"{_SKIMAGE}hubble_deep_field.jpg",),
        # One scene, seen by the left and the right camera.
        "motorcycle": (f"{_SKIMAGE}motorcycle_left.png", f"{_SKIMAGE}motorcycle_right.png"),
        "rocket": (f"{_SKIMAGE}rocket.jpg",),
        "camera": (f"{_SKIMAGE}camera.png",),
        "clock": (f"{_SKIMAGE}clock_motion.png",),
        "grass": (f"{_SKIMAGE}grass.png",),
        "moon": (f"{_SKIMAGE}moon.png",),
        "text": (f"{_SKIMAGE}text.png",),
    },
}
OTHER = {"A": "B", "B": "A"}
DECIDED_ON = ("astronaut", "flower", "retina", "rocket", "china", "camera")
"""Photos that examples/efficientnet_lite0 calibrates and validates on: other crops of these were looked at while
edgekit's methods were chosen. Rows "on photos never decided on" leave them out."""
TESTED_EACH = 50
CALIBRATION = 128
VALIDATION = 48
"""Crops of the calibration half after those, for NNCF's accuracy control."""
SCALES = (0.5, 1.0)
"""Side of a crop, as a share of the photo's shorter side."""


def _example() -> Any:
    return load_module(EXAMPLE / "photos.py")


def _radical_inverse(index: int, base: int) -> float:
    """The Halton sequence: evenly spread over [0, 1), whatever the number of points, and the same everywhere."""
    result, factor = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        factor /= base
        result += digit * factor
    return result


def _crop(image: Any, turn: int) -> np.ndarray:
    """The `turn`-th square of an image, 224×224 pixels; every second one is mirrored."""
    from PIL import Image, ImageOps

    side = round(min(image.size) * (SCALES[0] + (SCALES[1] - SCALES[0]) * _radical_inverse(turn + 1, 2)))
    left, top = (
        round((length - side) * _radical_inverse(turn + 1, base))
        for length, base in zip(image.size, (3, 5), strict=True)
    )
    square = image.resize((_example().SIDE,) * 2, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(ImageOps.mirror(square) if turn % 2 else square)


@cache
def half(name: str, turns: int = TESTED_EACH) -> tuple[np.ndarray, tuple[str, ...]]:
    """Crops (turns x photos, 224, 224, 3), 0 to 255, of a half, and the photo of each; photos take turns."""
    from PIL import Image

    images = {
        photo: [Image.open(_example().locate(file)).convert("RGB") for file in files]
        for photo, files in HALVES[name].items()
    }
    pixels, names = [], []
    for turn in range(turns):
        for photo, views in images.items():
            pixels.append(_crop(views[turn % len(views)], turn))
            names.append(photo)
    return np.stack(pixels), tuple(names)


def normalized(pixels: np.ndarray) -> np.ndarray:
    return _example().normalized(pixels)


def one_grey_level(pixels: np.ndarray) -> np.ndarray:
    """Each value of each pixel one grey level higher, lower, or left as it is, seeded: what a camera's noise does at least."""
    step = np.random.RandomState(0).randint(-1, 2, pixels.shape)
    return np.clip(pixels.astype(np.int16) + step, 0, 255).astype(np.uint8)


class CalibratedOnA:
    """A task that has calibration examples only: these crops have no labels, and the benchmark judges them itself."""

    name = "A"
    metric = "confidence"
    direction = "larger"

    def examples(self, split: str) -> Iterator[Mapping[str, np.ndarray]]:
        if split == "calibration":
            yield {"image": normalized(half(self.name)[0][:CALIBRATION])}

    def score(self, outputs: Sequence[Mapping[str, np.ndarray]], split: str) -> Mapping[str, float]:
        """`confidence`: the mean probability of the likeliest class."""
        logits = np.concatenate([batch["output"] for batch in outputs]).astype(np.float64)
        return {"confidence": float(probabilities(logits).max(1).mean())}


class CalibratedOnB(CalibratedOnA):
    name = "B"


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits (N, classes)."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


CONFIDENT = 0.3


def closeness(reference: np.ndarray, got: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By photo: crops, how many of them agree with the reference, both again where it is confident, and summed cosines.

    Args:
        reference: Logits (N, 1000) of the float network.
        got: The same of another.
        names: The photo of each crop.
    """
    want, have = reference.astype(np.float64), got.astype(np.float64)
    agree = want.argmax(1) == have.argmax(1)
    sure = probabilities(want).max(1) > CONFIDENT
    cosine = (want * have).sum(1) / (np.linalg.norm(want, axis=1) * np.linalg.norm(have, axis=1))
    found = {}
    for photo in dict.fromkeys(names):
        rows = np.array([name == photo for name in names])
        found[photo] = {
            "crops": int(rows.sum()),
            "agree": int(agree[rows].sum()),
            "confident": int(sure[rows].sum()),
            "confident_agree": int((agree & sure)[rows].sum()),
            "cosine": float(cosine[rows].sum()),
        }
    return found
