"""What `benchmark_model` prints, read from recorded logs; each names where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edgekit.runners import _benchmark_log as log

FIXTURES = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "benchmark_model").glob("*.json"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_recorded_log_gives_its_figures(path):
    recorded = json.loads(path.read_text())
    assert recorded["source"]
    assert recorded["verified"]
    found = asdict(log.parse(recorded["output"]))
    assert {key: found[key] for key in recorded["expected"]} == recorded["expected"]


def logged(name):
    return log.parse(json.loads(next(path for path in FIXTURES if path.stem == name).read_text())["output"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ERROR: Failed to load model /x.tflite",
        "Inference timings in us: Init: 1, First inference: 2, Warmup (avg): 3, Inference (avg): 0",
        "Inference timings in us: Init: 1, First inference: 2, Warmup (avg): 3, Inference (avg): 1e999",
        "Inference timings in us: Init: 1, First inference: 2, Warmup (avg): -3, Inference (avg): 4",
        "Inference timings in us: Init: 1.2.3, First inference: 2, Warmup (avg): 3, Inference (avg): 4",
    ],
)
def test_what_is_no_result_is_none(text):
    assert log.parse(text) is None


def test_why_it_failed_is_what_it_marks_as_an_error():
    text = "INFO: STARTING!\nINFO: Graph: [/x]\nERROR: Failed to load model /x\nERROR: Benchmarking failed.\n"
    assert log.failure(text) == "ERROR: Failed to load model /x; ERROR: Benchmarking failed."
    assert log.failure("Segmentation fault\n") == "Segmentation fault"


def test_measurements_are_summaries_of_one_value_with_what_the_tool_says_of_its_samples():
    found = {m.metric: m for m in log.measurements([logged("pi_xnnpack_memory")], {"temp_c": 40}, {}, {"threads": 4})}
    assert {m.kind for m in found.values()} == {"summary"}
    assert {len(m.values) for m in found.values()} == {1}
    assert found["latency_ms"].values[0] == pytest.approx(55.0432)
    assert found["first_inference_ms"].values[0] == pytest.approx(64.791)
    assert found["load_ms"].values[0] == pytest.approx(18.777)
    assert found["model_delta_mib"].values[0] == pytest.approx(18.7227)
    assert "peak_rss_mib" not in found
    assert found["throughput_ips"].values[0] == pytest.approx(1000 / 55.0432)
    summary = found["latency_ms"].metadata["summary"]
    assert (summary["count"], summary["min"], summary["max"]) == (50, pytest.approx(53.077), pytest.approx(60.727))
    assert summary["std"] == pytest.approx(1.562)
    assert found["latency_ms"].metadata["threads"] == 4
    assert found["latency_ms"].conditions_before == {"temp_c": 40}


def test_several_processes_are_pooled_by_their_counts():
    first = log.Log(1, 2, 3, 1000.0, timed={"count": 10, "min": 900, "max": 1100, "std": 0})
    second = log.Log(3, 4, 3, 2000.0, timed={"count": 30, "min": 1900, "max": 2100, "std": 0}, peak_mib=7.0)
    found = {m.metric: m for m in log.measurements([first, second], {}, {}, {})}
    assert found["latency_ms"].values[0] == pytest.approx(1.75)
    summary = found["latency_ms"].metadata["summary"]
    assert summary == pytest.approx({"count": 40, "mean": 1.75, "min": 0.9, "max": 2.1, "std": 0.4330127})
    assert found["peak_rss_mib"].values == (7.0,)
