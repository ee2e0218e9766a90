from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy

from edgekit.core import comparison
from edgekit.core.comparison import compare_samples, median_interval, processes_of, within

PROCESS = st.lists(st.floats(0.5, 50), min_size=1, max_size=12)


def drifting(count: int, seed: int, samples: int = 30) -> list[list[float]]:
    """Processes one after the other on a machine that wanders: autocorrelated levels, bursts, and noise within."""
    lot = random.Random(seed)
    level, found = 0.0, []
    for _ in range(count):
        level = 0.8 * level + lot.gauss(0, 0.02)
        burst = 0.15 * lot.random() if lot.random() < 0.1 else 0.0
        found.append([math.exp(level + burst + lot.expovariate(1 / 0.01)) for _ in range(samples)])
    return found


def dealt(count: int, seed: int, effect: float = 1.0) -> tuple[list[list[float]], list[list[float]]]:
    """Rounds whose two processes are dealt out by lot; B is slower by `effect`."""
    stream, lot = drifting(2 * count, seed), random.Random(-seed)
    pairs = [stream[2 * i : 2 * i + 2] for i in range(count)]
    for pair in pairs:
        lot.shuffle(pair)
    return [pair[0] for pair in pairs], [[effect * v for v in pair[1]] for pair in pairs]


@pytest.mark.parametrize("rounds", [3, 5, 8, 12])
def test_equal_things_in_turns_are_called_different_in_one_of_a_hundred_at_most(rounds: int) -> None:
    wrong = sum(compare_samples(*dealt(rounds, seed), paired=True, resamples=300).different for seed in range(200))
    # 2 are expected at most; 8 and more come by chance once in a thousand such tests.
    assert wrong <= 7


@pytest.mark.parametrize("count", [3, 5, 12])
def test_equal_things_measured_one_after_the_other_on_a_drifting_machine_are_equal(count: int) -> None:
    wrong = 0
    for seed in range(200):
        stream = drifting(2 * count, seed)
        wrong += compare_samples(stream[:count], stream[count:], resamples=300).different
    assert wrong <= 7


def test_a_difference_is_found_in_turns_on_the_same_machine() -> None:
    found = [compare_samples(*dealt(16, seed, 1.10), paired=True, resamples=300) for seed in range(60)]
    assert sum(one.different and one.ratio.estimate > 1 for one in found) >= 54
    assert all(one.test == "signed rank" for one in found)


def test_an_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    found = [compare_samples(*dealt(12, seed, 1.3), paired=True, alpha=0.1, resamples=500) for seed in range(100)]
    held = sum(one.ratio.low <= 1.3 <= one.ratio.high for one in found)
    assert held >= 82


def test_a_thousand_samples_of_one_slow_process_are_one_observation() -> None:
    steady = [[1.0 + 0.001 * i for i in range(1000)] for _ in range(8)]
    odd = [[1.2 + 0.001 * i for i in range(1000)], *steady[1:]]
    assert not compare_samples(steady, odd, paired=True).different


def test_an_offset_as_large_as_between_processes_is_put_down_to_the_run() -> None:
    a = [[1.0 + 0.02 * i] for i in range(8)]
    b = [[1.05 + 0.02 * i] for i in range(8)]
    assert compare_samples(a, b, paired=True).different
    assert not compare_samples(a, b).different


def test_few_processes_need_a_clear_difference_and_then_show_it() -> None:
    a, b = [[1.0], [1.01], [0.99]], [[2.0], [2.02], [1.99]]
    for paired, name in ((True, "paired t"), (False, "Welch's t")):
        found = compare_samples(a, b, paired=paired)
        assert (found.different, found.test) == (True, name)
    assert not compare_samples(a, [[1.02], [1.0], [1.01]], paired=True).different


@given(st.lists(st.tuples(st.floats(1, 2), st.floats(1, 2)), min_size=3, max_size=7))
def test_the_t_tests_of_few_processes_are_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    logs = np.log(a), np.log(b)
    if min(np.ptp(logs[0]), np.ptp(logs[1]), np.ptp(logs[1] - logs[0])) < 1e-3:
        return
    if len(pairs) < 5:
        p, _ = comparison._unpaired_p(list(logs[0]), list(logs[1]), 0.01)
        assert p == pytest.approx(scipy.ttest_ind(logs[1], logs[0], equal_var=False).pvalue, rel=1e-6)
    p, _ = comparison._paired_p(list(logs[0]), list(logs[1]), 0.01)
    assert p == pytest.approx(scipy.ttest_rel(logs[1], logs[0]).pvalue, rel=1e-6)


@given(st.lists(st.tuples(PROCESS, PROCESS), min_size=3, max_size=9), st.booleans())
@settings(max_examples=40)
def test_a_ratio_does_not_depend_on_the_unit_and_is_in_its_interval(
    pairs: list[tuple[list[float], list[float]]], paired: bool
) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    if len({value for process in a + b for value in process}) == 1:
        return
    found = compare_samples(a, b, paired=paired, resamples=200)
    scaled = compare_samples(
        [[8 * v for v in p] for p in a], [[8 * v for v in p] for p in b], paired=paired, resamples=200
    )
    assert scaled.ratio.estimate == pytest.approx(found.ratio.estimate)
    assert scaled.p == pytest.approx(found.p)
    assert found.ratio.low <= found.ratio.high
    assert found.detectable >= 1


def test_the_draw_of_a_resamples_median_is_that_of_a_resample() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 9.0, 11.0]
    generator = np.random.default_rng(3)
    drawn = comparison._resampled([values], np.zeros((20000, 1), int), generator)
    naive = np.median(np.log(generator.choice(values, (20000, len(values)))), axis=1)
    assert scipy.ks_2samp(drawn.ravel(), naive).statistic < 0.02


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([[1.0]], [[1.0, 2.0]] * 3, "one sample: at least 3 fresh processes"),
        ([[1.0, 2.0]] * 2, [[1.0]] * 3, "4 samples of 2 process"),
        ([[1.0], [math.nan], [2.0]], [[1.0]] * 3, "1 of 1 values are not finite"),
        ([[1.0], [0.0], [2.0]], [[1.0]] * 3, "not above 0"),
        ([[1.0], [], [2.0]], [[1.0]] * 3, "no values"),
        ([[1.0, 1.0]] * 3, [[2.0, 2.0]] * 3, "all samples of each are equal"),
    ],
)
def test_what_proves_nothing_is_refused_with_the_reason(a, b, words) -> None:
    with pytest.raises(ValueError, match=words):
        compare_samples(a, b)


def test_rounds_that_do_not_match_and_levels_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 processes are no rounds"):
        compare_samples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0], [4.0]], paired=True)
    with pytest.raises(ValueError, match=r"a level of 0\.7"):
        compare_samples([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]], alpha=0.7)


def test_samples_are_cut_into_processes() -> None:
    assert processes_of([1.0, 2.0, 3.0], [2, 0, 1]) == [[1.0, 2.0], [3.0]]
    with pytest.raises(ValueError, match="3 samples, but their processes count 2"):
        processes_of([1.0, 2.0, 3.0], [2])


def test_a_median_is_known_better_with_more_processes() -> None:
    few, many = drifting(4, 1), drifting(40, 1)
    assert within(many) < within(few)
    found = median_interval(many)
    assert found.low <= found.estimate <= found.high
    with pytest.raises(ValueError, match="at least 3"):
        within([[1.0, 2.0]])
