"""Small networks of the kinds that people compile, each with an example input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

nn = torch.nn
F = torch.nn.functional


class ConvNet(nn.Module):
    """Convolution, batch norm, PReLU, concat, nearest up-sampling, transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU6(), nn.MaxPool2d(3, 2, 1))
        self.up = nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        early = self.stem(image)
        late = F.interpolate(self.up(self.deep(early)), scale_factor=2.0, mode="nearest")
        return self.head(torch.cat([early, late], 1))


class Inverted(nn.Module):
    """A MobileNetV2 block with its residual, squeeze-excitation and hard swish, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(8, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.depth = nn.Sequential(
            nn.Conv2d(48, 48, 3, 1, 1, groups=48, bias=False), nn.BatchNorm2d(48), nn.Hardswish()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 12, 1), nn.SiLU(), nn.Conv2d(12, 48, 1), nn.Hardsigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(48, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.classify = nn.Linear(8, 10)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        wide = self.depth(self.expand(features))
        out = features + self.project(wide * self.squeeze(wide))
        return self.classify(out.mean((2, 3)))


class Transformer(nn.Module):
    """Embeddings of whole numbers, a mask, one encoder layer, mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.places = nn.Embedding(12, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.norm = nn.LayerNorm(32)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.norm(self.layer(x, src_key_padding_mask=mask == 0))
        weight = mask.unsqueeze(-1).float()
        return x, F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


class Attention(nn.Module):
    """Scaled dot-product attention with a causal mask, as written by hand in most transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, steps, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, steps, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, steps, 32))


class Recurrent(nn.Module):
    """A recurrent encoder and a linear head on its last step."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, both_ways: bool) -> None:
        super().__init__()
        self.encoder = kind(12, 24, layers, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(48 if both_ways else 24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x)[0][:, -1])


class Cells(nn.Module):
    """A loop over an LSTM cell, written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(12, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], 24)
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
        return h


class Audio(nn.Module):
    """One-dimensional convolutions and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 16, 9, 4, 4), nn.BatchNorm1d(16), nn.LeakyReLU(0.1), nn.MaxPool1d(4),
            nn.Conv1d(16, 32, 5, padding=4, dilation=2), nn.GELU(), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6),
        )  # fmt: skip

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.layers(wave), -1)


class Pools(nn.Module):
    """Pools of several kinds, and their padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                F.avg_pool2d(x, 3, 2, 1),
                F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
                F.max_pool2d(x, 3, 2, 1, ceil_mode=True)[..., :4, :4],
                F.avg_pool2d(x, 2, 2),
                F.adaptive_avg_pool2d(x, 4),
                F.adaptive_max_pool2d(x, 4),
            ],
            1,
        )


class Norms(nn.Module):
    """Layer, group and instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(4, 8),
            nn.InstanceNorm2d(8, affine=True),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.LayerNorm([8, 6, 6]),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class UNet(nn.Module):
    """Down and up again, by transposed convolution and by bilinear resizing, with reflected padding."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 8, 3, 2), nn.ELU())
        self.deeper = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.Softplus())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down(x)
        b = self.up(self.deeper(a))
        both = torch.cat([a, b], 1)
        return torch.sigmoid(self.out(F.interpolate(both, size=(24, 20), mode="bilinear", align_corners=False)))


class Detector(nn.Module):
    """A detection head: anchors, boxes and scores from two scales, pixel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.PReLU(16))
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.PReLU(32))
        self.mix = nn.Conv2d(8, 16, 1)
        self.heads = nn.ModuleList([nn.Conv2d(16, 6, 1), nn.Conv2d(32, 6, 1)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = self.body(x)
        b = self.deep(a)
        a = a + self.mix(F.pixel_shuffle(b, 2))
        rows = torch.cat([head(f).flatten(2).transpose(1, 2) for head, f in zip(self.heads, (a, b), strict=True)], 1)
        centre, size, scores = rows.split([2, 2, 2], -1)
        return torch.cat([centre - size.exp() / 2, centre + size.exp() / 2], -1), scores.softmax(-1)


class Vision(nn.Module):
    """A vision transformer of one block: patches, a class token, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.places = nn.Parameter(torch.randn(1, 17, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.norms[1](x)))[:, 0])


def _image(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(*shape),)


def _tokens() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    return torch.randint(0, 50, (2, 12)), mask


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "conv_net": (ConvNet, _image(1, 3, 32, 32)),
    "inverted_residual": (Inverted, _image(2, 8, 10, 10)),
    "transformer": (Transformer, _tokens),
    "attention": (Attention, _image(2, 9, 32)),
    "vision_transformer": (Vision, _image(1, 3, 16, 16)),
    "lstm": (lambda: Recurrent(nn.LSTM, 1, both_ways=False), _image(2, 7, 12)),
    "lstm_2_layers_both_ways": (lambda: Recurrent(nn.LSTM, 2, both_ways=True), _image(2, 7, 12)),
    "lstm_cells": (Cells, _image(2, 5, 12)),
    "gru": (lambda: Recurrent(nn.GRU, 1, both_ways=False), _image(2, 7, 12)),
    "gru_2_layers_both_ways": (lambda: Recurrent(nn.GRU, 2, both_ways=True), _image(2, 7, 12)),
    "rnn": (lambda: Recurrent(nn.RNN, 1, both_ways=False), _image(2, 7, 12)),
    "audio": (Audio, _image(1, 1, 400)),
    "pools": (Pools, _image(1, 4, 8, 8)),
    "norms": (Norms, _image(2, 8, 6, 6)),
    "u_net": (UNet, _image(1, 1, 24, 20)),
    "detector": (Detector, _image(1, 3, 24, 24)),
}


def make(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network with fixed weights, in evaluation mode with statistics that are not trivial, and its inputs."""
    torch.manual_seed(3)
    build, inputs = NETS[name]
    module = build().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return module, inputs()
