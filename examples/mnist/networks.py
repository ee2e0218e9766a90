"""Three small networks for images of 28×28 pixels, each with weights trained on MNIST and on Fashion-MNIST.

A factory for each: `networks.py:mnist_cnn`, `mnist_mlp`, `mnist_vit`, `fashion_cnn`, `fashion_mlp`, `fashion_vit`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from mnist_data import CLASSES, SIDE, cache_folder
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everyone gives it

from edgekit.core.errors import ConfigError


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU, and half the size of the image."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class Cnn(nn.Module):
    """Image (N, 1, 28, 28) to logits (N, 10): two convolutions and two dense layers; 409,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(convolution(1, 16), convolution(16, 32))
        self.hidden = nn.Linear(32 * (SIDE // 4) ** 2, 256)
        self.classifier = nn.Linear(256, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalized to -1 to 1."""
        return self.classifier(F.relu(self.hidden(self.features(image).flatten(1))))


class Mlp(nn.Module):
    """Image (N, 1, 28, 28) to logits (N, 10): 784-512-256-10; 536,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(SIDE * SIDE, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, CLASSES)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalized to -1 to 1."""
        return self.layers(image.flatten(1))


class Attention(nn.Module):
    """Self-attention of several heads, from plain linear layers (Vaswani et al., NeurIPS 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.project = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, width) to tokens of the same shape."""
        count, tokens, width = x.shape
        query, key, value = (
            layer(x).reshape(count, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(-1)
        return self.project((weights @ value).transpose(1, 2).reshape(count, tokens, width))


class Layer(nn.Module):
    """A transformer's layer, normalized first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, width) to tokens of the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed(self.feed_norm(x))


class Vit(nn.Module):
    """Image (N, 1, 28, 28) to logits (N, 10): a small vision transformer on 16 patches; 407,000 weights.

    The mean of the tokens is classified, without a token of its own (Beyer et al., "Better plain ViT baselines", 2022).
    """

    PATCH = 7

    def __init__(self, width: int = 128, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, self.PATCH, self.PATCH)
        self.position = nn.Parameter(torch.randn(1, (SIDE // self.PATCH) ** 2, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalized to -1 to 1."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.layers(tokens)).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": Cnn, "mlp": Mlp, "vit": Vit}


def weights_file(dataset: str, network: str) -> Path:
    """Where the trained weights are, once train.py has made them."""
    return cache_folder() / f"{dataset}-{network}.safetensors"


def built(dataset: str, network: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The trained network in evaluation mode, and an example of its input.

    Raises:
        ConfigError: It has not been trained yet, or the weights are not of this network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_file(dataset, network)
    script = f"python {Path(__file__).resolve().parent / 'train.py'} --dataset {dataset} --network {network}"
    if not path.is_file():
        raise ConfigError(f"The network {dataset}_{network} has no weights yet: there is no file '{path}'.", script)
    module = NETWORKS[network]()
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(f"'{path}' does not hold the weights of this network: {error}", script) from error
    return module.eval(), {"image": torch.zeros(1, 1, SIDE, SIDE)}


def mnist_cnn() -> tuple[nn.Module, dict[str, Tensor]]:
    return built("mnist", "cnn")


def mnist_mlp() -> tuple[nn.Module, dict[str, Tensor]]:
    return built("mnist", "mlp")


def mnist_vit() -> tuple[nn.Module, dict[str, Tensor]]:
    return built("mnist", "vit")


def fashion_cnn() -> tuple[nn.Module, dict[str, Tensor]]:
    return built("fashion", "cnn")


def fashion_mlp() -> tuple[nn.Module, dict[str, Tensor]]:
    return built("fashion", "mlp")


def fashion_vit() -> tuple[nn.Module, dict[str, Tensor]]:
    return built("fashion", "vit")
