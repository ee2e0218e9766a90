from __future__ import annotations

import pytest

from edgekit.core.conditions import moved
from edgekit.core.run_output import ProcessRun, RunOutput, measurements_of

COOL = {"governor": "performance", "temp_c": 50.0, "throttled": False, "cores": 4}


def rows(key, *values):
    return [{"t": float(t), key: value} for t, value in enumerate(values)]


@pytest.mark.parametrize(
    ("after", "watched", "words"),
    [
        ({"throttling": {"now": ["under-voltage"]}}, [], "the firmware says: under-voltage"),
        ({"throttled": True}, [], "the device throttled"),
        ({}, rows("throttled", False, True, False), "the device throttled"),
        ({"governor": "powersave"}, [], "the governor went from performance to powersave"),
        ({"temp_c": 60.5}, [], "the processor warmed from 50 to 60.5 °C"),
        ({}, rows("temp_c", 50.0, 72.0, 55.0), "the processor warmed from 50 to 72 °C"),
        ({}, rows("freq_mhz", 600.0, 1800.0, 1200.0), "the clock fell from 1800 to 1200 MHz"),
        (
            {"other_cores": 1.5, "busiest": [{"name": "cc1plus"}]},
            [],
            "other programs kept 1.5 of 4 cores busy (cc1plus)",
        ),
    ],
)
def test_what_moved_is_named(after, watched, words):
    assert moved(COOL, {**COOL, **after}, watched) == [words]


@pytest.mark.parametrize(
    ("after", "watched"),
    [
        ({}, []),
        ({"temp_c": 59.0, "other_cores": 0.3}, []),
        ({}, rows("freq_mhz", 600.0, 1500.0, 1800.0, 1750.0)),
        ({"temp_c": None, "governor": None}, rows("freq_mhz", None, None)),
    ],
)
def test_what_is_the_same_or_unknown_has_not_moved(after, watched):
    assert moved(COOL, {**COOL, **after}, watched) == []


def test_a_throttle_counter_that_rose_is_told_with_how_often():
    found = moved({**COOL, "throttle_count": 7}, {**COOL, "throttle_count": 9})
    assert found == ["the processor throttled 2 times"]


def test_only_what_was_seen_while_timing_counts():
    watched = rows("freq_mhz", 1800.0, 1800.0, 1800.0, 600.0)
    assert moved(COOL, COOL, watched, (0.0, 2.5)) == []
    assert moved(COOL, COOL, watched, (0.0, 3.5)) == ["the clock fell from 1800 to 600 MHz"]


def run(workload="latency", kind="latency", **more):
    return ProcessRun(workload, kind, 0, 1.0, 2.0, **({"samples_ms": (1.0, 2.0)} if kind == "latency" else {}), **more)


def test_a_run_whose_conditions_moved_is_marked():
    hot = run(conditions_before=COOL, conditions_after={**COOL, "temp_c": 75.0})
    latency = measurements_of(RunOutput({"cores": 4}, {}, runs=(run(), hot)))[0]
    assert latency.metadata["moved"] == ["the processor warmed from 50 to 75 °C"]
    assert "moved" not in measurements_of(RunOutput({}, {}, runs=(run(),)))[0].metadata


def test_a_sweep_is_kept_apart_from_the_measurement_proper():
    runs = (run(), run("threads-2", runtime={"threads": 2}))
    found = {m.metric: m for m in measurements_of(RunOutput({}, {}, runs=runs))}
    assert len(found["latency_ms"].values) == 2
    assert found["throughput_ips_threads_2"].metadata["threads"] == 2


def test_only_a_load_that_was_cold_is_called_so():
    runs = (run(), run("load", "load", cold=True), run("load", "load", cold=False))
    found = {m.metric: m for m in measurements_of(RunOutput({}, {}, runs=runs))}
    assert found["load_cold_ms"].values == (2.0,)
    assert found["load_ms"].values == (2.0,)


def test_latency_against_time_has_the_temperature_last_seen():
    windows = tuple({"t": t, "count": 5, "p50_ms": p, "p90_ms": p, "max_ms": p} for t, p in ((11.0, 1.0), (12.0, 1.5)))
    watched = ({"t": 10.5, "temp_c": 50.0}, {"t": 11.5, "temp_c": 60.0})
    one = run("sustained", "sustained", windows=windows, watched=watched, timing={"window": [10.0, 12.0]})
    found = {m.metric: m for m in measurements_of(RunOutput({}, {}, runs=(run(), one)))}["sustained_ms"]
    assert found.values == (1.0, 1.5)
    assert found.metadata["series"]["seconds"] == [1.0, 2.0]
    assert found.metadata["series"]["temp_c"] == [50.0, 60.0]
