from __future__ import annotations

from dataclasses import replace

from edgekit.core.measurement import Measurement
from edgekit.core.result import document
from edgekit.report import sustained, timing
from edgekit.report.charts import colours
from edgekit.report.model import build
from edgekit.report.words import conditions, notes
from tests.unit.report import samples

STEADY = tuple(10.0 + 0.01 * (i % 5) for i in range(30))


def latency(values=STEADY, **metadata):
    return Measurement("latency_ms", "ms", "smaller", "samples", values, processes=(len(values),), metadata=metadata)


def test_what_moved_is_a_note_of_its_own():
    assert timing.notes(latency(moved=["the clock fell from 1800 to 1200 MHz"])) == [
        "conditions moved while it was measured: the clock fell from 1800 to 1200 MHz"
    ]


def test_a_first_run_that_is_slow_is_told_apart_from_other_outliers():
    assert "first timed run was slow in 1 of 1" in timing.notes(latency((40.0, *STEADY)))[0]
    assert timing.notes(latency((*STEADY, 40.0))) == []
    assert timing.notes(latency((10.0,) * 30)) == []


def test_doubts_about_the_timing_are_said():
    told = {
        "ci": 0.02,
        "ci_reached": False,
        "half_width": 0.035,
        "warmup_steady": False,
        "inner_runs": 12,
        "clock_jumps": [{"clock": "wall clock", "after_s": 1.0, "jump_s": 3600.0}],
    }
    text = " | ".join(timing.notes(latency(timing=[told], clear_refs=False)))
    for words in ("± 2 %; it is ± 3.5 %", "time limit", "mean of 12", "wall clock jumped", "an upper bound"):
        assert words in text


def test_a_median_of_too_few_samples_is_not_called_sure():
    told = {"ci": 0.02, "ci_reached": False, "half_width": None}
    assert "too few samples" in timing.notes(latency((1.0, 1.0), timing=[told]))[0]


def marked(result):
    series = {"seconds": [10.0, 20.0, 30.0], "temp_c": [50.0, None, 70.0]}
    long = Measurement("sustained_ms", "ms", "smaller", "samples", (1.0, 1.2, 1.5), metadata={"series": series})
    measured = [
        replace(m, metadata={**m.metadata, "moved": ["the device throttled"], "energy": "unavailable: no instrument"})
        if m.metric == "latency_ms"
        else m
        for m in result.measurements
    ]
    return replace(result, measurements=(*measured, long))


def test_a_marked_result_shows_it_in_json_and_in_the_report():
    result = marked(samples.result())
    shown = document(result)
    assert shown["conditions"]["moved"] == ["the device throttled"]
    assert shown["energy"] == "unavailable: no instrument"
    assert shown["sustained"]["p50_ms"] == [1.0, 1.2, 1.5]
    report = build([result])
    assert any("conditions moved" in note for note in notes(report))
    group = conditions(report.groups[0])
    assert (group["Moved"], group["Energy"]) == ("the device throttled", "unavailable: no instrument")


def test_a_sustained_run_has_latency_and_temperature_against_time():
    report = build([marked(samples.result())])
    made = sustained.charts(report.groups[0], colours(report))
    assert [chart.title.split(",")[0] for chart in made] == ["Latency against time", "Temperature against time"]
    assert made[1].summary.endswith("from 50.0 to 70.0 °C")
    assert len(made[1].figure["data"][0]["x"]) == 2


def test_nothing_sustained_has_no_plot():
    report = build([samples.result()])
    assert sustained.charts(report.groups[0], colours(report)) == []
