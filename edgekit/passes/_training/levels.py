"""The levels that low-bit weights take, and the scale that brings weights nearest to them."""

from __future__ import annotations

from typing import Any, Literal

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA

Bits = Literal[8, 4, 3, 2, 1]
BITS: tuple[int, ...] = (8, 4, 3, 2, 1)

_CANDIDATES = 64
_SMALLEST_SHARE = 0.1
"""Of the scale that just reaches the largest weight; below it, more is cut off than rounding could win."""
SMALLEST_SCALE = 1e-8
"""Of a channel whose weights are all zero."""


def levels_of(bits: int) -> tuple[float, ...]:
    """The levels of a number of bits, ascending and symmetric about zero.

    From 3 bits on they are integers without the lowest of two's complement, which has no counterpart. 2 bits give four
    levels half a step from zero (-1.5 … 1.5) and 1 bit two: with so few, a level at zero is worth less than one more.
    """
    if bits == 1:
        return (-1.0, 1.0)
    if bits == 2:
        return (-1.5, -0.5, 0.5, 1.5)
    top = 2 ** (bits - 1) - 1
    return tuple(float(level) for level in range(-top, top + 1))


def nearest(values: Any, levels: tuple[float, ...]) -> Any:
    """Each value of a tensor as the nearest of the levels; halves of a step go to the even one."""
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")
    low, high = levels[0], levels[-1]
    if len(levels) == 2:
        return torch.where(values >= 0, high, low).to(values.dtype)
    offset = low % 1
    return torch.round(values.clamp(low, high) - offset) + offset


def fitted_scale(weight: Any, levels: tuple[float, ...], axis: int) -> Any:
    """The scale of each output channel with the least squared error.

    Args:
        weight: The weights.
        levels: What they are rounded to, in units of the scale.
        axis: The axis of the weight that counts output channels.

    Returns:
        A tensor of the weight's dimensions, of size 1 in all but `axis`.
    """
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")
    others = [dimension for dimension in range(weight.dim()) if dimension != axis]
    if len(levels) == 2:
        # The exact optimum (Rastegari et al., "XNOR-Net", ECCV 2016, section 3.1).
        return weight.abs().mean(dim=others, keepdim=True).clamp_min(SMALLEST_SCALE)
    reach = (weight.abs().amax(dim=others, keepdim=True) / levels[-1]).clamp_min(SMALLEST_SCALE)
    best, least = reach, torch.full_like(reach, float("inf"))
    for share in torch.linspace(_SMALLEST_SHARE, 1.0, _CANDIDATES).tolist():
        scale = reach * share
        error = (nearest(weight / scale, levels) * scale - weight).square().sum(dim=others, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def fitted_range(samples: Any, low: float, high: float, bits: int) -> tuple[float, int]:
    """The scale and zero point with the least squared error for activations.

    Args:
        samples: Some of their values.
        low: The least of all.
        high: The largest of all.
        bits: How many bits choose a level.

    Returns:
        The scale, and the level (0 … 2**bits - 1) that stands for zero exactly.
    """
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    width = max(high - low, SMALLEST_SCALE)
    found, least = (width / top, round(-low * top / width)), float("inf")
    for share in torch.linspace(_SMALLEST_SHARE, 1.0, _CANDIDATES).tolist():
        scale = width * share / top
        zero = round(-low * top / width)
        rounded = torch.round(samples / scale).clamp(-zero, top - zero) * scale
        if (error := float((rounded - samples).square().sum())) < least:
            found, least = (scale, zero), error
    return found
