"""Padding and output sizes of convolutions and pools, as MIL defines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.backends._mil.operators import Args

Pads = tuple[tuple[int, int], ...]
"""Elements before and after, for each spatial axis."""


def spatial_pads(args: Args, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> Pads:
    """How much to pad each spatial axis of `sizes`.

    Args:
        args: The operation, with `pad_type` and `pad`.
        sizes: Spatial sizes of the input.
        kernel: Sizes of the kernel, dilation included.
        strides: Steps of the kernel.

    Raises:
        UnsupportedModelError: The kind of padding is not known.
    """
    kind = args.text("pad_type", "valid").lower()
    if kind == "valid":
        return tuple((0, 0) for _ in sizes)
    if kind == "custom":
        given = args.ints("pad", (0,) * (2 * len(sizes)))
        return tuple((given[2 * axis], given[2 * axis + 1]) for axis in range(len(sizes)))
    if kind not in ("same", "same_lower"):
        raise args.refuse(f"padding '{kind}'")
    pads = []
    for size, width, stride in zip(sizes, kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        half = total // 2
        pads.append((half, total - half) if kind == "same" else (total - half, half))
    return tuple(pads)


def padded(torch: Any, x: Any, pads: Pads, value: float = 0.0) -> Any:
    """`x` with its last axes padded; negative numbers crop."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return torch.nn.functional.pad(x, flat, value=value) if any(flat) else x


def pooled_size(size: int, pad: tuple[int, int], kernel: int, stride: int, ceil_mode: bool) -> int:
    """Number of windows along one axis; with `ceil_mode` no window starts in the padding after the input."""
    before, after = pad
    room = size + before + after - kernel
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    if (count - 1) * stride >= size + before and (before > 0 or after > 0):
        count -= 1
    return count
