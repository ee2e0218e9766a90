"""Resampling of images: up-sampling, resizing, crops of boxes, and sampling at coordinates."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.operators import Args, operator


def _grid(torch: Any, args: Args, mode: str, size: int, count: int) -> Any:
    """Where `count` outputs lie on an axis of `size` inputs, by MIL's sampling modes."""
    steps = torch.arange(count, dtype=torch.float64)
    if mode == "ALIGN_CORNERS" and count == 1:
        points = torch.full((1,), (size - 1) / 2, dtype=torch.float64)
    elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = steps * ((size - 1) / max(count - 1, 1))
    elif mode == "DEFAULT":
        points = steps * (size / count)
    elif mode == "OFFSET_CORNERS":
        points = (steps + 0.5) * (max(1, size - 1) / count)
    elif mode == "UNALIGN_CORNERS":
        points = (steps + 0.5) * (size / count) - 0.5
    else:
        raise args.refuse(f"sampling mode '{mode}'")
    return points.clamp(0, size - 1)


def _interpolated(torch: Any, x: Any, axis: int, points: Any) -> Any:
    """`x` at fractional positions along one axis, linearly."""
    low = points.floor().to(torch.int64)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.dim()
    shape[axis] = -1
    weight = (points - low).to(x.dtype).reshape(shape)
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


def _linear(torch: Any, args: Args, x: Any, sizes: tuple[int, ...], mode: str) -> Any:
    for offset, count in enumerate(sizes):
        axis = x.dim() - len(sizes) + offset
        x = _interpolated(torch, x, axis, _grid(torch, args, mode, x.shape[axis], count))
    return x


def _nearest(torch: Any, x: Any, sizes: tuple[int, ...]) -> Any:
    for offset, count in enumerate(sizes):
        axis = x.dim() - len(sizes) + offset
        x = x.index_select(axis, torch.arange(count) * x.shape[axis] // count)
    return x


def _scaled(args: Args, x: Any) -> tuple[int, int]:
    height = int(x.shape[-2] * args.number("scale_factor_height", 1.0))
    return height, int(x.shape[-1] * args.number("scale_factor_width", 1.0))


@operator("upsample_nearest_neighbor")
def upsample_nearest_neighbor(torch: Any, args: Args) -> Any:
    """The last two axes by factors, each output the input before it."""
    return _nearest(torch, args.tensor("x"), _scaled(args, args.tensor("x")))


@operator("resize_nearest_neighbor")
def resize_nearest_neighbor(torch: Any, args: Args) -> Any:
    """The last two axes to sizes, each output the input before it."""
    return _nearest(torch, args.tensor("x"), (args.integer("target_size_height"), args.integer("target_size_width")))


@operator("upsample_bilinear")
def upsample_bilinear(torch: Any, args: Args) -> Any:
    """The last two axes by factors, interpolated, corners aligned or half a pixel off."""
    aligned = args.flag("align_corners", default=True)
    half_pixel = args.flag("half_pixel_centers", default=not aligned)
    x, off = args.tensor("x"), "UNALIGN_CORNERS" if half_pixel else "DEFAULT"
    return _linear(torch, args, x, _scaled(args, x), "STRICT_ALIGN_CORNERS" if aligned else off)


@operator("resize_bilinear")
def resize_bilinear(torch: Any, args: Args) -> Any:
    """The last two axes to sizes, interpolated."""
    sizes = args.integer("target_size_height", 1), args.integer("target_size_width", 1)
    return _linear(torch, args, args.tensor("x"), sizes, args.text("sampling_mode", "DEFAULT"))


@operator("resize")
def resize(torch: Any, args: Args) -> Any:
    """The last `resized_dims` axes to sizes; 0 keeps one."""
    x, shape, count = args.tensor("x"), args.ints("shape"), args.integer("resized_dims")
    kept = x.shape[x.dim() - count :]
    sizes = tuple(size or old for size, old in zip(shape[len(shape) - count :], kept, strict=True))
    mode = args.text("sampling_mode", "DEFAULT")
    if args.text("interpolation_mode", "LINEAR") == "LINEAR":
        return _linear(torch, args, x.float(), sizes, mode)
    if mode != "DEFAULT":
        raise args.refuse(f"nearest-neighbour interpolation with sampling mode '{mode}'")
    return _nearest(torch, x, sizes)


@operator("crop_resize")
def crop_resize(torch: Any, args: Args) -> Any:
    """Boxes of `x`, each resampled to one size; a point outside the image has the padding value."""
    x = args.tensor("x")
    if args.has("roi"):
        return _crops_of_regions(torch, args, x)
    boxes = args.tensor("boxes").double()
    images = args.ints("box_indices", tuple(range(boxes.shape[0])))
    return torch.stack([_crop(torch, args, x[image], box) for image, box in zip(images, boxes, strict=True)])


def _crops_of_regions(torch: Any, args: Args, x: Any) -> Any:
    """The form up to iOS 16: boxes as (n, 1, 4 or 5, 1, 1), with an axis for the images in the result."""
    rows = args.tensor("roi").double().reshape(args.tensor("roi").shape[0], -1)
    if rows.shape[1] == 4:
        crops = [torch.stack([_crop(torch, args, image, row) for image in x]) for row in rows]
    else:
        crops = [_crop(torch, args, x[int(row[0])], row[1:])[None] for row in rows]
    return torch.stack(crops)


def _crop(torch: Any, args: Args, image: Any, box: Any) -> Any:
    ranges = _box_ranges(args, [float(value) for value in box])
    counts = args.integer("target_height", 1), args.integer("target_width", 1)
    scale = args.number("spatial_scale", 1.0)
    for axis, ((start, end), count) in enumerate(zip(ranges, counts, strict=True), start=1):
        factor = (image.shape[axis] - 1) if args.flag("normalized_coordinates") else 1
        points = _box_grid(torch, args, start * factor * scale, end * factor * scale, count)
        outside = (points < 0) | (points > image.shape[axis] - 1)
        shape = [1] * image.dim()
        shape[axis] = -1
        sampled = _interpolated(torch, image, axis, points.clamp(0, image.shape[axis] - 1))
        image = torch.where(outside.reshape(shape), args.number("pad_value", 0.0), sampled)
    return image


def _box_ranges(args: Args, box: list[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    mode = args.text("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")
    first, second, third, fourth = box
    if mode.startswith("CENTER_SIZE"):
        first, third = first - third / 2, first + third / 2
        second, fourth = second - fourth / 2, second + fourth / 2
    elif not mode.startswith("CORNERS"):
        raise args.refuse(f"box coordinates '{mode}'")
    height, width = (first, third), (second, fourth)
    return (height, width) if mode.endswith("HEIGHT_FIRST") else (width, height)


def _box_grid(torch: Any, args: Args, start: float, end: float, count: int) -> Any:
    mode = args.text("sampling_mode", "DEFAULT")
    steps = torch.arange(count, dtype=torch.float64)
    if mode == "ALIGN_CORNERS" and count == 1:
        return torch.full((1,), (start + end) / 2, dtype=torch.float64)
    if mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        return start + steps * ((end - start) / max(count - 1, 1))
    if mode == "OFFSET_CORNERS":
        return start + (steps + 0.5) * (max(1.0, end - start) / count)
    raise args.refuse(f"sampling mode '{mode}' for boxes")


@operator("resample")
def resample(torch: Any, args: Args) -> Any:
    """`x` (n, channels, height, width) at coordinates (n, height, width, 2), given as (x, y)."""
    x, points = args.tensor("x"), args.tensor("coordinates").float()
    modes = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    padding, aligned = args.text("padding_mode"), args.flag("align_corners")
    if padding not in modes or (padding == "constant" and args.number("padding_value", 0.0) != 0):
        raise args.refuse(f"padding '{padding}' with value {args.number('padding_value', 0.0)}")
    points = _normalized(torch, args, points, x, aligned)
    sampling = args.text("sampling_mode")
    if sampling not in ("bilinear", "nearest"):
        raise args.refuse(f"sampling mode '{sampling}'")
    return torch.nn.functional.grid_sample(x, points, sampling, modes[padding], align_corners=aligned)


def _normalized(torch: Any, args: Args, points: Any, x: Any, aligned: bool) -> Any:
    mode = args.text("coordinates_mode")
    if mode == "normalized_minus_one_to_one":
        return points
    if mode == "normalized_zero_to_one":
        return points * 2 - 1
    if mode != "unnormalized":
        raise args.refuse(f"coordinates '{mode}'")
    sizes = torch.tensor([x.shape[-1], x.shape[-2]], dtype=torch.float32)
    if aligned:
        return points * 2 / (sizes - 1).clamp(min=1) - 1
    return (points * 2 + 1) / sizes - 1


@operator("affine")
def affine(torch: Any, args: Args) -> Any:
    """`x` seen through an affine map of its coordinates, bilinear, zero outside."""
    x, matrix = args.tensor("x"), args.tensor("transform_matrix").reshape(-1, 2, 3)
    if args.text("coordinates_mode") != "normalized_minus_one_to_one" or args.text("sampling_mode") != "bilinear":
        raise args.refuse(f"{args.text('sampling_mode')} sampling of {args.text('coordinates_mode')} coordinates")
    size = [x.shape[0], x.shape[1], args.integer("output_height"), args.integer("output_width")]
    aligned = args.flag("align_corners", default=True)
    grid = torch.nn.functional.affine_grid(matrix.expand(x.shape[0], 2, 3), size, align_corners=aligned)
    return torch.nn.functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=aligned)
