"""How inferences are timed: the warm-up's end, the interval of the median, clocks that jump, runs too short to time."""

from __future__ import annotations

import importlib.util
import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from tests.unit.agent.kit import AGENT, workload

_spec = importlib.util.spec_from_file_location("agent_timing", AGENT / "timing.py")
timing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(timing)


@given(st.integers(1, 200), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_rank_is_the_largest_that_keeps_the_confidence(count, confidence):
    rank = timing.median_rank(count, confidence)
    tail = (1 - confidence) / 2
    if rank is None:
        assert reference.binom.cdf(0, count, 0.5) > tail
        return
    assert reference.binom.cdf(rank - 1, count, 0.5) <= tail * (1 + 1e-9)
    assert reference.binom.cdf(rank, count, 0.5) > tail * (1 - 1e-9)


@pytest.mark.parametrize("count", [201, 500, 5000])
def test_the_rank_of_many_is_close_to_the_exact_one(count):
    exact = int(reference.binom.ppf(0.025, count, 0.5))
    assert abs(timing.median_rank(count) - exact) <= 1


def test_the_interval_holds_the_median_as_often_as_it_says():
    lot = random.Random(1)
    held = 0
    for _ in range(2000):
        low, high = timing.median_interval([lot.expovariate(1.0) for _ in range(40)])
        held += low <= 0.6931 <= high
    assert 0.94 <= held / 2000 <= 0.985


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 5])
def test_too_few_values_have_no_interval(values):
    assert timing.half_width(values) is None


def test_equal_values_have_an_interval_of_no_width():
    assert timing.half_width([2.0] * 10) == 0.0


def test_a_median_of_nothing_has_no_relative_width():
    assert timing.half_width([0.0] * 10) is None


def series(values):
    """One inference after the other, each with the time told."""
    given_ = iter(values)
    return lambda: next(given_)


def test_the_warm_up_ends_when_the_pace_is_steady():
    falling = [100.0 - 10 * i for i in range(8)]
    samples, steady = timing.warm_up(series([*falling, *itertools.repeat(20.0, 1000)]), 2, 60.0)
    assert steady is True
    assert len(falling) < len(samples) < 60


def test_a_warm_up_that_never_steadies_ends_at_its_time_and_says_so():
    samples, steady = timing.warm_up(series(2.0 ** (i % 40) for i in itertools.count()), 2, 0.05)
    assert steady is False
    assert len(samples) > 2


def test_a_fixed_warm_up_is_as_long_as_asked_and_judges_nothing():
    assert timing.warm_up(series([1.0] * 10), 4, 0.0) == ([1.0] * 4, None)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_wall_clock_that_jumps_is_noticed_once_with_when_and_by_how_much():
    timer, wall = Clock(), Clock()
    clocks = timing.Clocks(timer, {"wall clock": wall})
    timer.now, wall.now = 5.0, 5.001
    clocks.look()
    assert clocks.jumps == []
    timer.now, wall.now = 7.0, 3607.0
    clocks.look()
    clocks.look()
    assert clocks.jumps == [{"clock": "wall clock", "after_s": 7.0, "jump_s": 3599.999}]


def test_a_suspended_device_is_noticed():
    timer, boot = Clock(), Clock()
    clocks = timing.Clocks(timer, {"suspended": boot})
    timer.now, boot.now = 1.0, 61.0
    clocks.look()
    assert clocks.jumps[0]["jump_s"] == 60.0


def test_the_systems_own_clocks_do_not_jump():
    clocks = timing.Clocks()
    clocks.look()
    assert clocks.jumps == []


@pytest.mark.parametrize(("typical_ms", "runs"), [(1.0, 1), (0.021, 1), (0.01, 2), (0.0001, 200), (0.0, 1000)])
def test_what_is_too_short_for_the_clock_is_timed_several_at_a_time(typical_ms, runs):
    assert timing.inner_runs(typical_ms, 0.0001) == runs


class Quick:
    """A driver whose inference is nothing."""

    def __init__(self):
        self.calls = 0

    def invoke(self):
        self.calls += 1


def run(driver, **changes):
    stages = []
    infer = series(itertools.repeat(1e-4)) if isinstance(driver, Quick) else driver
    found = timing.latency(driver, infer, workload("latency") | changes, stages.append)
    assert stages == ["first run", "steady"]
    return found


def test_a_batched_sample_is_of_as_many_inferences_as_it_says():
    driver = Quick()
    found = run(driver, min_runs=3, max_runs=3)
    inner = found["timing"]["inner_runs"]
    assert inner > 1
    assert driver.calls == found["timing"]["inferences"] == 3 * inner
    assert len(found["samples_ms"]) == 3


class Told:
    """A driver whose runtime is elsewhere and tells the times."""

    def __init__(self, times):
        self.times = iter(times)
        self.invoke_ms = 0.0

    def __call__(self):
        return next(self.times)


def test_timing_ends_when_the_median_is_as_sure_as_was_asked():
    lot = random.Random(2)
    driver = Told(lot.gauss(10.0, 1.0) for _ in range(100_000))
    found = run(driver, max_runs=100_000, ci=0.02)
    assert (found["timing"]["ended_by"], found["timing"]["ci_reached"]) == ("ci", True)
    assert found["timing"]["half_width"] <= 0.02
    assert 20 < len(found["samples_ms"]) < 2000
    assert statistics.median(found["samples_ms"]) == pytest.approx(10.0, rel=0.05)


def test_a_confidence_that_is_not_reached_in_time_is_said():
    lot = random.Random(3)
    driver = Told(lot.uniform(1.0, 100.0) for _ in range(10_000))
    found = run(driver, max_runs=50, ci=0.0001)
    assert (found["timing"]["ended_by"], found["timing"]["ci_reached"]) == ("runs", False)
    assert len(found["samples_ms"]) == 50


def test_a_sustained_run_is_told_in_windows_against_time():
    import time

    def infer():
        time.sleep(0.001)
        return 1.0

    told = []
    found = timing.sustained(infer, workload("sustained", max_seconds=1.2), told.append)
    assert len(found["windows"]) == 2
    assert found["timing"]["inferences"] == sum(window["count"] for window in found["windows"])
    assert all(window["p50_ms"] <= window["p90_ms"] <= window["max_ms"] for window in found["windows"])
    assert len(told) == 2


def test_the_agent_costs_less_than_one_percent_of_a_network_of_one_millisecond():
    assert timing.tick_ms() < 0.01
