"""Crops of the photos that scikit-image and scikit-learn ship, and what the network should say of them.

No photo is in two splits. These photos have no ImageNet labels: for those with one clear subject we wrote down, by
looking at the photo and before running any network, every ImageNet class that names it (README.md says how). They
make `validation` and `test`; colour photos of something that ImageNet has no class for make `calibration`, which needs
no labels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgekit.core.errors import ConfigError
from edgekit.core.task import Batch, Direction, Split, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

CROPS = {"calibration": 48, "validation": 48, "test": 96}
"""Crops of each split, the same number from each of its photos. More of them make a slower, steadier number."""
SIDE = 224
PIXEL_MEAN = 127.0
PIXEL_STD = 128.0
"""In raw pixel values, 0 to 255, as EfficientNet-Lite was trained. edgekit.yaml says the same."""
SCALES = (0.6, 1.0)
"""Side of a crop, as a share of the photo's shorter side."""
JITTER = 0.1
"""How far a crop's centre may be from the subject's, as a share of the crop's side."""
BATCH = 16


class Photo(NamedTuple):
    """One photo, or several of one scene.

    Attributes:
        files: Where they are, below the folders of installed packages.
        centre: Where the subject's middle is, (x, y) as shares of width and height.
        classes: ImageNet classes that name the subject; empty where none does.
    """

    files: tuple[str, ...]
    centre: tuple[float, float] = (0.5, 0.5)
    classes: tuple[int, ...] = ()


PHOTOS: dict[Split, dict[str, Photo]] = {
    "train": {},
    "calibration": {
        "astronaut": Photo(("skimage/data/astronaut.png",)),
        "flower": Photo(("sklearn/datasets/images/flower.jpg",), (0.47, 0.5)),
        "retina": Photo(("skimage/data/retina.jpg",)),
    },
    "validation": {
        # missile; projectile, missile; space shuttle
        "rocket": Photo(("skimage/data/rocket.jpg",), (0.5, 0.6), (657, 744, 812)),
        # palace; monastery; stupa, tope
        "china": Photo(("sklearn/datasets/images/china.jpg",), (0.33, 0.5), (698, 663, 832)),
        # tripod; reflex camera
        "camera": Photo(("skimage/data/camera.png",), (0.55, 0.55), (872, 759)),
    },
    "test": {
        # tabby; tiger cat; Egyptian cat
        "chelsea": Photo(("skimage/data/chelsea.png",), (0.5, 0.4), (281, 282, 285)),
        # espresso; cup; coffee mug
        "coffee": Photo(("skimage/data/coffee.png",), (0.48, 0.45), (967, 968, 504)),
        # moped; motor scooter; disk brake. The two are one scene, seen by the left and the right camera.
        "motorcycle": Photo(
            ("skimage/data/motorcycle_left.png", "skimage/data/motorcycle_right.png"), (0.54, 0.6), (665, 670, 535)
        ),
    },
}


def locate(file: str) -> Path:
    """Where an installed package has a file, without importing the package.

    Args:
        file: `package/path/below/it`.

    Raises:
        ConfigError: The package is not installed, or does not carry the file.
    """
    package, _, rest = file.partition("/")
    spec = find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / rest if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        raise ConfigError(
            f"The photo {file} is not installed.", "pip install scikit-image scikit-learn   # the photos come with them"
        )
    return path


def crop(image: Image, centre: tuple[float, float], generator: random.Random) -> Image:
    """A square of the image around the subject, of a random size, place and handedness, as 224×224 pixels."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    side = round(min(image.size) * generator.uniform(*SCALES))
    corner = []
    for length, middle in zip(image.size, centre, strict=True):
        start = length * middle - side / 2 + side * generator.uniform(-JITTER, JITTER)
        corner.append(round(min(max(start, 0.0), length - side)))
    left, top = corner
    square = image.resize((SIDE, SIDE), Pillow.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return ImageOps.mirror(square) if generator.random() < 0.5 else square


def normalized(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (N, 224, 224, 3), 0 to 255, as the network's input (N, 3, 224, 224), -1 to 1."""
    return ((pixels.transpose(0, 3, 1, 2).astype(np.float32) - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)


@cache
def load(split: Split) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Crops (N, 3, 224, 224), float32, -1 to 1, and the photo that each is of; always the same.

    Photos take turns, so that the first crops of a split are of all of them.

    Raises:
        ConfigError: A package that carries a photo is not installed.
    """
    from PIL import Image as Pillow

    photos = PHOTOS[split]
    images = {
        name: [Pillow.open(locate(file)).convert("RGB") for file in photo.files] for name, photo in photos.items()
    }
    # Seeded by name: one photo's crops do not depend on which others are in the split.
    generators = {name: random.Random(name) for name in photos}
    rounds = CROPS[split] // len(photos) if photos else 0
    pixels, names = [], []
    for turn in range(rounds):
        for name, photo in photos.items():
            image = images[name][turn % len(images[name])]
            pixels.append(np.asarray(crop(image, photo.centre, generators[name])))
            names.append(name)
    stacked = np.stack(pixels) if pixels else np.empty((0, SIDE, SIDE, 3), np.uint8)
    result = normalized(stacked)
    result.setflags(write=False)
    return result, tuple(names)


class Photos:
    """Whether the network names the subject of a crop. See edgekit.core.task.Task for what each method owes."""

    metric = "top1"
    direction: Direction = "larger"

    def examples(self, split: Split) -> Iterator[Batch]:
        """Batches of `image` (N, 3, 224, 224), float32, -1 to 1; `train` has none."""
        images, _ = load(split)
        for start in range(0, len(images), BATCH):
            yield {"image": images[start : start + BATCH]}

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """`top1` and `top5`: the share of crops (0 to 1) where the largest, or one of the five largest, of `logits`
        (N, 1000) is one of the classes that name the photo's subject.

        Raises:
            ConfigError: The split's photos have no such classes.
            ValueError: There is not one row of logits a crop.
        """
        _, names = load(split)
        classes = {name: photo.classes for name, photo in PHOTOS[split].items()}
        if not names or not all(classes.values()):
            raise ConfigError(f"The split '{split}' has no labels to score against.", "Use validation or test.")
        logits = joined(outputs, "logits")
        if logits.shape != (len(names), 1000):
            raise ValueError(f"{split} has {len(names)} crops, but the outputs have the shape {logits.shape}.")
        order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :5]
        hits = np.array([np.isin(row, classes[name]) for row, name in zip(order, names, strict=True)])
        return {"top1": float(hits[:, 0].mean()), "top5": float(hits.any(axis=1).mean())}
