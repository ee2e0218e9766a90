"""Tensors without their zeros, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.backends._litert import sparsity
from edgekit.backends._litert.sparsity import Layout, encode, smallest


def weights(shape, share, dtype="float32", block=1, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.integers(1, 100, shape).astype(dtype)
    flat = values.reshape(-1, block)
    flat[generator.random(len(flat)) < share] = 0
    return values


def layouts(shape):
    """Every block and every axis as the sparse one."""
    return [Layout(axis, blocks) for blocks in sparsity._blocks(shape) for axis in range(len(shape))]


def decode(sparse):
    """The tensor with its zeros, as the runtime's DENSIFY makes it."""
    rank, sizes = len(sparse.shape), dict(sparse.layout.blocks)
    order = [axis for axis in range(rank) if axis != sparse.layout.sparse] + [sparse.layout.sparse]
    outer = [sparse.shape[axis] // sizes.get(axis, 1) for axis in order]
    rows = np.zeros((math.prod(outer[:-1]), outer[-1], math.prod(sizes.values())), sparse.values.dtype)
    counts = np.diff(sparse.segments.astype(np.int64))
    rows[np.repeat(np.arange(len(counts)), counts), sparse.indices] = sparse.values
    moved = rows.reshape(*outer, *sizes.values())
    places = {axis: place for place, axis in enumerate(order)} | {
        rank + axis: rank + place for place, axis in enumerate(sizes)
    }
    axes = [places[axis] for own in range(rank) for axis in (own, rank + own) if axis in places]
    return np.ascontiguousarray(moved.transpose(axes).reshape(sparse.shape))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("shape", [(8, 12), (16, 1, 1, 8), (8, 3, 3, 4), (1, 3, 3, 16), (300, 5), (4, 70000)])
def test_what_is_left_out_comes_back(shape, dtype):
    values = weights(shape, 0.9, dtype)
    found = smallest(values) or encode(values, Layout(0))
    np.testing.assert_array_equal(decode(found), values)


@pytest.mark.parametrize("layout", layouts((8, 3, 3, 16)))
def test_every_layout_keeps_every_weight(layout):
    values = weights((8, 3, 3, 16), 0.7)
    np.testing.assert_array_equal(decode(encode(values, layout)), values)


@pytest.mark.parametrize("layout", layouts((16, 32)))
def test_the_size_is_known_before_it_is_made(layout):
    values = weights((16, 32), 0.8)
    assert dict(sparsity._sizes(values, layout.blocks))[layout] == encode(values, layout).nbytes


def test_rows_are_compressed_as_the_format_says():
    found = encode(np.array([[0, 7, 0, 0], [5, 0, 0, 8], [0, 0, 0, 0], [0, 0, 6, 0]], np.float32), Layout(1))
    assert found.values.ravel().tolist() == [7, 5, 8, 6]
    assert found.segments.tolist() == [0, 1, 3, 3, 4]
    assert found.indices.tolist() == [1, 0, 3, 2]


def test_numbers_take_as_few_bytes_as_they_can():
    found = encode(weights((128, 784), 0.9), Layout(0))
    assert (found.indices.dtype, found.segments.dtype) == (np.uint8, np.uint16)


def test_blocks_are_found_along_either_axis():
    along = smallest(weights((64, 64), 0.9, block=4))
    across = smallest(np.ascontiguousarray(weights((64, 64), 0.9, block=4).T))
    assert (along.layout.blocks, across.layout.blocks) == (((1, 4),), ((0, 4),))


@pytest.mark.parametrize(("dtype", "share"), [("float32", 0.15), ("float16", 0.3), ("int8", 0.45)])
def test_few_zeros_are_not_worth_their_places(dtype, share):
    assert smallest(weights((64, 64), share, dtype)) is None
