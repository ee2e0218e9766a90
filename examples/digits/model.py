"""A small convolutional network for handwritten digits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.core.errors import ConfigError

WEIGHTS = Path(__file__).resolve().parent / "digits.safetensors"


def block(inputs: int, outputs: int) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU; the size of the image stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Digits(nn.Module):
    """Image (N, 1, 8, 8) to logits (N, 10); about 158,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(1, 32),
            block(32, 64),
            nn.MaxPool2d(2),
            block(64, 96),
            block(96, 96),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8), normalized to -1 to 1."""
        return self.classifier(self.pool(self.features(image)).flatten(1))


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """The trained network in evaluation mode, and an example of its input.

    Raises:
        ConfigError: It has not been trained yet, or the weights are not of this network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise ConfigError(
            f"The digits network has no weights yet: there is no file '{WEIGHTS}'.",
            f"python {Path(__file__).resolve().parent / 'train.py'}",
        )
    module = Digits()
    try:
        module.load_state_dict(load_file(WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"'{WEIGHTS}' does not hold the weights of this network: {error}",
            f"python {Path(__file__).resolve().parent / 'train.py'}",
        ) from error
    return module.eval(), {"image": torch.zeros(1, 1, 8, 8)}
