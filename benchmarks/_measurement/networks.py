"""Two networks that differ by a twentieth: twenty equal convolutions, and twenty-one."""

import torch
from torch import nn


def stack(layers):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for _ in range(layers):
        body += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body).eval(), (torch.zeros(1, 3, 14, 14),)


def twenty():
    return stack(20)


def twenty_one():
    return stack(21)
