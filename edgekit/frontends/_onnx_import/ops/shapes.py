"""Shapes: asking for them, changing them, joining and cutting tensors."""

from __future__ import annotations

import math

from edgekit.frontends._onnx_import.call import Call, axis_of
from edgekit.frontends._onnx_import.dtypes import tensor_from_proto, torch_dtype
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import Value, torch
from edgekit.frontends._onnx_import.registry import handles


@handles("Shape")
def shape(call: Call, x: Value) -> Value:
    """The sizes: known, because every shape is static."""
    sizes = list(x.shape)[call.attr("start", 0) : call.attr("end", None)]
    return torch.tensor(sizes, dtype=torch.int64)


@handles("Size")
def size(call: Call, x: Value) -> Value:
    """The number of elements."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


@handles("Reshape", since=5)
def reshape(call: Call, x: Value, target: Value) -> Value:
    """Another shape of the same elements."""
    wanted = call.known_ints(1) or []
    if not call.attr("allowzero", 0):
        wanted = [x.shape[i] if s == 0 else s for i, s in enumerate(wanted)]
    return torch.reshape(x, batch_free(x, wanted))


def batch_free(x: Value, wanted: list[int]) -> tuple[int, ...]:
    """`wanted` with the batch left open where that changes nothing, so that the module also trains at other batches."""
    if wanted and -1 not in wanted and x.ndim and wanted[0] == x.shape[0] and x.numel() > 0:
        return (-1, *wanted[1:])
    return tuple(wanted)


@handles("Flatten")
def flatten(call: Call, x: Value) -> Value:
    """Two axes: those before `axis`, and the rest."""
    axis = axis_of(call.attr("axis", 1), x.ndim)
    if axis == 1 and x.ndim > 1:
        return torch.flatten(x, 1)
    return torch.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@handles("Squeeze")
def squeeze(call: Call, x: Value, axes_operand: Value = None) -> Value:
    """Without axes of size 1."""
    axes = call.ints("axes", 1)
    if axes is None:
        axes = [i for i, s in enumerate(x.shape) if s == 1]
    for axis in axes:
        if x.shape[axis] != 1:
            raise Refused(f"it squeezes axis {axis} of size {x.shape[axis]}")
    return torch.squeeze(x, tuple(axes)) if axes else x


@handles("Unsqueeze")
def unsqueeze(call: Call, x: Value, axes_operand: Value = None) -> Value:
    """With new axes of size 1."""
    axes = call.ints("axes", 1) or []
    ndim = x.ndim + len(axes)
    for axis in sorted(axis_of(a, ndim) for a in axes):
        x = torch.unsqueeze(x, axis)
    return x


@handles("Transpose")
def transpose(call: Call, x: Value) -> Value:
    """Axes in another order."""
    return torch.permute(x, tuple(call.attr("perm", list(reversed(range(x.ndim))))))


@handles("Expand")
def expand(call: Call, x: Value, target: Value) -> Value:
    """Broadcast to a shape."""
    sizes = torch.broadcast_shapes(tuple(x.shape), tuple(call.known_ints(1) or []))
    return x if tuple(sizes) == tuple(x.shape) else x.expand(tuple(sizes))


@handles("Tile", since=6)
def tile(call: Call, x: Value, repeats: Value) -> Value:
    """Repeated along its axes."""
    counts = call.known_ints(1) or []
    return x if all(count == 1 for count in counts) else x.repeat(tuple(counts))


@handles("Concat")
def concat(call: Call, *parts: Value) -> Value:
    """Joined along an axis."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), call.attr("axis"))


@handles("Split")
def split(call: Call, x: Value, sizes_operand: Value = None) -> tuple[Value, ...]:
    """Cut along an axis."""
    axis = axis_of(call.attr("axis", 0), x.ndim)
    sizes = call.ints("split", 1)
    if sizes is None:
        count = call.attr("num_outputs", len(call.outputs))
        step = math.ceil(x.shape[axis] / count)
        sizes = [step] * (count - 1) + [x.shape[axis] - step * (count - 1)]
    return tuple(torch.split(x, sizes, axis))


@handles("Slice", since=10)
def slice_(call: Call, x: Value, starts: Value, ends: Value, axes: Value = None, steps: Value = None) -> Value:
    """A range of indices of some axes, with a step that may be negative."""
    first, last = call.known_ints(1) or [], call.known_ints(2) or []
    along = call.known_ints(3) or list(range(len(first)))
    by = call.known_ints(4) or [1] * len(first)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        x = sliced(x, axis_of(axis, x.ndim), start, end, step)
    return x


def sliced(x: Value, axis: int, start: int, end: int, step: int) -> Value:
    """One axis of a slice; torch has no negative steps."""
    places = range(*slice(start, None if step < 0 and end < -x.shape[axis] else end, step).indices(x.shape[axis]))
    if len(places) == x.shape[axis] and step == 1:
        return x
    if step > 0:
        stop = places.start + max(len(places) * step, 0)
        index = tuple([slice(None)] * axis + [slice(places.start, min(stop, max(x.shape[axis], 0)), step)])
        return x[index]
    if len(places) == x.shape[axis] and step == -1:
        return torch.flip(x, [axis])
    return torch.index_select(x, axis, torch.tensor(list(places), dtype=torch.int64))


@handles("ConstantOfShape")
def constant_of_shape(call: Call, sizes: Value) -> Value:
    """A known shape, filled with one value."""
    value = tensor_from_proto(call.attr("value")) if "value" in call.attributes else torch.zeros(1)
    return value.reshape(-1)[0].expand(tuple(call.known_ints(0) or [])).clone()


@handles("Range")
def range_(call: Call, start: Value, limit: Value, delta: Value) -> Value:
    """Numbers at equal distances: known, because its length is."""
    first, last, step = (call.known(i).reshape(()).to(torch.float64).item() for i in range(3))
    count = max(math.ceil((last - first) / step), 0)
    places = torch.arange(count, dtype=torch.int64 if not start.is_floating_point() else torch.float64)
    return (places * call.known(2).reshape(()).to(places.dtype) + call.known(0).reshape(()).to(places.dtype)).to(
        start.dtype
    )


@handles("DepthToSpace")
def depth_to_space(call: Call, x: Value) -> Value:
    """Blocks of channels become pixels."""
    block = call.attr("blocksize")
    if call.attr("mode", "DCR") == "CRD":
        return torch.pixel_shuffle(x, block)
    _, channels, height, width = x.shape
    x = x.reshape(-1, block, block, channels // block**2, height, width)
    x = torch.permute(x, (0, 3, 4, 1, 5, 2))
    return x.reshape(-1, channels // block**2, height * block, width * block)


@handles("SpaceToDepth")
def space_to_depth(call: Call, x: Value) -> Value:
    """Pixels become blocks of channels."""
    block = call.attr("blocksize")
    _, channels, height, width = x.shape
    if call.attr("mode", "DCR") == "CRD":
        return torch.pixel_unshuffle(x, block)
    x = x.reshape(-1, channels, height // block, block, width // block, block)
    x = torch.permute(x, (0, 3, 5, 1, 2, 4))
    return x.reshape(-1, channels * block**2, height // block, width // block)


@handles("EyeLike")
def eye_like(call: Call, x: Value) -> Value:
    """Ones on a diagonal: known, because the shape is."""
    dtype = torch_dtype(call.attr("dtype")) if "dtype" in call.attributes else x.dtype
    offset = call.attr("k", 0)
    rows = torch.arange(x.shape[0]).reshape(-1, 1)
    return (torch.arange(x.shape[1]) - rows == offset).to(dtype)


@handles("Trilu")
def trilu(call: Call, x: Value, offset: Value = None) -> Value:
    """The upper or lower triangle."""
    k = call.known_int(1) or 0
    return torch.triu(x, k) if call.attr("upper", 1) else torch.tril(x, k)


@handles("CenterCropPad")
def center_crop_pad(call: Call, x: Value, target: Value) -> Value:
    """Cropped or padded with zeros about the centre."""
    sizes = call.known_ints(1) or []
    axes = [axis_of(a, x.ndim) for a in call.attr("axes", list(range(x.ndim)))]
    for axis, wanted in zip(axes, sizes, strict=True):
        have = x.shape[axis]
        if wanted < have:
            x = torch.narrow(x, axis, (have - wanted) // 2, wanted)
        elif wanted > have:
            before = (wanted - have) // 2
            pads = [0, 0] * (x.ndim - 1 - axis) + [before, wanted - have - before]
            x = torch.nn.functional.pad(x, pads)
    return x
