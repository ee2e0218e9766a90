"""Small networks of the shapes that pruning meets, for its tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 36, 10),
    )


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 64), nn.PReLU(64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


class Block(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(Block(16, 16), Block(16, 32, 2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 2, 1), nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


def mobile():
    def separable(before, after):
        return [
            nn.Conv2d(before, before, 3, 1, 1, groups=before, bias=False),
            nn.BatchNorm2d(before),
            nn.ReLU6(inplace=True),
            nn.Conv2d(before, after, 1),
        ]

    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    body = [*separable(16, 32), Squeeze(32), *separable(32, 48)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


class Joined(nn.Module):
    """Concatenation, with the input too; a grouped convolution, a group norm and a gate."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 24, 1)
        self.c = nn.Conv2d(43, 32, 1)
        self.grouped, self.norm = nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.GroupNorm(4, 32)
        self.up, self.fc = nn.ConvTranspose2d(16, 12, 2, 2), nn.Linear(12 * 256, 10)

    def forward(self, x):
        y = self.c(torch.cat([torch.relu(self.a(x)), self.b(x), x], 1))
        left, right = self.norm(self.grouped(y)).chunk(2, 1)
        return self.fc(torch.relu(self.up(left * torch.sigmoid(right))).flatten(1))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, -1))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.scale * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Class token, position embedding as a buffer, layer scale, and a head that runs for nothing."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.register_buffer("position", torch.randn(1, 5, width))
        self.layers = nn.Sequential(Layer(width, heads), Layer(width, heads))
        self.norm, self.head, self.unused = nn.LayerNorm(width), nn.Linear(width, 10), nn.Linear(width, width)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(self.layers(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position))[:, 0]
        self.unused(x)
        return self.head(x)


class Fixed(nn.Module):
    """Counts on 512 channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).view(-1, 512))


class Shuffled(nn.Module):
    """Mixes channels by reshapes, which no dependency graph follows."""

    def __init__(self):
        super().__init__()
        self.mixed, self.after, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.mixed(x))
        batch, channels, high, wide = x.shape
        x = x.view(batch, 2, channels // 2, high, wide).transpose(1, 2).reshape(batch, channels, high, wide)
        return self.last(torch.relu(self.after(x)).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


ALL = {"plain": plain, "mlp": mlp, "resnet": ResNet, "mobile": mobile, "joined": Joined, "vit": ViT}
