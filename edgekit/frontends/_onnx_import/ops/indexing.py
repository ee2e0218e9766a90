"""Gather, scatter and what else picks elements by index."""

from __future__ import annotations

import math
from typing import Any

from edgekit.frontends._onnx_import.call import Call, axis_of, is_known
from edgekit.frontends._onnx_import.dtypes import WIDE_UNSIGNED
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import Value, nn, torch
from edgekit.frontends._onnx_import.registry import handles, refuse

refuse(
    "the shape of its result depends on the data, and every shape has to be static",
    "NonZero",
    "Unique",
)

_MATRIX = 2
_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def from_front(indices: Value, size: int) -> Value:
    """Indices as int64, negative ones counted from the front."""
    if is_known(indices):
        indices = indices.to(torch.int64)
        return torch.where(indices < 0, indices + size, indices)
    indices = indices if indices.dtype == torch.int64 else indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@handles("Gather")
def gather(call: Call, data: Value, indices: Value) -> Value:
    """Slices of `data`; from a constant table it is an embedding.

    An embedding's indices are taken to be non-negative, as those of every tokenizer are.
    """
    axis = axis_of(call.attr("axis", 0), data.ndim)
    if is_known(data) and not is_known(indices) and data.ndim == _MATRIX and axis == 0 and data.is_floating_point():
        table = nn.Embedding.from_pretrained(data.contiguous(), freeze=False)
        return call.module(table, indices if indices.dtype in (torch.int32, torch.int64) else indices.to(torch.int64))
    indices = from_front(indices, data.shape[axis])
    if is_known(indices) and indices.ndim == 0:
        return torch.select(data, axis, int(indices))
    picked = torch.index_select(data, axis, indices.reshape(-1))
    return picked.reshape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))


@handles("GatherElements")
def gather_elements(call: Call, data: Value, indices: Value) -> Value:
    """One element for each index."""
    axis = axis_of(call.attr("axis", 0), data.ndim)
    return torch.gather(data, axis, from_front(indices, data.shape[axis]))


@handles("GatherND")
def gather_nd(call: Call, data: Value, indices: Value) -> Value:
    """Slices addressed by several axes at once."""
    batch = call.attr("batch_dims", 0)
    depth = indices.shape[-1]
    lead, inner = data.shape[:batch], data.shape[batch + depth :]
    flat = flat_index(indices, data.shape[batch : batch + depth])
    rows = math.prod(data.shape[batch : batch + depth])
    if batch:
        start = (torch.arange(math.prod(lead)) * rows).reshape((*lead, *[1] * (flat.ndim - batch)))
        flat = flat + start
    table = data.reshape((math.prod(lead) * rows, math.prod(inner)))
    return torch.index_select(table, 0, flat.reshape(-1)).reshape((*indices.shape[:-1], *inner))


def flat_index(indices: Value, sizes: tuple[int, ...]) -> Value:
    """Index tuples along the last axis as positions in the flattened axes of `sizes`."""
    flat: Any = 0
    for k, size in enumerate(sizes):
        flat = flat * size + from_front(torch.select(indices, -1, k), size)
    return flat


@handles("ScatterElements", "Scatter")
def scatter_elements(call: Call, data: Value, indices: Value, updates: Value) -> Value:
    """Elements written, or combined with those that are there."""
    axis = axis_of(call.attr("axis", 0), data.ndim)
    indices = from_front(indices, data.shape[axis])
    reduction = call.attr("reduction", "none")
    if reduction == "none":
        return torch.scatter(data, axis, indices, updates)
    return torch.scatter_reduce(data, axis, indices, updates, _REDUCE[reduction])


@handles("ScatterND")
def scatter_nd(call: Call, data: Value, indices: Value, updates: Value) -> Value:
    """Slices written, or combined with those that are there."""
    depth = indices.shape[-1]
    inner = math.prod(data.shape[depth:])
    rows = math.prod(data.shape[:depth])
    flat = flat_index(indices, tuple(data.shape[:depth])).reshape(-1, 1).expand(-1, inner)
    table, new = data.reshape((rows, inner)), updates.reshape((-1, inner))
    reduction = call.attr("reduction", "none")
    if reduction == "none":
        result = torch.scatter(table, 0, flat, new)
    else:
        result = torch.scatter_reduce(table, 0, flat, new, _REDUCE[reduction])
    return result.reshape(tuple(data.shape))


@handles("TensorScatter")
def tensor_scatter(call: Call, cache: Value, update: Value, start: Value = None) -> Value:
    """New entries of a cache, written behind those of each batch item."""
    axis = axis_of(call.attr("axis", -2), cache.ndim)
    length = update.shape[axis]
    places = torch.arange(length)
    places = places.reshape([-1 if i == axis else 1 for i in range(cache.ndim)])
    if start is not None:
        places = start.to(torch.int64).reshape([-1] + [1] * (cache.ndim - 1)) + places
    if call.attr("mode", "linear") == "circular":
        places = torch.remainder(places, cache.shape[axis])
    return torch.scatter(cache, axis, places.expand(tuple(update.shape)), update)


@handles("OneHot", since=9)
def one_hot(call: Call, indices: Value, depth: Value, values: Value) -> Value:
    """The second value at each index along a new axis, the first elsewhere."""
    count = int(call.known(1).reshape(-1)[0].item())
    axis = axis_of(call.attr("axis", -1), indices.ndim + 1)
    index = torch.unsqueeze(from_front(indices, count), axis)
    places = torch.arange(count).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    return torch.where(index == places, torch.select(values, 0, 1), torch.select(values, 0, 0))


@handles("TopK", since=10)
def top_k(call: Call, x: Value, count: Value) -> tuple[Value, ...]:
    """The largest or smallest, and where they were."""
    k = call.known_int(1) or 0
    largest = bool(call.attr("largest", 1))
    if x.dtype in WIDE_UNSIGNED:
        values, indices = top_k(call, x.to(torch.int64), count)
        return values.to(x.dtype), indices
    return tuple(torch.topk(x, k, dim=call.attr("axis", -1), largest=largest, sorted=bool(call.attr("sorted", 1))))


@handles("Compress", since=9)
def compress(call: Call, x: Value, condition: Value) -> Value:
    """The slices where a known condition is true."""
    places = torch.nonzero(call.known(1).reshape(-1)).reshape(-1)
    if "axis" not in call.attributes:
        return torch.index_select(x.reshape(-1), 0, places)
    return torch.index_select(x, axis_of(call.attr("axis"), x.ndim), places)


@handles("ReverseSequence")
def reverse_sequence(call: Call, x: Value, lengths: Value) -> Value:
    """Each batch item's first `lengths` steps, backwards."""
    batch, time = call.attr("batch_axis", 1), call.attr("time_axis", 0)
    steps = torch.arange(x.shape[time]).reshape([-1 if i == time else 1 for i in range(x.ndim)])
    ends = lengths.to(torch.int64).reshape([-1 if i == batch else 1 for i in range(x.ndim)])
    source = torch.where(steps < ends, ends - 1 - steps, steps)
    return torch.gather(x, time, source.expand(tuple(x.shape)))


@handles("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(call: Call, x: Value, indices: Value) -> Value:
    """Columns of the last axis."""
    return torch.index_select(x, -1, indices.reshape(-1).to(torch.int64))


@handles("MaxUnpool")
def max_unpool(call: Call, x: Value, indices: Value, output_shape: Value = None) -> Value:
    """Pooled values back at the places they came from."""
    kernel, spatial = call.attr("kernel_shape"), x.ndim - 2
    strides, pads = call.attr("strides", [1] * spatial), call.attr("pads", [0] * 2 * spatial)
    inferred = [(x.shape[i + 2] - 1) * strides[i] + kernel[i] - pads[i] - pads[i + spatial] for i in range(spatial)]
    shape = call.known_ints(2) or [x.shape[0], x.shape[1], *inferred]
    if math.prod(shape) < x.numel():
        raise Refused(f"its output shape {shape} is smaller than its input")
    # Indices count in the shape that the pooling saw; a larger output shape only adds room at the ends.
    source = [x.shape[0], x.shape[1], *inferred]
    flat = torch.scatter(torch.zeros(math.prod(source), dtype=x.dtype), 0, indices.reshape(-1), x.reshape(-1))
    pads_after = [n for have, want in zip(reversed(source), reversed(shape), strict=True) for n in (0, want - have)]
    return nn.functional.pad(flat.reshape(source), pads_after)
