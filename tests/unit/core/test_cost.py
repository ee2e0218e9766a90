"""What a program costs, counted by hand beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.cost import Cost, cost_of, macs_of
from edgekit.core.program import TorchProgram


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def program(module: nn.Module, *shape: int) -> TorchProgram:
    return TorchProgram(module.eval(), ("x",), ("y",), False, {"x": np.ones(shape, np.float32)})


def encoder(*, frozen: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return layer.requires_grad_(not frozen)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3), (1, 3, 16, 16), 8 * 3 * 9 * 14 * 14),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 16, 16), 8 * 9 * 14 * 14),
        (nn.Linear(8, 4), (1, 8), 32),
        (Attention(), (1, 2, 16, 8), 2 * 2 * 16 * 16 * 8),
        # Two layers of four gates each, five steps: a fused recurrence counts as nothing.
        (nn.LSTM(8, 16, 2), (5, 1, 8), 5 * 4 * 16 * (8 + 16) + 5 * 4 * 16 * (16 + 16)),
    ],
    ids=["convolution", "depthwise", "linear", "attention", "recurrent"],
)
def test_multiplications_are_counted(module, shape, macs):
    assert macs_of(program(module, *shape)) == macs


def test_frozen_attention_counts_as_much_as_trainable_and_torch_is_left_as_it_was():
    counts = {macs_of(program(encoder(frozen=frozen), 1, 10, 16)) for frozen in (True, False)}
    assert counts == {10 * 16 * 48 + 2 * 2 * 10 * 10 * 8 + 10 * 16 * 16 + 2 * 10 * 16 * 32}
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_tied_weights_count_once_and_buffers_are_bytes_but_no_parameters():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    module[2].weight = module[0].weight
    with torch.no_grad():
        module[0].weight.fill_(1.0)[0] = 0.0
        module[1].bias.fill_(1.0)
    # The norm: weight, bias, mean and variance of 4 each, and how many batches it saw, in eight bytes.
    assert cost_of(program(module, 2, 4)) == Cost(2 * 2 * 16, 16 + 8, 4 * (16 + 8 + 8) + 8, 4)
