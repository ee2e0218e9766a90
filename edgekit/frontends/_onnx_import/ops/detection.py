"""Sampling at places that the network itself computes: regions of interest, deformable convolution."""

from __future__ import annotations

import math

from edgekit.frontends._onnx_import.call import Call, is_known
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import F, Value, torch
from edgekit.frontends._onnx_import.registry import handles
from edgekit.frontends._onnx_import.window import Window, window_of

_IMAGE = 4


@handles("RoiAlign", since=10)
def roi_align(call: Call, x: Value, rois: Value, batch_indices: Value) -> Value:
    """Regions resampled to one size: two small matrices for each region, by rows and by columns."""
    if call.attr("mode", "avg") != "avg":
        raise Refused("its mode is 'max'; only 'avg' can be imported")
    height, width = call.attr("output_height", 1), call.attr("output_width", 1)
    # Before opset 16 there was no choice, and no shift by half a pixel.
    aligned = call.attr("coordinate_transformation_mode", "half_pixel" if call.opset >= 16 else "") == "half_pixel"
    corners = rois * call.attr("spatial_scale", 1.0) - (0.5 if aligned else 0.0)
    x1, y1, x2, y2 = (torch.select(corners, 1, i) for i in range(4))
    rows = _region_matrix(call, y1, y2, height, x.shape[2], aligned)
    columns = _region_matrix(call, x1, x2, width, x.shape[3], aligned)
    images = torch.index_select(x, 0, batch_indices.to(torch.int64))
    return torch.matmul(
        torch.matmul(torch.unsqueeze(rows, 1), images), torch.transpose(torch.unsqueeze(columns, 1), 2, 3)
    )


def _region_matrix(call: Call, start: Value, end: Value, bins: int, size: int, aligned: bool) -> Value:
    """Weights (regions, bins, size) of the mean of bilinear samples in each bin of an axis."""
    extent = end - start if aligned else torch.clamp(end - start, min=1.0)
    samples = call.attr("sampling_ratio", 0)
    if samples == 0:
        if not is_known(extent):
            raise Refused("its sampling_ratio is 0: the number of samples depends on the size of each region")
        counts = {math.ceil(e / bins) for e in extent.tolist()}
        if len(counts) != 1:
            raise Refused("its sampling_ratio is 0 and its regions differ in size")
        samples = counts.pop()
    at = (torch.arange(bins * samples, dtype=torch.float32) + 0.5) / (bins * samples)
    places = start.reshape(-1, 1) + extent.reshape(-1, 1) * at
    inside = (places >= -1.0) & (places <= float(size))
    places = torch.unsqueeze(torch.clamp(places, 0.0, float(size - 1)), -1)
    weights = torch.relu(1.0 - torch.abs(places - torch.arange(size, dtype=torch.float32)))
    weights = weights * torch.unsqueeze(inside, -1).to(torch.float32)
    return torch.mean(weights.reshape((start.shape[0], bins, samples, size)), 2)


@handles("DeformConv", since=19)
def deform_conv(call: Call, x: Value, weight: Value, offset: Value, bias: Value = None, mask: Value = None) -> Value:
    """Convolution whose taps move: each is sampled from the image, then weighted."""
    if x.ndim != _IMAGE:
        raise Refused(f"it convolves over {x.ndim - 2} axes; only images can be imported")
    if 1 in x.shape[2:]:
        raise Refused("its image is one pixel wide or high, where torch's sampling cannot tell inside from outside")
    window = window_of(call, tuple(weight.shape[2:]), x.shape[2:])
    groups, offset_groups = call.attr("group", 1), call.attr("offset_group", 1)
    taps = window.kernel[0] * window.kernel[1]
    moves = offset.reshape((x.shape[0], offset_groups, taps, 2, *offset.shape[2:]))
    masks = None if mask is None else mask.reshape((x.shape[0], offset_groups, taps, *mask.shape[2:]))
    channels = torch.chunk(x, offset_groups, 1)
    parts = []
    for group, image in enumerate(channels):
        sampled = []
        for tap in range(taps):
            value = _sampled(image, moves[:, group, tap], window, tap)
            sampled.append(value if masks is None else value * torch.unsqueeze(masks[:, group, tap], 1))
        parts.append(torch.stack(sampled, 2))
    columns = torch.cat(parts, 1)
    batch, _, _, height, width = columns.shape
    columns = columns.reshape((batch, groups, -1, height * width))
    kernels = weight.reshape((1, groups, weight.shape[0] // groups, -1))
    y = torch.matmul(kernels, columns).reshape((batch, weight.shape[0], height, width))
    return y if bias is None else y + bias.reshape((1, -1, 1, 1))


def _sampled(image: Value, moves: Value, window: Window, tap: int) -> Value:
    """The image at one tap of each window, moved by `moves` (batch, 2, height, width)."""
    column = tap % window.kernel[1], tap // window.kernel[1]
    normalized = []
    # grid_sample wants x before y, in -1 … 1 from the centre of the first pixel to that of the last.
    for axis, index in ((1, column[0]), (0, column[1])):
        count, size = moves.shape[2 + axis], image.shape[2 + axis]
        base = torch.arange(count) * window.strides[axis] - window.before[axis] + index * window.dilations[axis]
        base = base.to(torch.float32).reshape((1, -1) if axis else (-1, 1))
        places = torch.select(moves, 1, axis) + base
        normalized.append(places * (2.0 / max(size - 1, 1)) - 1.0)
    grid = torch.stack(normalized, -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
