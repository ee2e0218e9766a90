from __future__ import annotations

import pytest

from edgekit.core.errors import ConfigError
from edgekit.flow.asked import duration, settings_with, share, threads_of
from edgekit.flow.measure import Settings, _workloads

AGENT = frozenset({"latency", "outputs", "load", "sustained"})


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.5 %", 0.005), ("0.02", 0.02)])
def test_a_confidence_is_a_share(text, value):
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["2", "0%", "60%", "small", "-1%", ""])
def test_a_wrong_share_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="between 0 and 50 %") as caught:
        share(text)
    assert caught.value.hint == "--ci 2%"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("30min", 1800), ("1h", 3600)])
def test_a_duration_has_a_unit(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["30", "1s", "48h", "soon"])
def test_a_wrong_duration_is_refused(text):
    with pytest.raises(ConfigError, match="between 10s and 24h"):
        duration(text)


def test_a_sweep_is_of_threads_each_once():
    assert threads_of(["threads=1,2,4", "threads=2"]) == (1, 2, 4)


def test_the_batch_cannot_be_swept_and_the_hint_says_what_can_be_done():
    with pytest.raises(ConfigError, match="batch is fixed when it is compiled") as caught:
        threads_of(["batch=1,8"])
    assert "one artifact for each batch" in caught.value.hint


@pytest.mark.parametrize("text", ["threads", "threads=0", "threads=x", "cores=2"])
def test_another_sweep_is_refused(text):
    with pytest.raises(ConfigError, match="what can be swept is threads"):
        threads_of([text])


def test_what_was_typed_becomes_workloads():
    settings = settings_with(Settings(), ci="2%", cool_below=55.0, sweep=["threads=1,4"], sustained="1m")
    found = {workload.name: workload for workload in _workloads(settings, 2, AGENT)}
    assert list(found) == ["load", "latency", "threads-1", "threads-4", "sustained"]
    assert (found["latency"].threads, found["latency"].ci, found["latency"].max_runs) == (2, 0.02, 1_000_000)
    assert (found["sustained"].max_seconds, found["sustained"].processes) == (60.0, 1)
    assert found["sustained"].timeout_seconds > 60
    assert settings.held.cool_below_c == 55.0


def test_a_runner_that_cannot_sustain_says_so():
    with pytest.raises(ConfigError, match="by the agent only"):
        _workloads(settings_with(Settings(), sustained="30m"), 1, frozenset({"latency", "outputs"}))


def test_a_time_limit_below_the_least_time_is_refused():
    with pytest.raises(ConfigError, match="less than --min-seconds"):
        settings_with(Settings(min_seconds=5.0), max_seconds=2.0)
