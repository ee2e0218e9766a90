"""Pooling. torch's own where it can express the window; otherwise padding is made explicit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from edgekit.frontends._onnx_import.call import Call
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import F, Value, torch
from edgekit.frontends._onnx_import.ops.reductions import limit
from edgekit.frontends._onnx_import.registry import handles
from edgekit.frontends._onnx_import.window import Window, torch_pads, window_of

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _spatial(x: Value) -> int:
    spatial = int(x.ndim) - 2
    if spatial not in _MAX:
        raise Refused(f"it pools over {spatial} axes; torch can do 1 to 3")
    return spatial


@handles("GlobalAveragePool")
def global_average_pool(call: Call, x: Value) -> Value:
    """Mean over all spatial axes."""
    return torch.mean(x, tuple(range(2, x.ndim)), keepdim=True)


@handles("GlobalMaxPool")
def global_max_pool(call: Call, x: Value) -> Value:
    """Maximum over all spatial axes."""
    return torch.amax(x, tuple(range(2, x.ndim)), keepdim=True)


@handles("GlobalLpPool")
def global_lp_pool(call: Call, x: Value) -> Value:
    """p-norm over all spatial axes."""
    p = call.attr("p", 2)
    return torch.sum(torch.abs(x) ** p, tuple(range(2, x.ndim)), keepdim=True) ** (1.0 / p)


@handles("MaxPool")
def max_pool(call: Call, x: Value) -> Any:
    """Maximum of each window, and where it was."""
    spatial = _spatial(x)
    window = window_of(call, call.attr("kernel_shape"), x.shape[2:])
    if not x.is_floating_point():
        # 8-bit integers are exact in float32, and torch pools no integers on every platform.
        values = _max_pool(call, x.to(torch.float32), window, spatial)
        return tuple(v if i else v.to(x.dtype) for i, v in enumerate(values))
    return _max_pool(call, x, window, spatial)


def _max_pool(call: Call, x: Value, window: Window, spatial: int) -> tuple[Value, ...]:
    ceil = bool(call.attr("ceil_mode", 0))
    pool, padding = _MAX[spatial], window.before
    padded = not window.symmetric or any(2 * p > k for p, k in zip(padding, window.kernel, strict=True))
    if call.wants(1):
        if padded:
            raise Refused("it returns indices and pads more at one end; torch counts indices in the padded image")
        options = {"stride": window.strides, "padding": padding, "dilation": window.dilations, "ceil_mode": ceil}
        values, indices = pool(x, window.kernel, return_indices=True, **options)
        return values, _flat_indices(indices, tuple(x.shape), call.attr("storage_order", 0))
    if padded:
        counts = window.outputs(x.shape[2:], ceil)
        x = F.pad(x, window.padding_for(x.shape[2:], counts), value=limit(x.dtype, largest=False))
        padding, ceil = (0,) * spatial, False
    return (pool(x, window.kernel, window.strides, padding, window.dilations, ceil_mode=ceil),)


def _flat_indices(indices: Value, shape: tuple[int, ...], column_major: int) -> Value:
    """Indices within each image as indices into the whole tensor."""
    sizes = shape[2:]
    if column_major:
        rest, strides, result = indices, [math.prod(sizes[:i]) for i in range(len(sizes))], None
        for axis in reversed(range(len(sizes))):
            part = torch.remainder(rest, sizes[axis]) * strides[axis]
            rest = torch.div(rest, sizes[axis], rounding_mode="floor")
            result = part if result is None else result + part
        indices = result
    starts = torch.arange(shape[0] * shape[1]) * math.prod(sizes)
    return indices + starts.reshape((shape[0], shape[1], *[1] * len(sizes)))


@handles("AveragePool")
def average_pool(call: Call, x: Value) -> Value:
    """Mean of each window."""
    spatial = _spatial(x)
    window = window_of(call, call.attr("kernel_shape"), x.shape[2:])
    ceil, count_pad = bool(call.attr("ceil_mode", 0)), bool(call.attr("count_include_pad", 0))
    plain = window.symmetric and set(window.dilations) == {1}
    if plain and all(2 * p <= k for p, k in zip(window.before, window.kernel, strict=True)):
        return _AVERAGE[spatial](x, window.kernel, window.strides, window.before, ceil, count_pad)
    counts = window.outputs(x.shape[2:], ceil)
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if count_pad:
        inside = F.pad(inside, torch_pads(window.before, window.after), value=1.0)
        bare = replace(window, before=(0,) * spatial, after=(0,) * spatial)
        covered = _window_sum(inside, bare, counts)
    else:
        covered = _window_sum(inside, window, counts)
    return _window_sum(x, window, counts) / covered


def _window_sum(x: Value, window: Window, counts: tuple[int, ...]) -> Value:
    """Sum of each window, by a convolution with ones."""
    spatial, shape = len(counts), x.shape
    padded = F.pad(x, window.padding_for(shape[2:], counts))
    single = padded.reshape((shape[0] * shape[1], 1, *padded.shape[2:]))
    ones = torch.ones((1, 1, *window.kernel), dtype=x.dtype)
    summed = _CONV[spatial](single, ones, None, window.strides, 0, window.dilations)
    return summed.reshape((shape[0], shape[1], *counts))


@handles("LpPool")
def lp_pool(call: Call, x: Value) -> Value:
    """p-norm of each window."""
    _spatial(x)
    p = call.attr("p", 2)
    window = window_of(call, call.attr("kernel_shape"), x.shape[2:])
    counts = window.outputs(x.shape[2:], bool(call.attr("ceil_mode", 0)))
    return _window_sum(torch.abs(x) ** p, window, counts) ** (1.0 / p)
