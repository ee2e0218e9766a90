"""Operators that make tensors: filled, ranges, one-hot, bands; quantize and dequantize."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.operators import Args, operator


@operator("fill")
def fill(torch: Any, args: Args) -> Any:
    """A tensor of one value."""
    value = args.tensor("value").item() if args.has("value") else 0.0
    return torch.full(args.ints("shape"), value)


@operator("fill_like")
def fill_like(torch: Any, args: Args) -> Any:
    """A tensor of one value in the shape of another."""
    value = args.tensor("value").item() if args.has("value") else 0.0
    return torch.full(tuple(args.tensor("ref_tensor").shape), value)


@operator("range_1d")
def range_1d(torch: Any, args: Args) -> Any:
    """Numbers from start to end (which is left out) by step."""
    start, end, step = (args.tensor(name).item() for name in ("start", "end", "step"))
    return torch.arange(start, end, step)


@operator("one_hot")
def one_hot(torch: Any, args: Args) -> Any:
    """`on_value` at each index along a new axis, `off_value` elsewhere."""
    indices, size, axis = args.tensor("indices"), args.integer("one_hot_vector_size"), args.integer("axis", -1)
    axis = axis % (indices.dim() + 1)
    shape = [size if place == axis else 1 for place in range(indices.dim() + 1)]
    hit = indices.unsqueeze(axis) == torch.arange(size).reshape(shape)
    on = args.tensor("on_value") if args.has("on_value") else torch.tensor(1)
    off = args.tensor("off_value") if args.has("off_value") else torch.zeros_like(on)
    return torch.where(hit, on, off)


@operator("band_part")
def band_part(torch: Any, args: Args) -> Any:
    """The innermost matrices with zeros outside a band."""
    x, lower, upper = args.tensor("x"), args.integer("lower", -1), args.integer("upper", -1)
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])[None, :]
    keep = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        keep = keep & (below <= lower)
    if upper >= 0:
        keep = keep & (-below <= upper)
    return torch.where(keep, x, torch.zeros_like(x))


def _along(args: Args, name: str, rank: int) -> Any:
    parameter = args.tensor(name)
    if parameter.dim() == 0:
        return parameter
    shape = [1] * rank
    shape[args.integer("axis")] = -1
    return parameter.reshape(shape)


@operator("quantize")
def quantize(torch: Any, args: Args) -> Any:
    """`round(input / scale) + zero_point`, within the range of the output's type."""
    x = args.tensor("input")
    whole = torch.round(x / _along(args, "scale", x.dim()))
    if args.has("zero_point"):
        whole = whole + _along(args, "zero_point", x.dim())
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}.get(args.text("output_dtype"), (0, 0))
    if low == high:
        raise args.refuse(f"quantization to {args.text('output_dtype')}")
    return torch.clamp(whole, low, high)


@operator("dequantize")
def dequantize(_torch: Any, args: Args) -> Any:
    """`(input - zero_point) · scale`."""
    x = args.tensor("input")
    shifted = x - _along(args, "zero_point", x.dim()) if args.has("zero_point") else x
    return shifted * _along(args, "scale", x.dim())
