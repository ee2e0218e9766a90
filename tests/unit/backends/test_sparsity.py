"""Arrays that are mostly one value, in pieces; and what rounding and palettes do to pruned weights."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.backends import _sparsity
from edgekit.backends._mil.compressed import palettized
from edgekit.backends._openvino.grids import palette as openvino_palette
from edgekit.backends._quantize import levels
from edgekit.backends._quantize.rounding import compensated

RNG = np.random.default_rng(3)


def with_zeros(shape: tuple[int, ...], share: float, dtype: str = "float32") -> np.ndarray:
    values = np.round(RNG.normal(size=shape) * 40).clip(-127, 127)
    return np.where(RNG.random(shape) < share, 0, values).astype(dtype)


def from_mask(one: _sparsity.Sparse) -> np.ndarray:
    bits = np.unpackbits(one.mask(), count=one.size)
    flat = np.full(one.size, one.fill)
    flat[bits == 1] = one.values
    return flat.reshape(one.shape)


def from_gaps(one: _sparsity.Sparse) -> np.ndarray:
    gaps, values = one.gaps()
    flat = np.full(one.size, one.fill)
    flat[np.cumsum(gaps.astype(np.int64))] = values
    return flat.reshape(one.shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("share", [0.55, 0.9, 0.999])
def test_both_forms_give_the_array_back(dtype, share):
    array = with_zeros((37, 53), share, dtype)
    one = _sparsity.sparse(array)
    assert one is not None
    for back in (from_mask(one), from_gaps(one)):
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)


@pytest.mark.parametrize("places", [[0], [999], [0, 255, 510, 766], [256, 999], []])
def test_distances_longer_than_a_byte_are_gone_in_steps(places):
    array = np.zeros(1000, np.float32)
    array[places] = 1.5
    one = _sparsity.sparse(array)
    assert one is not None
    assert np.array_equal(from_gaps(one), array)
    assert np.array_equal(from_mask(one), array)


def test_the_most_frequent_byte_need_not_be_zero():
    array = np.where(RNG.random(4000) < 0.8, 136, RNG.integers(0, 256, 4000)).astype(np.uint8)
    one = _sparsity.sparse(array)
    assert one is not None
    assert one.fill == 136
    assert np.array_equal(from_mask(one), array)


def test_negative_zeros_are_zeros():
    array = np.array([-0.0, 0.0, -0.0, 2.0], np.float32)
    one = _sparsity.sparse(array)
    assert one is not None
    assert len(one.values) == 1
    assert not np.signbit(from_mask(one)[:3]).any()


def test_fewer_than_half_is_not_sparse():
    assert _sparsity.sparse(with_zeros((50, 50), 0.4)) is None
    assert _sparsity.sparse(np.zeros((50, 50), np.int32)) is None


def test_rounding_for_data_leaves_pruned_weights_zero_and_makes_good_by_the_others():
    weights = with_zeros((24, 48), 0.8, "float64") / 40
    data = RNG.normal(size=(500, 12)) @ RNG.normal(size=(12, 48))
    moment = data.T @ data / len(data)

    def nearest(column: np.ndarray, _: int) -> np.ndarray:
        return np.round(column * 4) / 4

    found = compensated(weights, moment, nearest)
    plain = nearest(weights, 0)
    assert not found[weights == 0].any()
    assert np.square(data @ (found - weights).T).sum() < 0.9 * np.square(data @ (plain - weights).T).sum()


def test_the_same_rounding_on_codes_leaves_them_zero():
    weights = with_zeros((24, 48), 0.8, "float64") / 40
    data = RNG.normal(size=(500, 48))
    book = levels.even(weights, 7)
    codes = levels.rounded_codes(weights, book, data.T @ data / len(data))
    assert not book.values(codes)[weights == 0].any()


def test_palettes_of_pruned_weights_have_a_zero_and_spend_the_rest_on_the_others():
    weights = with_zeros((32, 64), 0.9, "float64") / 40
    book = levels.palette(weights, 4)
    onnx = book.values(book.codes(weights))
    openvino = openvino_palette(weights, 4).values()
    coreml = palettized(weights.astype(np.float32), 0, 4, grouped=True).dense()
    scale = np.square(weights).sum()
    for found in (onnx, openvino, coreml):
        assert not found[weights == 0].any()
        assert np.square(found - weights).sum() < 0.02 * scale
