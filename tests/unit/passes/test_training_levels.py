from __future__ import annotations

import itertools

import pytest
import torch

from edgekit.passes._training.fake_quantize import activation_grid, weight_grid
from edgekit.passes._training.levels import BITS, fitted_range, fitted_scale, levels_of, nearest
from edgekit.passes._training.optimizers import factor


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_symmetric_evenly_spaced_and_no_more_than_the_bits_can_tell_apart(bits):
    levels = levels_of(bits)
    assert len(levels) <= 2**bits
    assert levels == tuple(-level for level in reversed(levels))
    assert len({b - a for a, b in itertools.pairwise(levels)}) == 1


@pytest.mark.parametrize("bits", BITS)
def test_nearest_is_the_nearest_level(bits):
    torch.manual_seed(0)
    values, levels = torch.randn(500) * 4, torch.tensor(levels_of(bits))
    apart = (values[:, None] - levels).abs()
    torch.testing.assert_close((values - nearest(values, levels_of(bits))).abs(), apart.min(1).values)
    assert set(nearest(values, levels_of(bits)).tolist()) <= set(levels_of(bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_fitted_scale_errs_less_than_any_near_it(bits, axis):
    torch.manual_seed(1)
    weight = torch.randn(6, 5, 8, 8)
    levels, others = levels_of(bits), [d for d in range(4) if d != axis]
    scale = fitted_scale(weight, levels, axis)
    assert scale.shape == torch.Size([weight.shape[d] if d == axis else 1 for d in range(4)])

    def error(by):
        return (nearest(weight / by, levels) * by - weight).square().sum(dim=others)

    reach = weight.abs().amax(dim=others, keepdim=True) / levels[-1]
    for share in (0.3, 0.5, 0.75, 1.0):
        assert (error(scale) <= error(reach * share) * 1.05).all()


def test_a_channel_of_zeros_gets_a_scale_above_zero():
    weight = torch.zeros(2, 3)
    weight[1] = 1.0
    for bits in BITS:
        scale = fitted_scale(weight, levels_of(bits), 0)
        assert (scale > 0).all()
        assert (nearest(weight / scale, levels_of(bits)) * scale)[0].abs().max() < 1e-6


def test_the_range_of_a_relu_starts_at_zero_and_an_outlier_is_cut_off():
    torch.manual_seed(2)
    samples = torch.randn(4000).relu()
    scale, zero = fitted_range(samples, 0.0, 40.0, 8)
    assert zero == 0
    assert float(samples.max()) * 0.8 < 255 * scale < 8.0
    scale, zero = fitted_range(samples - 1.0, -1.0, float(samples.max()) - 1.0, 8)
    assert 0 < zero < 255
    assert -zero * scale == pytest.approx(-1.0, abs=0.1)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_pass_the_rounding_inside_the_grid_and_reach_the_step(bits):
    torch.manual_seed(3)
    weight = torch.randn(4, 30, requires_grad=True)
    grid = weight_grid()(weight, bits, 0)
    out = grid(weight)
    levels, scale = grid.on_grid(weight)
    assert torch.equal(out, levels * scale), "training and what is kept are not the same to the bit"
    direction = torch.randn_like(out)
    (out * direction).sum().backward()
    inside = (weight / scale).abs() <= levels_of(bits)[-1] if bits > 1 else torch.ones_like(weight, dtype=torch.bool)
    torch.testing.assert_close(weight.grad, torch.where(inside, direction, torch.zeros(())))
    if bits == 1:
        assert grid.log_step.grad is None
        return
    # Esser et al. 2020, equation 3, times the step for its logarithm and the factor of section 2.2.
    by_step = torch.where(inside, levels - weight / scale, levels)
    expected = (by_step * direction).sum(1, keepdim=True) * scale / (30 * levels_of(bits)[-1]) ** 0.5
    torch.testing.assert_close(grid.log_step.grad, expected.detach(), rtol=1e-4, atol=1e-5)


def test_an_activation_passes_until_it_is_fitted_and_then_lies_on_256_levels_with_zero_among_them():
    torch.manual_seed(4)
    values = torch.randn(50, 20)
    grid = activation_grid()(8)
    assert grid.range() is None
    assert torch.equal(grid(values), values)
    grid.observing = True
    assert torch.equal(grid(values), values)
    grid.observing = False
    grid.fit()
    rounded = grid(values).detach()
    low, high = grid.range()
    assert low < -2 < 2 < high
    assert rounded.unique().numel() <= 256
    assert grid(torch.zeros(1)).tolist() == [0.0]
    assert float((rounded - values).abs().max()) < 0.5
    assert (
        float((grid(values.clamp(low, high)).detach() - values.clamp(low, high)).abs().max())
        <= (high - low) / 255 * 0.51
    )
    grid(values).sum().backward()
    assert grid.log_step.grad is not None


def test_integers_are_not_rounded():
    grid = activation_grid()(8)
    grid.observing = True
    assert grid(torch.arange(5)).dtype == torch.int64
    grid.fit()
    assert grid.range() is None


def test_learning_rates_follow_their_schedule():
    assert [factor("constant", at, 4, 0) for at in (0.0, 2.0, 4.0)] == [1.0, 1.0, 1.0]
    assert [factor("linear", at, 4, 0) for at in (0.0, 1.0, 4.0)] == [1.0, 0.75, 0.0]
    assert factor("cosine", 2.0, 4, 0) == pytest.approx(0.5)
    assert factor("cosine", 0.5, 4, 1.0) == 0.5
    assert factor("linear", 1.0, 4, 1.0) == 1.0
    cycle = [factor("one_cycle", at, 10, 0) for at in (0.0, 1.5, 3.0, 6.5, 10.0)]
    assert cycle[2] == max(cycle) == 1.0
    assert cycle[0] == pytest.approx(0.04)
    assert cycle[4] < 1e-5
