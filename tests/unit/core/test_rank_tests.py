from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy

from edgekit.core.rank_tests import least_p, least_p_unpaired, mann_whitney, signed_rank

DISTINCT = st.lists(st.integers(-1000, 1000), min_size=2, max_size=24, unique=True).map(lambda v: [x / 7 for x in v])
TIED = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=40)
SIGNED = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=10)


@given(DISTINCT, st.data())
def test_mann_whitney_without_ties_is_scipys_exact_test(values: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    found = mann_whitney(values[:cut], values[cut:])
    method = "exact" if found.method == "exact" else "asymptotic"
    expected = scipy.mannwhitneyu(values[:cut], values[cut:], method=method)
    assert found.statistic == expected.statistic
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


@given(TIED, TIED)
def test_mann_whitney_with_ties_is_scipys_normal_approximation(a: list[float], b: list[float]) -> None:
    found = mann_whitney(a, b)
    if len(set(a + b)) == 1:
        # SciPy gives NaN or 1 here, by version: nothing varies, so nothing differs.
        assert found.p == 1.0
    elif found.method == "normal":
        expected = scipy.mannwhitneyu(a, b, method="asymptotic")
        assert found.statistic == expected.statistic
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-15)


@given(DISTINCT, DISTINCT)
def test_which_group_comes_first_does_not_matter(a: list[float], b: list[float]) -> None:
    assert mann_whitney(a, b).p == pytest.approx(mann_whitney(b, a).p)


@given(DISTINCT.filter(lambda values: 0 not in values and len({abs(v) for v in values}) == len(values)))
def test_signed_ranks_without_ties_are_scipys_exact_test(values: list[float]) -> None:
    found = signed_rank(values)
    expected = scipy.wilcoxon(values, method="exact")
    assert min(found.statistic, len(values) * (len(values) + 1) / 2 - found.statistic) == expected.statistic
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


@given(SIGNED)
def test_signed_ranks_with_ties_and_zeros_count_every_choice_of_signs(values: list[float]) -> None:
    kept = np.array([value for value in values if value])
    if not kept.size:
        assert signed_rank(values).p == 1.0
        return
    ranks = scipy.rankdata(np.abs(kept))
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(kept))])
    observed, middle = ranks[kept > 0].sum(), ranks.sum() / 2
    assert signed_rank(values).p == pytest.approx(np.mean(np.abs(sums - middle) >= abs(observed - middle) - 1e-9))


@pytest.mark.parametrize("pairs", range(1, 12))
def test_the_least_p_of_pairs_is_what_differences_on_one_side_give(pairs: int) -> None:
    assert least_p(pairs) == pytest.approx(signed_rank([float(n) for n in range(1, pairs + 1)]).p)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (5, 5), (4, 9)])
def test_the_least_p_of_groups_is_what_groups_that_do_not_overlap_give(n: int, m: int) -> None:
    found = mann_whitney([float(v) for v in range(n)], [100.0 + v for v in range(m)])
    assert least_p_unpaired(n, m) == pytest.approx(found.p)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_what_cannot_be_ranked_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="no values|not finite"):
        mann_whitney(bad, [1.0])
    with pytest.raises(ValueError, match="no values|not finite"):
        signed_rank(bad)
