"""Multiplications of a program."""

from __future__ import annotations

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.passes._channels.groups import WHY, torch_


def macs_of(program: TorchProgram) -> int:
    """Multiply-accumulates of convolutions, linear layers and matrix products for the example inputs."""
    attention = require("torch.nn.attention", TORCH_EXTRA, WHY)
    counter = require("torch.utils.flop_counter", TORCH_EXTRA, WHY).FlopCounterMode(display=False)
    # With gradients, and attention as plain products: fused kernels are not counted.
    with torch_().enable_grad(), attention.sdpa_kernel(attention.SDPBackend.MATH), counter:
        program.flat(*program.tensors(program.example_inputs))
    return int(counter.get_total_flops()) // 2
