"""Operators on shapes, positions and images: what coremltools builds, what torch or numpy computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.unit.backends.mil.cases_elementwise import A, Case, X, floats, ints, unary

F = torch.nn.functional
IMAGE = floats(1, 4, 4, 6)
SMALL = floats(2, 3, 5, 7)
ROWS = floats(5, 4)


def one_input(
    kind: str, array: np.ndarray, expected: Any, label: str, release: str = "iOS17", **parameters: Any
) -> Case:
    def build(mb: Any, x: Any) -> Any:
        return getattr(mb, kind)(x=x, **parameters)

    return Case(kind, {"x": array}, build, expected, label=label, release=release)


SHAPES = [
    unary("reshape", X, lambda x: x.reshape(2, 12, 5), shape=[2, -1, 5]),
    one_input("reshape", X, lambda x: x.reshape(2, 3, 20), "zero", shape=[2, 3, 20]),
    unary("transpose", X, lambda x: x.permute(0, 2, 3, 1), perm=[0, 2, 3, 1]),
    unary("expand_dims", A, lambda x: x[None, :, :, None], axes=[0, -2]),
    unary("squeeze", floats(1, 3, 1, 2), lambda x: x[0, :, 0], axes=[0, 2]),
    unary("flatten2d", X, lambda x: x.reshape(6, 20), axis=2),
    unary("tile", A, lambda x: x.repeat(1, 2, 3), reps=[1, 2, 3]),
    unary("reverse", X, lambda x: x.flip(1, 3), axes=[1, 3]),
    one_input(
        "pad",
        X,
        lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
        "constant",
        pad=[0, 3, 1, 2],
        constant_val=np.float32(0.5),
    ),
    one_input("pad", X, lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"), "reflect", pad=[3, 1, 1, 2], mode="reflect"),
    one_input(
        "pad", X, lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate"), "replicate", pad=[3, 1, 1, 2], mode="replicate"
    ),
    unary("shape", X, lambda x: torch.tensor(x.shape)),
    unary("crop", X, lambda x: x[..., 1:3, 2:4], crop_height=[1, 1], crop_width=[2, 1]),
    unary("pixel_shuffle", IMAGE, lambda x: F.pixel_shuffle(x, 2), upscale_factor=2),
    unary("pixel_unshuffle", IMAGE, lambda x: F.pixel_unshuffle(x, 2), downscale_factor=np.uint32(2)),
    # TensorFlow's order: the place in the block comes before the channel.
    unary(
        "depth_to_space",
        floats(1, 8, 2, 3),
        lambda x: F.pixel_shuffle(x.reshape(1, 4, 2, 2, 3).transpose(1, 2).reshape(1, 8, 2, 3), 2),
        block_size=2,
    ),
    unary(
        "space_to_depth",
        IMAGE,
        lambda x: F.pixel_unshuffle(x, 2).reshape(1, 4, 4, 2, 3).transpose(1, 2).reshape(1, 16, 2, 3),
        block_size=2,
    ),
    unary(
        "space_to_batch",
        floats(1, 2, 4, 4),
        lambda x: torch.cat([x[:, :, i::2, j::2] for i in range(2) for j in range(2)]),
        block_shape=[2, 2],
        paddings=np.zeros((2, 2), np.int32),
    ),
    Case(
        "batch_to_space",
        {"x": floats(1, 2, 4, 4)},
        lambda mb, x: mb.batch_to_space(
            x=mb.space_to_batch(x=x, block_shape=[2, 2], paddings=np.zeros((2, 2), np.int32)),
            block_shape=[2, 2],
            crops=np.array([[1, 0], [0, 2]], np.int32),
        ),
        lambda x: x[:, :, 1:, :2],
    ),
    unary("sliding_windows", ROWS, lambda x: x.unfold(0, 3, 2).transpose(1, 2), axis=0, size=3, stride=2),
    unary("band_part", floats(2, 4, 5), lambda x: torch.triu(torch.tril(x, 2), -1), lower=1, upper=2),
    Case(
        "concat",
        {"x": A, "y": A * 2},
        lambda mb, x, y: mb.concat(values=[x, y], axis=1),
        lambda x, y: torch.cat([x, y], 1),
    ),
    Case(
        "concat",
        {"x": A, "y": A * 2},
        lambda mb, x, y: mb.concat(values=[x, y], axis=1, interleave=True),
        lambda x, y: torch.stack([x, y], 2).reshape(2, 6, 4),
        label="interleave",
    ),
    Case(
        "stack",
        {"x": A, "y": A * 2},
        lambda mb, x, y: mb.stack(values=[x, y], axis=1),
        lambda x, y: torch.stack([x, y], 1),
    ),
    Case("split", {"x": X}, lambda mb, x: mb.split(x=x, num_splits=2, axis=2), lambda x: tuple(x.split(2, 2))),
    Case(
        "split",
        {"x": X},
        lambda mb, x: mb.split(x=x, split_sizes=[1, 4], axis=3),
        lambda x: tuple(x.split([1, 4], 3)),
        label="sizes",
    ),
    Case(
        "reshape_like",
        {"x": floats(6, 20), "y": X},
        lambda mb, x, y: mb.reshape_like(x=x, ref_tensors=(y, y), begins=(0, 2), ends=(2, 0), end_masks=(False, True)),
        lambda x, y: x.reshape(2, 3, 4, 5),
    ),
    Case(
        "reverse_sequence",
        {"x": floats(5, 2, 3), "n": np.array([2, 4], np.int32)},
        lambda mb, x, n: mb.reverse_sequence(x=x, lengths=n, seq_axis=0, batch_axis=1),
        lambda x, n: torch.stack([torch.cat([x[:m, b].flip(0), x[m:, b]]) for b, m in enumerate(n.tolist())], 1),
    ),
]

MADE = [
    Case("fill", {"x": A}, lambda mb, x: mb.mul(x=mb.fill(shape=mb.shape(x=x), value=2.5), y=x), lambda x: x * 2.5),
    Case(
        "fill_like",
        {"x": A},
        lambda mb, x: mb.fill_like(ref_tensor=x, value=np.float32(1.5)),
        lambda x: torch.full_like(x, 1.5),
    ),
    Case(
        "range_1d",
        {"n": np.array([9], np.int32)},
        lambda mb, n: mb.range_1d(start=1, end=mb.squeeze(x=n, axes=[0]), step=3),
        lambda n: torch.arange(1, 9, 3),
    ),
    Case(
        "one_hot",
        {"i": ints(2, 3, high=4)},
        lambda mb, i: mb.one_hot(indices=i, one_hot_vector_size=4, axis=1, on_value=2.0, off_value=-1.0),
        lambda i: F.one_hot(i.long(), 4).movedim(-1, 1).float() * 3 - 1,
    ),
    Case(
        "quantize",
        {"x": A},
        lambda mb, x: mb.quantize(input=x, scale=np.float32(0.02), zero_point=np.int8(3), output_dtype="int8"),
        lambda x: (torch.round(x / 0.02) + 3).clamp(-128, 127).int(),
    ),
    Case(
        "dequantize",
        {"x": A},
        lambda mb, x: mb.dequantize(
            input=mb.quantize(input=x, scale=np.array([0.1, 0.2, 0.3], np.float32), axis=1, output_dtype="int8"),
            scale=np.array([0.1, 0.2, 0.3], np.float32),
            axis=1,
        ),
        lambda x: torch.round(x / torch.tensor([0.1, 0.2, 0.3])[:, None]) * torch.tensor([0.1, 0.2, 0.3])[:, None],
    ),
]

I2 = np.array([[0, 1], [2, 0]], np.int32)
PAIRS = np.array([[0, 1], [1, 2], [0, 1]], np.int32)


def scattered(x: torch.Tensor, index: Any, updates: torch.Tensor, accumulate: bool) -> torch.Tensor:
    return x.clone().index_put(index, updates, accumulate=accumulate)


INDEXED = [
    one_input(
        "slice_by_index",
        X,
        lambda x: x[:, 1:, 3, ::2],
        "masks",
        begin=[0, 1, 3, 0],
        end=[0, 3, 0, 5],
        stride=[1, 1, 1, 2],
        end_mask=[True, False, False, False],
        squeeze_mask=[False, False, True, False],
    ),
    one_input(
        "slice_by_index", ROWS, lambda x: x.flip(0)[:4:2], "backwards", begin=[-1, 0], end=[0, 4], stride=[-2, 1]
    ),
    one_input("slice_by_size", X, lambda x: x[1:, :2, 1:, 2:4], "", begin=[1, 0, 1, 2], size=[-1, 2, 3, 2]),
    Case(
        "slice_update",
        {"x": ROWS, "u": floats(2, 4)},
        lambda mb, x, u: mb.slice_update(x=x, update=u, begin=[1, 0], end=[5, 4], stride=[2, 1]),
        lambda x, u: torch.cat([x[:1], u[:1], x[2:3], u[1:], x[4:]]),
        release="iOS18",
    ),
    Case(
        "gather", {"x": X, "i": I2}, lambda mb, x, i: mb.gather(x=x, indices=i, axis=2), lambda x, i: x[:, :, i.long()]
    ),
    Case(
        "gather",
        {"x": X, "i": I2},
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=3, batch_dims=1),
        lambda x, i: torch.stack([x[b][:, :, i[b].long()] for b in range(2)]),
        label="batch",
    ),
    Case(
        "gather_along_axis",
        {"x": A, "i": ints(2, 2, 4, high=3)},
        lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: torch.gather(x, 1, i.long()),
    ),
    Case(
        "gather_nd",
        {"x": X, "i": PAIRS},
        lambda mb, x, i: mb.gather_nd(x=x, indices=i),
        lambda x, i: x[i[:, 0].long(), i[:, 1].long()],
    ),
    Case(
        "gather_nd",
        {"x": X, "i": np.array([[[0, 1]], [[2, 3]]], np.int32)},
        lambda mb, x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        lambda x, i: torch.stack([x[0, 0, 1][None], x[1, 2, 3][None]]),
        label="batch",
    ),
    Case(
        "scatter",
        {"x": ROWS, "i": np.array([3, 0, 3], np.int32), "u": floats(3, 4)},
        lambda mb, x, i, u: mb.scatter(data=x, indices=i, updates=u, axis=0, mode="add"),
        lambda x, i, u: x.index_add(0, i.long(), u),
    ),
    Case(
        "scatter",
        {"x": ROWS, "i": np.array([2, 0], np.int32), "u": floats(5, 2)},
        lambda mb, x, i, u: mb.scatter(data=x, indices=i, updates=u, axis=1, mode="update"),
        lambda x, i, u: x.index_copy(1, i.long(), u),
        label="update",
    ),
    Case(
        "scatter_nd",
        {"x": X, "i": PAIRS, "u": floats(3, 4, 5)},
        lambda mb, x, i, u: mb.scatter_nd(data=x, indices=i, updates=u, mode="sub"),
        lambda x, i, u: scattered(x, (i[:, 0].long(), i[:, 1].long()), -u, accumulate=True),
    ),
    *(
        Case(
            "scatter_along_axis",
            {"x": ROWS, "i": ints(2, 4, high=5), "u": floats(2, 4, low=0.5)},
            lambda mb, x, i, u, mode=mode: mb.scatter_along_axis(data=x, indices=i, updates=u, axis=0, mode=mode),
            lambda x, i, u, reduce=reduce: x.scatter_reduce(0, i.long(), u, reduce),
            label=mode,
        )
        for mode, reduce in (("add", "sum"), ("mul", "prod"), ("max", "amax"), ("min", "amin"))
    ),
]


def resized(
    x: torch.Tensor, size: tuple[int, int], mode: str = "bilinear", aligned: bool | None = False
) -> torch.Tensor:
    return F.interpolate(x, size, mode=mode, align_corners=aligned)


def from_grid(x: torch.Tensor, rows: list[float], columns: list[float]) -> torch.Tensor:
    """Bilinear samples where rows and columns cross, in pixels."""
    height, width = x.shape[-2:]
    grid = torch.tensor([[[2 * c / (width - 1) - 1, 2 * r / (height - 1) - 1] for c in columns] for r in rows])
    return F.grid_sample(x, grid[None].expand(x.shape[0], -1, -1, -1), align_corners=True)


BOXES = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)
COUNTED = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
GRID = floats(2, 3, 4, 2, low=-1.2, high=1.2)
TURN = np.array([[0.9, -0.2, 0.1, 0.2, 0.8, -0.1]], np.float32)

IMAGES = [
    one_input(
        "upsample_nearest_neighbor",
        SMALL,
        lambda x: F.interpolate(x, scale_factor=2),
        "",
        scale_factor_height=2,
        scale_factor_width=2,
    ),
    one_input(
        "resize_nearest_neighbor",
        SMALL,
        lambda x: F.interpolate(x, (8, 3)),
        "",
        target_size_height=8,
        target_size_width=3,
    ),
    one_input(
        "upsample_bilinear",
        SMALL,
        lambda x: resized(x, (10, 21), aligned=True),
        "aligned",
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    one_input(
        "upsample_bilinear",
        SMALL,
        lambda x: resized(x, (10, 21)),
        "half-pixel",
        scale_factor_height=2,
        scale_factor_width=3,
        align_corners=False,
    ),
    one_input(
        "resize_bilinear",
        SMALL,
        lambda x: resized(x, (8, 3), aligned=True),
        "aligned",
        target_size_height=8,
        target_size_width=3,
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
    one_input(
        "resize_bilinear",
        SMALL,
        lambda x: resized(x, (8, 3)),
        "unaligned",
        target_size_height=8,
        target_size_width=3,
        sampling_mode="UNALIGN_CORNERS",
    ),
    # The expected points are those of the definition's own examples.
    one_input(
        "resize_bilinear",
        np.array([[[[0, 1]]]], np.float32),
        lambda x: torch.tensor([[[[0.0, 0.4, 0.8, 1.0, 1.0]]]]),
        "default",
        target_size_height=1,
        target_size_width=5,
    ),
    one_input(
        "resize_bilinear",
        np.array([[[[0, 1]]]], np.float32),
        lambda x: torch.tensor([[[[0.1, 0.3, 0.5, 0.7, 0.9]]]]),
        "offset",
        target_size_height=1,
        target_size_width=5,
        sampling_mode="OFFSET_CORNERS",
    ),
    one_input(
        "resize",
        SMALL,
        lambda x: resized(x, (8, 3)),
        "linear",
        shape=[8, 3],
        resized_dims=np.uint32(2),
        sampling_mode="UNALIGN_CORNERS",
    ),
    one_input(
        "resize",
        SMALL,
        lambda x: F.interpolate(x, (8, 7)),
        "nearest",
        shape=[8, 0],
        resized_dims=np.uint32(2),
        interpolation_mode="NEAREST_NEIGHBOR",
    ),
    one_input(
        "crop_resize",
        COUNTED,
        lambda x: torch.tensor([3.1, 5.2, 10, 10, 10, 7.9, 10, 13.9, 2.2, 3.1, 9.4, 10.3]).reshape(3, 1, 2, 2),
        "normalized",
        boxes=BOXES,
        box_indices=np.zeros(3, np.int32),
        target_height=2,
        target_width=2,
        normalized_coordinates=True,
        sampling_mode="ALIGN_CORNERS",
        pad_value=np.float32(10.0),
    ),
    one_input(
        "crop_resize",
        SMALL[:1],
        lambda x: from_grid(x, [1.0, 2.0, 3.0], [0.5, 2.5, 4.5]),
        "centre",
        boxes=np.array([[2.5, 2.0, 4.0, 2.0]], np.float32),
        target_height=3,
        target_width=3,
        box_coordinate_mode="CENTER_SIZE_WIDTH_FIRST",
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
    one_input(
        "crop_resize",
        SMALL[:1],
        lambda x: from_grid(x, [1.5, 2.5], [1.0, 3.0])[None],
        "regions",
        release="iOS16",
        roi=np.array([0, 1, 0, 3, 4], np.float32).reshape(1, 1, 5, 1, 1),
        target_height=2,
        target_width=2,
        sampling_mode="OFFSET_CORNERS",
    ),
    Case(
        "resample",
        {"x": SMALL, "c": GRID},
        lambda mb, x, c: mb.resample(
            x=x,
            coordinates=c,
            sampling_mode="bilinear",
            padding_mode="border",
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=False,
        ),
        lambda x, c: F.grid_sample(x, c, padding_mode="border", align_corners=False),
    ),
    Case(
        "resample",
        {"x": SMALL, "c": (GRID + 1.2) * 2},
        lambda mb, x, c: mb.resample(
            x=x,
            coordinates=c,
            sampling_mode="nearest",
            padding_mode="constant",
            padding_value=np.float32(0),
            coordinates_mode="unnormalized",
            align_corners=True,
        ),
        lambda x, c: F.grid_sample(x, 2 * c / torch.tensor([6.0, 4.0]) - 1, "nearest", align_corners=True),
        label="pixels",
    ),
    one_input(
        "affine",
        SMALL,
        lambda x: F.grid_sample(
            x,
            F.affine_grid(torch.from_numpy(TURN).reshape(1, 2, 3).expand(2, 2, 3), [2, 3, 4, 6], align_corners=True),
            align_corners=True,
        ),
        "",
        transform_matrix=TURN,
        output_height=4,
        output_width=6,
        sampling_mode="bilinear",
        padding_mode="constant",
        padding_value=np.float32(0),
        coordinates_mode="normalized_minus_one_to_one",
        align_corners=True,
    ),
]

CASES = [*SHAPES, *MADE, *INDEXED, *IMAGES]
