from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.flow.matching import Fit, Fits, best_snr, fit, owners, profile


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_the_order_of_the_axes_does_not_matter(order):
    layer = values(2, 3, 4, 5)
    assert fit("t", layer, layer.transpose(0, *order)).snr_db == 999


@pytest.mark.parametrize("shape", [(2, 1, 3, 20), (2, 60), (2, 3, 4, 5, 1), (2, 12, 5)])
def test_axes_of_one_and_reshapes_do_not_matter(shape):
    layer = values(2, 3, 4, 5)
    assert fit("t", layer, layer.reshape(shape)).cosine == 1.0


def test_a_flattened_layer_is_found_in_either_layout():
    layer = values(2, 3, 4, 4)
    flattened = layer.transpose(0, 2, 3, 1).reshape(2, -1)
    assert fit("t", layer, flattened).snr_db == 999
    assert fit("t", flattened, layer).snr_db == 999


def test_examples_are_never_exchanged():
    layer = values(2, 6)
    assert fit("t", layer, layer[::-1]).snr_db < 3


@pytest.mark.parametrize("scale, snr", [(0.1, 20), (0.01, 40)])
def test_noise_is_told_in_decibels(scale, snr):
    layer = values(2, 8, 6, 6)
    noisy = layer + scale * values(2, 8, 6, 6, seed=1)
    assert fit("t", layer, noisy.transpose(0, 2, 3, 1)).snr_db == pytest.approx(snr, abs=1)


def test_a_tensor_that_is_not_finite_is_no_layer():
    broken = values(2, 6)
    broken[0, 0] = np.nan
    assert fit("t", values(2, 6), broken).snr_db == -999
    assert best_snr(profile(values(2, 6)), profile(broken)) == -999


@given(st.integers(0, 2**32 - 1), st.floats(0, 10))
def test_no_arrangement_is_better_than_the_profiles_allow(seed, scale):
    layer, noise = values(2, 3, 4, seed=seed), values(2, 3, 4, seed=seed + 1)
    tensor = (layer + scale * noise).transpose(0, 2, 1)
    assert fit("t", layer, tensor).snr_db <= best_snr(profile(layer), profile(tensor)) + 1e-6


@pytest.mark.parametrize(
    ("value", "telling"),
    [(np.zeros((1, 8)), False), (np.full((1, 8), 3.0), False), (np.ones((1, 1)), False), (values(1, 8), True)],
)
def test_values_that_are_all_alike_tell_nothing(value, telling):
    assert profile(value).telling is telling


def test_all_tensors_that_are_a_layer_are_found_the_best_first():
    layer = values(2, 3, 4)
    tensors = {
        "other": values(2, 3, 4, seed=5),
        "close": layer + 0.001 * values(2, 3, 4, seed=1),
        "turned": layer.transpose(0, 2, 1),
        "small": values(2, 3),
    }
    found = Fits(tensors).at_least(layer, profile(layer), 40)
    assert [each.tensor for each in found] == ["turned", "close"]


def test_the_closest_of_some_tensors_is_found_and_of_wrong_ones_the_first():
    layer = values(2, 3, 4)
    near, far, farther = layer + 0.3 * values(2, 3, 4, seed=1), values(2, 3, 4, seed=2), -layer
    fits = Fits({"far": far, "near": near, "farther": farther})
    assert fits.best(layer, profile(layer), ["far", "near"]).tensor == "near"
    assert fits.best(layer, profile(layer), ["farther", "far"]).tensor == "far"
    assert fits.best(layer, profile(layer), []) is None


def test_a_tensor_belongs_to_the_layer_that_it_is_best():
    found = {
        "block": [Fit("copy_of_x", 12.0, 0.97), Fit("block", 25.0, 0.999)],
        "x": [Fit("copy_of_x", 30.0, 0.999), Fit("block", 12.0, 0.97)],
        "twin": [Fit("copy_of_x", 28.0, 0.999)],
    }
    kept = owners(found, ceiling_db=50.0)
    assert {key: [each.tensor for each in fits] for key, fits in kept.items()} == {
        "block": ["block"],
        "x": ["copy_of_x"],
        "twin": ["copy_of_x"],
    }
    assert [each.tensor for each in owners(found, ceiling_db=12.0)["block"]] == ["copy_of_x", "block"]
