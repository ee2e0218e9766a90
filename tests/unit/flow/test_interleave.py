from __future__ import annotations

import random
from dataclasses import replace

import pytest

from edgekit.core.device import Device
from edgekit.core.measurement import Measurement
from edgekit.core.progress import Silent
from edgekit.flow import interleave
from edgekit.flow.interleave import TURNS, in_turns
from edgekit.flow.measure import Settings
from tests.unit.report import samples

PI = Device("kitchen-pi", "rpi4", "fake")


@pytest.fixture
def visits(monkeypatch):
    """The order of the visits; each gives two samples that say which visit they are of."""
    made: list[tuple[str, Settings]] = []

    def visit(built, device, settings, progress, *, run, release, command=""):
        number = len(made)
        made.append((built, settings))
        assert not release
        throttled = {"throttled": number == 2}
        latency = Measurement(
            "latency_ms", "ms", "smaller", "samples", (number, number + 0.5), (9.0,), (2,), {"n": number}, throttled
        )
        told = Measurement("energy_mj", "mJ", "smaller", "summary", (float(number),))
        return replace(samples.result(), run=run, model=built, measurements=(latency, told), seconds={"run": 1.0})

    monkeypatch.setattr(interleave, "visit", visit)
    return made


def test_each_round_has_each_artifact_once_in_an_order_drawn_by_lot(visits):
    in_turns(["a", "b", "c"], PI, Settings(processes=40), Silent(), run="r", lot=random.Random(1))
    order = [built for built, _ in visits]
    rounds = [tuple(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) == 6


def test_a_round_is_one_process_and_the_score_is_taken_once(visits):
    in_turns(["a", "b"], PI, Settings(processes=3), Silent(), run="r")
    assert {settings.processes for _, settings in visits} == {1}
    assert [settings.accuracy for _, settings in visits] == [True, True, False, False, False, False]


def test_the_rounds_of_an_artifact_become_one_result(visits):
    first, second = in_turns(["a", "b"], PI, Settings(processes=3), Silent(), run="r", lot=random.Random(1))
    assert (first.model, second.model) == ("a", "b")
    latency = first.measured("latency_ms")
    own = [number for number, (built, _) in enumerate(visits) if built == "a"]
    assert latency.values == tuple(value for n in own for value in (n, n + 0.5))
    assert (latency.processes, latency.warmups) == ((2, 2, 2), (9.0, 9.0, 9.0))
    assert latency.metadata[TURNS] == second.measured("latency_ms").metadata[TURNS] == "r/kitchen-pi"
    assert latency.conditions_before == {"n": own[0]}
    assert first.seconds == {"run": 3.0}


def test_throttled_in_one_round_is_throttled(visits):
    results = in_turns(["a", "b"], PI, Settings(processes=3), Silent(), run="r", lot=random.Random(1))
    said = {result.model: result.measured("latency_ms").conditions_after.get("throttled") for result in results}
    assert said[visits[2][0]] is True
    assert sorted(said.values()) == [False, True]


def test_summaries_stay_a_summary_with_each_in_the_metadata(visits):
    first, _ = in_turns(["a", "b"], PI, Settings(processes=3), Silent(), run="r")
    told = first.measured("energy_mj")
    assert (told.kind, len(told.values)) == ("summary", 1)
    assert sorted(told.metadata["summaries"])[1] == told.values[0]


def test_a_sweep_and_a_sustained_run_come_once_after_the_rounds(visits, monkeypatch):
    in_turns(["a", "b"], PI, Settings(processes=2, sustained_seconds=60.0, sweep_threads=(2,)), Silent(), run="r")
    assert [settings.sustained_seconds for _, settings in visits] == [0.0] * 4 + [60.0] * 2
    assert [built for built, _ in visits[4:]] == ["a", "b"]
