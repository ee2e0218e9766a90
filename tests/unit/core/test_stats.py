from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core import stats

VALUE = st.floats(1e-3, 1e6, allow_nan=False)
VALUES = st.lists(VALUE, min_size=1, max_size=60)


@given(VALUES, st.floats(0, 100))
def test_a_percentile_is_numpys(values: list[float], q: float) -> None:
    assert stats.percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-9)


@given(VALUES)
def test_a_summary_agrees_with_numpy(values: list[float]) -> None:
    summary = stats.summarize(values)
    assert summary.min == min(values)
    assert summary.max == max(values)
    assert summary.mean == pytest.approx(float(np.mean(values)))
    assert summary.p50 == pytest.approx(float(np.median(values)))
    if len(values) > 1:
        assert summary.std == pytest.approx(float(np.std(values, ddof=1)), rel=1e-6, abs=1e-9)
        assert summary.cv == pytest.approx(float(np.std(values, ddof=1) / np.mean(values)), rel=1e-6, abs=1e-9)


@given(VALUES)
def test_the_median_absolute_deviation_agrees_with_numpy(values: list[float]) -> None:
    expected = float(np.median(np.abs(np.array(values) - np.median(values))))
    assert stats.mad(values) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(VALUES, st.floats(0.1, 50))
def test_outliers_do_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    # A power of two scales exactly: nothing moves over the threshold by rounding.
    scale = 2.0 ** round(math.log2(factor))
    assert stats.outliers(values) == stats.outliers([value * scale for value in values])


def test_one_sample_has_no_spread() -> None:
    summary = stats.summarize([3.0])
    assert (summary.std, summary.cv, summary.p99) == (None, None, 3.0)


def test_a_mean_of_zero_has_no_relative_spread() -> None:
    assert stats.summarize([-1.0, 1.0]).cv is None


def test_a_far_value_is_an_outlier_and_a_near_one_is_not() -> None:
    assert stats.outliers([10.0, 10.1, 9.9, 10.2, 9.8, 30.0, 10.3]) == [5]


def test_values_that_are_mostly_equal_have_no_scale_to_judge_by() -> None:
    assert stats.outliers([1.0, 1.0, 1.0, 1.0, 99.0]) == []
    assert stats.outliers([1.0, 99.0]) == []


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_mean_nothing_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no values|not finite"):
        stats.summarize(values)


@pytest.mark.parametrize("q", [-1, 101])
def test_a_percentile_out_of_range_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 100"):
        stats.percentile([1.0], q)


PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=200)


@given(PAIRS)
def test_a_paired_interval_holds_the_mean_difference_and_lies_between_the_extremes(
    pairs: list[tuple[int, int]],
) -> None:
    before, after = zip(*pairs, strict=True)
    differences = [b - a for a, b in pairs]
    found = stats.paired_bootstrap(before, after, resamples=500)
    assert found.estimate == pytest.approx(float(np.mean(differences)))
    assert min(differences) - 1e-9 <= found.low <= found.high <= max(differences) + 1e-9


@given(PAIRS)
def test_a_paired_interval_does_not_depend_on_the_order_of_the_examples(pairs: list[tuple[int, int]]) -> None:
    before, after = zip(*pairs, strict=True)
    again_before, again_after = zip(*reversed(pairs), strict=True)
    once = stats.paired_bootstrap(before, after, resamples=200)
    assert once == stats.paired_bootstrap(again_before, again_after, resamples=200)


@given(PAIRS)
def test_turning_before_and_after_round_turns_the_estimate_round(pairs: list[tuple[int, int]]) -> None:
    before, after = zip(*pairs, strict=True)
    forth, back = (stats.paired_bootstrap(a, b, resamples=200) for a, b in ((before, after), (after, before)))
    assert forth.estimate == -back.estimate


@given(st.lists(st.integers(0, 1), min_size=1, max_size=50), st.integers(-5, 5))
def test_a_difference_that_is_always_the_same_is_certain(before: list[int], shift: int) -> None:
    found = stats.paired_bootstrap(before, [value + shift for value in before], resamples=100)
    assert (found.estimate, found.low, found.high) == pytest.approx((shift, shift, shift))


def test_a_paired_interval_is_as_wide_as_the_normal_one_for_many_examples() -> None:
    # 300 of 10,000 lost and 200 gained: mean -0.01, standard error sqrt(0.05 - 0.0001) / 100.
    before = [1.0] * 300 + [0.0] * 9700
    after = [0.0] * 300 + [1.0] * 200 + [0.0] * 9500
    found = stats.paired_bootstrap(before, after)
    error = math.sqrt(0.05 - 0.0001) / 100
    assert found.low == pytest.approx(-0.01 - 1.96 * error, abs=3e-4)
    assert found.high == pytest.approx(-0.01 + 1.96 * error, abs=3e-4)


def test_a_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for round_number in range(200):
        before = generator.integers(0, 2, 300)
        after = np.where(generator.random(300) < 0.2, 1 - before, before)
        # Either flip is as likely: the true mean difference is 0.
        found = stats.paired_bootstrap(list(before), list(after), resamples=400, seed=round_number)
        covered += found.low <= 0 <= found.high
    assert 180 <= covered <= 200


@pytest.mark.parametrize(
    ("before", "after", "confidence"),
    [([], [], 0.95), ([1.0], [1.0, 2.0], 0.95), ([math.nan], [1.0], 0.95), ([1.0], [1.0], 1.0)],
)
def test_what_is_no_pair_has_no_interval(before: list[float], after: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match="no pairs|not finite|not between"):
        stats.paired_bootstrap(before, after, confidence=confidence)
