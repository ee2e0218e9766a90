"""A convolutional teacher, a student of one hidden layer, and an MLP to prune, for MNIST (see ../mnist).

`edgekit … model.py:mlp --weights FILE`: these factories give untrained networks, train.py writes weights for them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.core.errors import ConfigError

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "mnist"))

from mnist_data import CLASSES, SIDE, cache_folder  # noqa: E402 - from the neighbour's folder

HIDDEN = 128


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU, and half the size of the image."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
    )


class Cnn(nn.Module):
    """Image (N, 1, 28, 28) to logits (N, 10): three convolutions and one dense layer; 104,000 weights, 7.5 million MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(convolution(1, 32), convolution(32, 64), convolution(64, 128))
        self.classifier = nn.Linear(128 * (SIDE // 8) ** 2, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalized to -1 to 1."""
        return self.classifier(self.features(image).flatten(1))


class Mlp(nn.Module):
    """Image (N, 1, 28, 28) to logits (N, 10), by dense layers alone."""

    def __init__(self, *hidden: int) -> None:
        super().__init__()
        sizes = (SIDE * SIDE, *hidden)
        layers = [
            part for given, out in zip(sizes[:-1], hidden, strict=True) for part in (nn.Linear(given, out), nn.ReLU())
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalized to -1 to 1."""
        return self.layers(image.flatten(1))


EXAMPLE = {"image": torch.zeros(1, 1, SIDE, SIDE)}


def seeded(seed: int, kind: type[nn.Module], *sizes: int) -> nn.Module:
    """A network with random weights by a seed; the program's own random numbers go on as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(*sizes).eval()


def weights_file(name: str) -> Path:
    """Where train.py writes the weights of that name."""
    return cache_folder().parent / "compression" / f"{name}.safetensors"


def cnn(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    return seeded(seed, Cnn), EXAMPLE


def student(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """784-128-10: 102,000 weights and as many MACs."""
    return seeded(seed, Mlp, HIDDEN), EXAMPLE


def mlp(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """784-128-64-10: 109,000 weights and as many MACs."""
    return seeded(seed, Mlp, 128, 64), EXAMPLE


def teacher() -> nn.Module:
    """The trained CNN, for the student to learn from.

    Raises:
        ConfigError: It has not been trained yet.
    """
    from safetensors.torch import load_file

    path = weights_file("cnn")
    if not path.is_file():
        raise ConfigError(f"The teacher has no weights yet: there is no file '{path}'.", f"python {HERE / 'train.py'}")
    module = Cnn()
    module.load_state_dict(load_file(path))
    return module.eval()
