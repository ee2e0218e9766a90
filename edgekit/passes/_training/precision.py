"""Training in bfloat16: what is heavy is computed in it, weights, losses and statistics stay in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA
from edgekit.passes._training.options import Precision

_IMAGE_AXES = 4


@contextlib.contextmanager
def laid_out(module: Any, precision: Precision) -> Iterator[None]:
    """Let a module's image weights lie in memory with their channels last, as fast bfloat16 kernels want them.

    They lie as they were when the block ends; no value changes.
    """
    torch = require("torch", TORCH_EXTRA, "training")
    if precision == "float32":
        yield
        return
    images = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dim() == _IMAGE_AXES]
    formats = [(tensor, tensor.stride()) for tensor in images]
    with torch.no_grad():
        for tensor in images:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, stride in formats:
                whole = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
                tensor.data = whole.copy_(tensor.data)


@contextlib.contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Compute what is heavy in that precision, inside the block."""
    torch = require("torch", TORCH_EXTRA, "training")
    # No cache: a weight that the block sees twice is cast twice, but one that a step has changed is never the old one.
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
        yield


def in_float32(values: dict[str, Any]) -> dict[str, Any]:
    """The tensors, those in bfloat16 as float32: a loss is summed in it."""
    torch = require("torch", TORCH_EXTRA, "training")
    return {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in values.items()}
