from __future__ import annotations

from dataclasses import replace

from edgekit.core.measurement import Measurement
from edgekit.core.result import document
from edgekit.core.run_output import ProcessRun, RunOutput, measurements_of
from tests.unit.report import samples

SUMMARY = Measurement(
    "latency_ms",
    "ms",
    "smaller",
    "summary",
    (5.0,),
    metadata={"summary": {"mean": 5.0, "count": 50.0}, "unverified": "why"},
)


def test_a_summary_shows_what_the_tool_said_and_no_statistics_of_its_one_value() -> None:
    shown = document(replace(samples.result("float32"), measurements=(SUMMARY,)))
    assert shown["latency_ms"] == {"mean": 5.0, "count": 50.0}
    assert shown["samples_ms"] == []
    assert shown["outliers"] == 0
    assert shown["unverified"] == "why"


def test_a_summary_of_a_runner_is_among_the_measurements_of_a_run() -> None:
    assert measurements_of(RunOutput({}, {}, summaries=(SUMMARY,))) == [SUMMARY]
    run = ProcessRun("latency", "latency", 0, 1.0, 1.0, samples_ms=(1.0, 2.0))
    assert measurements_of(RunOutput({}, {}, runs=(run,), summaries=(SUMMARY,)))[-1] is SUMMARY
