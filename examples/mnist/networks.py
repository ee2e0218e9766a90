"""Four small networks for images of 28×28 pixels, with weights trained on MNIST and on Fashion-MNIST.

A factory for each: `networks.py:mnist_cnn`, `mnist_mlp`, `mnist_vit`, `fashion_cnn`, `fashion_mlp`, `fashion_vit` and
`fashion_resnet`. Each can be trained more than once: `fashion_mlp_0` is the training of `train.py --seed 0`, and so is
`fashion_resnet_shallow_0`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import torch
from mnist_data import CLASSES, SIDE, cache_folder
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everyone gives it

from edgekit.core.errors import ConfigError

SEED = 7
"""Of the training that is meant where a factory's name says no other."""


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


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where width or size change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        projection = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Image (N, 1, 28, 28) to logits (N, 10): ResNet-20 as for CIFAR (He et al., CVPR 2016); 272,000 weights."""

    WIDTHS = (16, 32, 64)

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.depth = depth
        first = self.WIDTHS[0]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        blocks, inputs = [], first
        for outputs in self.WIDTHS:
            for number in range(depth):
                blocks.append(Block(inputs, outputs, stride=2 if number == 0 and outputs > first else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalized to -1 to 1."""
        return self.classifier(self.pool(self.blocks(self.stem(image))).flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": Cnn, "mlp": Mlp, "vit": Vit, "resnet": ResNet}
DATASETS = {
    "cnn": ("mnist", "fashion"),
    "mlp": ("mnist", "fashion"),
    "vit": ("mnist", "fashion"),
    "resnet": ("fashion",),
}
"""What each network is trained on where nothing else is asked for."""


def weights_file(dataset: str, network: str, seed: int = SEED) -> Path:
    """Where the trained weights are, once train.py has made them."""
    return cache_folder() / f"{dataset}-{network}{'' if seed == SEED else f'-seed{seed}'}.safetensors"


def built(dataset: str, network: str, seed: int = SEED) -> tuple[nn.Module, dict[str, Tensor]]:
    """The trained network in evaluation mode, and an example of its input.

    Raises:
        ConfigError: It has not been trained yet, or the weights are not of this network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_file(dataset, network, seed)
    script = f"python {Path(__file__).resolve().parent / 'train.py'} --dataset {dataset} --network {network}"
    if seed != SEED:
        script += f" --seed {seed}"
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


def fashion_resnet() -> tuple[nn.Module, dict[str, Tensor]]:
    return built("fashion", "resnet")


def fashion_resnet_shallow(depth: float = 2, seed: int = SEED) -> nn.Module:
    """A ResNet of so many blocks a stage that begins as the first blocks of each stage of the trained one.

    Blocks beside a shortcut can be left out at little cost (Veit et al., NIPS 2016); training does the rest.
    """
    whole, _ = built("fashion", "resnet", seed)
    student = ResNet(int(depth))
    for place, (stage, number) in enumerate((s, n) for s in range(len(ResNet.WIDTHS)) for n in range(student.depth)):
        student.blocks[place].load_state_dict(
            whole.get_submodule(f"blocks.{stage * whole.depth + number}").state_dict()
        )
    student.stem.load_state_dict(whole.get_submodule("stem").state_dict())
    student.classifier.load_state_dict(whole.get_submodule("classifier").state_dict())
    return student


def __getattr__(name: str) -> Callable[..., object]:
    """The factories of other trainings: `mnist_mlp_0`, `fashion_resnet_shallow_2`."""
    if found := re.fullmatch(r"fashion_resnet_shallow_(\d+)", name):
        return functools.partial(fashion_resnet_shallow, seed=int(found[1]))
    if (found := re.fullmatch(r"([a-z]+)_([a-z]+)_(\d+)", name)) and found[1] in DATASETS.get(found[2], ()):
        return functools.partial(built, found[1], found[2], int(found[3]))
    raise AttributeError(name)
