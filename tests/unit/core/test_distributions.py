from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy

from edgekit.core.distributions import t_quantile, t_two_sided

FREEDOM = st.floats(0.5, 500)


@given(st.floats(-60, 60), FREEDOM)
def test_the_two_tails_of_students_t_are_scipys(t: float, freedom: float) -> None:
    assert t_two_sided(t, freedom) == pytest.approx(2 * scipy.t.sf(abs(t), freedom), rel=1e-8, abs=1e-14)


@given(st.floats(1e-5, 0.5), st.floats(1, 500))
def test_a_quantile_of_students_t_is_scipys(tail: float, freedom: float) -> None:
    assert t_quantile(tail, freedom) == pytest.approx(float(scipy.t.isf(tail, freedom)), rel=1e-7, abs=1e-7)


def test_an_infinite_statistic_has_no_tail() -> None:
    assert t_two_sided(math.inf, 3) == 0.0


@pytest.mark.parametrize("arguments", [(1.0, 0.0), (math.nan, 3.0), (1.0, math.nan)])
def test_what_has_no_probability_is_refused(arguments: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_two_sided(*arguments)
    with pytest.raises(ValueError, match="tail"):
        t_quantile(0.7, 3)
