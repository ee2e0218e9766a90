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
