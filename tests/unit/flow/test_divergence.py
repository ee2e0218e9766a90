from __future__ import annotations

import numpy as np

from edgekit.flow.divergence import bisect
from edgekit.flow.layers import Layer
from edgekit.flow.verify import Tolerance

FLOAT = Tolerance(0.99999, 60.0)
EIGHT_BITS = Tolerance(0.95, 10.0)


def values(seed, *shape):
    return np.random.default_rng(seed).normal(size=(2, *(shape or (4, 5, 5)))).astype(np.float32)


def layer(key, value, *inputs, operator="conv2d"):
    return Layer(key, key, operator, inputs, value)


def chain(*names):
    return [layer(name, values(place), *names[place - 1 : place] if place else ()) for place, name in enumerate(names)]


def tensors_of(layers, **changes):
    """Tensors of an artifact that has every layer, in NHWC; a changed one is left out where it is None."""
    found = {each.key: each.value for each in layers} | changes
    return {f"t_{key}": value.transpose(0, 2, 3, 1) for key, value in found.items() if value is not None}


def statuses(bisection):
    return {each.path: each.status for each in bisection.layers}


def test_a_whole_artifact_diverges_nowhere():
    layers = chain("a", "b", "c")
    found = bisect(layers, tensors_of(layers), FLOAT)
    assert found.first is None
    assert set(statuses(found).values()) == {"same"}


def test_layers_that_are_fused_away_are_no_fault():
    layers = chain("conv", "bn", "relu", "head")
    found = bisect(layers, tensors_of(layers, conv=None, bn=None), FLOAT)
    assert found.first is None
    assert statuses(found) == {"conv": "fused", "bn": "fused", "relu": "same", "head": "same"}


def test_the_first_layer_from_which_nothing_is_right_is_named_with_the_last_good_one():
    layers = chain("a", "b", "c", "d")
    noisy = layers[0].value + 1e-4 * values(9)
    found = bisect(layers, tensors_of(layers, a=noisy, b=values(10), c=values(11), d=values(12)), FLOAT)
    assert (found.first.path, found.first.operator, found.first.tensor) == ("b", "conv2d", "t_b")
    assert found.first.last_good == ("a", "conv2d")
    assert 75 < found.first.snr_before_db < 85
    assert found.first.snr_db < 5
    assert found.others == ()


def test_the_very_first_layer_has_no_last_good_one():
    layers = chain("a", "b")
    found = bisect(layers, tensors_of(layers, a=values(10), b=values(11)), FLOAT)
    assert (found.first.path, found.first.last_good, found.first.snr_before_db) == ("a", None, None)


def test_of_layers_fused_into_the_wrong_one_the_first_is_named():
    layers = chain("a", "conv", "bn", "relu", "head")
    found = bisect(layers, tensors_of(layers, conv=None, bn=None, relu=values(10), head=values(11)), FLOAT)
    assert found.first.path == "conv"
    assert found.first.tensor == "t_relu"


def test_a_layer_that_the_artifact_cannot_have_is_passed_over():
    pad = layer("pad", values(1, 4, 7, 7), "a", operator="pad")
    layers = [layer("a", values(0)), pad, layer("conv", values(2), "pad")]
    found = bisect(layers, tensors_of(layers, pad=None, conv=values(10)), FLOAT)
    assert found.first.path == "conv"
    assert found.first.last_good == ("a", "conv2d")
    assert statuses(found)["pad"] == "absent"


def test_an_output_that_is_nowhere_to_be_found_is_a_fault():
    layers = [layer("a", values(0)), layer("head", values(1, 7, 1, 1), "a")]
    found = bisect(layers, tensors_of(layers, head=None), FLOAT)
    assert (found.first.path, found.first.tensor, found.first.snr_db) == ("head", None, None)


def branches():
    """Two branches from one stem, joined."""
    stem = layer("stem", values(0))
    left, right = layer("left", values(1), "stem"), layer("right", values(2), "stem")
    join = layer("join", left.value + right.value, "left", "right", operator="add")
    return [stem, left, right, join, layer("head", values(3), "join")]


def test_a_good_branch_beside_a_bad_one_is_no_confusion():
    layers = branches()
    for bad, good in (("left", "right"), ("right", "left")):
        found = bisect(layers, tensors_of(layers, **{bad: values(10)}, join=values(11), head=values(12)), FLOAT)
        assert found.first.path == bad
        assert statuses(found)[good] == "same"
        assert found.others == ()


def test_two_branches_that_fail_by_themselves_are_both_named():
    layers = branches()
    found = bisect(
        layers, tensors_of(layers, left=values(9), right=values(10), join=values(11), head=values(12)), FLOAT
    )
    assert found.first.path == "left"
    assert found.others == (("right", "conv2d"),)


def test_a_wrong_residual_block_is_not_taken_for_its_input():
    generator = np.random.default_rng(0)
    noise = [0.03 * generator.normal(size=(2, 4, 5, 5)).astype(np.float32) for _ in range(3)]
    x = layer("x", values(0))
    inner = layer("inner", 0.15 * values(1), "x")
    block = layer("block", x.value + inner.value, "x", "inner", operator="add")
    layers = [x, inner, block, layer("head", values(3), "block")]
    assert 20 * np.log10(np.linalg.norm(block.value) / np.linalg.norm(inner.value)) > 10
    tensors = {
        "t_x": x.value + noise[0],
        "t_x_again": x.value + noise[0] + 0.1 * noise[1],
        "t_inner": values(20),
        "t_block": x.value + values(20),
        "t_head": values(21),
    }
    found = bisect(layers, tensors, EIGHT_BITS)
    assert found.first.path == "inner"
    assert statuses(found)["block"] == "diverged"


def test_values_that_are_all_alike_prove_nothing():
    layers = chain("a", "b", "c")
    dead = layer("dead", np.zeros((2, 4, 5, 5), np.float32), "b", operator="relu")
    layers = [*layers[:2], dead, layers[2]]
    tensors = tensors_of(layers, b=values(10), c=values(11))
    found = bisect(layers, tensors, FLOAT)
    assert found.first.path == "b"
    assert statuses(found)["dead"] == "constant"


def test_values_that_are_not_finite_diverge():
    layers = chain("a", "b")
    found = bisect(layers, tensors_of(layers, b=np.full((2, 4, 5, 5), np.nan, np.float32)), FLOAT)
    assert (found.first.path, found.first.snr_db) == ("b", -999.0)


def test_the_layer_at_which_most_is_lost_within_the_tolerance_is_named():
    layers = chain("a", "b", "c")
    noisy = {key: each.value + 1e-3 * values(9) for key, each in zip("bc", layers[1:], strict=True)}
    found = bisect(layers, tensors_of(layers, **noisy), Tolerance(0.999, 40.0))
    assert found.first is None
    assert (found.largest_loss.path, found.largest_loss.until) == ("b", ("b", "conv2d"))
    assert found.largest_loss.snr_db < 65 < found.largest_loss.snr_before_db


def test_a_wrong_layer_that_the_net_hides_is_named_as_the_place_of_the_loss():
    layers = chain("a", "wrong", "saturated", "head")
    changes = {"wrong": values(10), "saturated": None, "head": layers[3].value + 1e-3 * values(9)}
    found = bisect(layers, tensors_of(layers, **changes), Tolerance(0.999, 40.0))
    assert found.first is None
    assert found.largest_loss.path == "wrong"
    assert found.largest_loss.until == ("head", "conv2d")


def test_noise_that_is_the_same_everywhere_is_no_loss():
    layers = chain("a", "b", "c")
    noisy = {each.key: each.value + 1e-2 * values(place) for place, each in enumerate(layers, 20)}
    assert bisect(layers, tensors_of(layers, **noisy), EIGHT_BITS).largest_loss is None
