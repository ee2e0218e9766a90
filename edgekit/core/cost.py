"""What a program costs, whatever runs it: multiplications, parameters, bytes, and how many of its weights are zero."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.core.attention import without_fast_path
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, Program, TorchProgram

_WHY = "counting multiplications"


@dataclass(frozen=True)
class Cost:
    """What a program costs; 0 where it is not known.

    Attributes:
        macs: Multiply-accumulates for the example inputs.
        parameters: Number of parameters.
        weight_bytes: Bytes of parameters and buffers as a float file stores them.
        zeros: How many parameters are exactly zero.
    """

    macs: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    zeros: int = 0


def cost_of(program: Program) -> Cost:
    """The cost of a program; of one that is no live torch module only the number of its parameters is known."""
    if not isinstance(program, TorchProgram):
        return Cost(parameters=program.parameter_count())
    return Cost(macs_of(program), program.parameter_count(), weight_bytes_of(program), zeros_of(program))


def macs_of(program: TorchProgram) -> int:
    """Multiply-accumulates of convolutions, linear and recurrent layers and matrix products for the example inputs."""
    torch = require("torch", TORCH_EXTRA, _WHY)
    attention = require("torch.nn.attention", TORCH_EXTRA, _WHY)
    counter = require("torch.utils.flop_counter", TORCH_EXTRA, _WHY).FlopCounterMode(display=False)
    with torch.no_grad(), _plain_kernels(torch), attention.sdpa_kernel(attention.SDPBackend.MATH), counter:
        program.flat(*program.tensors(program.example_inputs))
    return int(counter.get_total_flops()) // 2


def weight_bytes_of(program: TorchProgram) -> int:
    """Bytes of parameters and buffers; a tensor that has several names counts once."""
    distinct = {
        (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype): tensor.numel() * tensor.element_size()
        for tensor in program.module.state_dict().values()
        if hasattr(tensor, "data_ptr")
    }
    return sum(distinct.values())


def zeros_of(program: TorchProgram) -> int:
    """How many parameters are exactly zero."""
    return sum(parameter.numel() - int(parameter.count_nonzero()) for parameter in program.module.parameters())


@contextlib.contextmanager
def _plain_kernels(torch: Any) -> Iterator[None]:
    """Layers as plain products: torch's counter knows no fused attention and no fused recurrence."""
    fused = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        with without_fast_path():
            yield
    finally:
        torch.backends.mkldnn.enabled = fused
