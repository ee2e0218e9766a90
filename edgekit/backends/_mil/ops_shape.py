"""Shapes: reshaping, joining, splitting, padding, and moving space to depth and back."""

from __future__ import annotations

import math
from typing import Any

from edgekit.backends._mil.operators import Args, operator


@operator("reshape")
def reshape(_torch: Any, args: Args) -> Any:
    """`x` in another shape; 0 keeps the size of that axis, -1 is worked out."""
    x, shape = args.tensor("x"), args.ints("shape")
    return x.reshape([x.shape[axis] if size == 0 and x.numel() else size for axis, size in enumerate(shape)])


@operator("reshape_like")
def reshape_like(_torch: Any, args: Args) -> Any:
    """`x` in a shape put together from axes of other tensors."""
    sizes: list[int] = []
    begins, ends, open_ended = args.tensors("begins"), args.tensors("ends"), args.tensors("end_masks")
    for other, begin, end, mask in zip(args.tensors("ref_tensors"), begins, ends, open_ended, strict=True):
        sizes += other.shape[int(begin) : None if bool(mask) else int(end)]
    return args.tensor("x").reshape(sizes)


@operator("transpose")
def transpose(_torch: Any, args: Args) -> Any:
    """`x` with its axes in another order."""
    return args.tensor("x").permute(args.ints("perm"))


@operator("expand_dims")
def expand_dims(_torch: Any, args: Args) -> Any:
    """`x` with axes of size 1 put in."""
    x, axes = args.tensor("x"), args.ints("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def squeeze(_torch: Any, args: Args) -> Any:
    """`x` without axes of size 1: those named, or all."""
    x = args.tensor("x")
    if not args.has("axes"):
        return x.squeeze()
    gone = {axis % x.dim() for axis in args.ints("axes")}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


@operator("flatten2d")
def flatten2d(_torch: Any, args: Args) -> Any:
    """`x` as a matrix: the axes before `axis` by the rest."""
    x, axis = args.tensor("x"), args.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("concat")
def concat(torch: Any, args: Args) -> Any:
    """Tensors one after another along an axis, or taking turns."""
    values, axis = args.tensors("values"), args.integer("axis")
    if not args.flag("interleave"):
        return torch.cat(values, dim=axis)
    axis = axis % values[0].dim()
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@operator("stack")
def stack(torch: Any, args: Args) -> Any:
    """Tensors along a new axis."""
    return torch.stack(args.tensors("values"), dim=args.integer("axis", 0))


@operator("split")
def split(torch: Any, args: Args) -> Any:
    """Pieces of `x` along an axis, equal or of given sizes."""
    x, axis = args.tensor("x"), args.integer("axis")
    if args.has("split_sizes"):
        return torch.split(x, list(args.ints("split_sizes")), dim=axis)
    return torch.split(x, x.shape[axis] // args.integer("num_splits"), dim=axis)


@operator("tile")
def tile(torch: Any, args: Args) -> Any:
    """`x` repeated along each axis."""
    return torch.tile(args.tensor("x"), args.ints("reps"))


@operator("pad")
def pad(torch: Any, args: Args) -> Any:
    """`x` with values before and after the last axes: constant, reflected or repeated from the edge."""
    x, amounts, mode = args.tensor("x"), args.ints("pad"), args.text("mode", "constant").lower()
    count = len(amounts) // 2
    for offset in range(count):
        axis = x.dim() - count + offset
        before, after = amounts[2 * offset], amounts[2 * offset + 1]
        if not before and not after:
            continue
        if mode == "constant":
            flat = [0] * (2 * (x.dim() - 1 - axis)) + [before, after]
            x = torch.nn.functional.pad(x, flat, value=args.number("constant_val", 0.0))
        else:
            x = x.index_select(axis, _edge_positions(torch, args, mode, x.shape[axis], before, after))
    return x


def _edge_positions(torch: Any, args: Args, mode: str, size: int, before: int, after: int) -> Any:
    places = torch.arange(-before, size + after)
    if mode == "replicate":
        return places.clamp(0, size - 1)
    if mode == "reflect":
        return (size - 1) - ((size - 1) - places.abs()).abs()
    raise args.refuse(f"padding '{mode}'")


@operator("reverse")
def reverse(torch: Any, args: Args) -> Any:
    """`x` turned round along the axes: those named, or all."""
    x = args.tensor("x")
    return torch.flip(x, args.ints("axes", tuple(range(x.dim()))))


@operator("reverse_sequence")
def reverse_sequence(torch: Any, args: Args) -> Any:
    """The first `lengths[i]` values of example i turned round."""
    x, lengths = args.tensor("x"), args.tensor("lengths")
    along, batch = args.integer("seq_axis", 0) % x.dim(), args.integer("batch_axis", 0) % x.dim()
    places = torch.arange(x.shape[along])
    turned = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
    shape = [1] * x.dim()
    shape[along], shape[batch] = x.shape[along], x.shape[batch]
    index = (turned if batch < along else turned.T).reshape(shape).expand(x.shape)
    return torch.gather(x, along, index)


@operator("space_to_depth")
def space_to_depth(_torch: Any, args: Args) -> Any:
    """Blocks of space as channels, the place in the block before the channel."""
    x, block = args.tensor("x"), args.integer("block_size")
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)


@operator("depth_to_space")
def depth_to_space(_torch: Any, args: Args) -> Any:
    """Channels as blocks of space, the place in the block before the channel."""
    x, block = args.tensor("x"), args.integer("block_size")
    n, c, h, w = x.shape
    blocks = x.reshape(n, block, block, c // (block * block), h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)


@operator("pixel_shuffle")
def pixel_shuffle(torch: Any, args: Args) -> Any:
    """Channels as blocks of space, the channel before the place in the block."""
    return torch.nn.functional.pixel_shuffle(args.tensor("x"), args.integer("upscale_factor"))


@operator("pixel_unshuffle")
def pixel_unshuffle(torch: Any, args: Args) -> Any:
    """Blocks of space as channels, the channel before the place in the block."""
    return torch.nn.functional.pixel_unshuffle(args.tensor("x"), args.integer("downscale_factor"))


@operator("space_to_batch")
def space_to_batch(torch: Any, args: Args) -> Any:
    """Blocks of space as examples."""
    x, (height, width) = args.tensor("x"), args.ints("block_shape")
    top, bottom, left, right = args.ints("paddings")
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // height, height, w // width, width)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(-1, c, h // height, w // width)


@operator("batch_to_space")
def batch_to_space(_torch: Any, args: Args) -> Any:
    """Examples as blocks of space."""
    x, (height, width) = args.tensor("x"), args.ints("block_shape")
    top, bottom, left, right = args.ints("crops")
    n, c, h, w = x.shape
    blocks = x.reshape(height, width, n // (height * width), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(-1, c, h * height, w * width)
    return whole[:, :, top : h * height - bottom, left : w * width - right]


@operator("sliding_windows")
def sliding_windows(_torch: Any, args: Args) -> Any:
    """All windows along an axis, the place in the window on the axis after it."""
    x, axis = args.tensor("x"), args.integer("axis") % args.tensor("x").dim()
    return x.unfold(axis, args.integer("size"), args.integer("stride", 1)).movedim(-1, axis + 1)


@operator("crop")
def crop(_torch: Any, args: Args) -> Any:
    """`x` without some rows and columns at its edges."""
    x, (top, bottom), (left, right) = args.tensor("x"), args.ints("crop_height"), args.ints("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@operator("shape")
def shape_of(torch: Any, args: Args) -> Any:
    """The sizes of `x`."""
    return torch.tensor(list(args.tensor("x").shape), dtype=torch.int64)
