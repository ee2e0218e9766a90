from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.flow import baselines
from edgekit.flow.selection import results_in, results_of
from edgekit.flow.store import Store
from edgekit.report import json as report_json
from edgekit.report.model import build
from tests.unit.report import samples


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "results.sqlite") as opened:
        for number, tag in enumerate(("before", "after", "after")):
            made = samples.result("float32", seed=number)
            opened.add(
                replace(
                    made,
                    id=f"{number}abc{made.id}",
                    run=f"2026112{number}-run",
                    tags=(tag,),
                    created=f"2026-11-2{number}T10:00:00+00:00",
                )
            )
        yield opened


def test_a_run_a_result_and_a_tag_are_found_by_what_they_are_called(store):
    assert [result.run for result in results_of("20261121", store)] == ["20261121-run"]
    assert [result.run for result in results_of("0abc", store)] == ["20261120-run"]
    assert [result.run for result in results_of("before", store)] == ["20261120-run"]


def test_of_a_tag_the_newest_run_counts(store):
    assert [result.run for result in results_of("after", store)] == ["20261122-run"]


def test_an_unknown_name_lists_runs_and_tags(store):
    with pytest.raises(ConfigError, match="no run, result or tag 'elsewhere'.*20261122-run.*Tags: after, before"):
        results_of("elsewhere", store)


def test_a_name_of_several_runs_is_ambiguous(store):
    with pytest.raises(ConfigError, match="could be any of 3 runs|run '2026'"):
        results_of("2026", store)


def test_a_baselines_file_is_read_whole(tmp_path, store):
    made = samples.before_and_after()
    assert results_of(str(baselines.save(tmp_path, "main", made)), store) == made


def test_what_json_printed_can_be_compared_again(tmp_path):
    made = samples.before_and_after()
    path = tmp_path / "run.json"
    path.write_text(json.dumps(report_json.document(build(made))))
    for read, original in zip(results_in(path), made, strict=True):
        assert read.id == original.id
        assert read.accuracy == original.accuracy
        for measured in original.measurements:
            found = read.measured(measured.metric)
            assert (found.values, found.unit, found.better, found.kind) == (
                measured.values,
                measured.unit,
                measured.better,
                "samples",
            )
        latency, was = read.measured("latency_ms"), original.measured("latency_ms")
        assert (latency.processes, latency.warmups) == (was.processes, was.warmups)
        assert latency.conditions_before["temp_c"] == was.conditions_before["temp_c"]
        assert latency.metadata["threads"] == was.metadata["threads"]


def test_one_result_of_it_is_a_file_too_and_figures_without_samples_are_summaries(tmp_path):
    shown = report_json.document(build([samples.result()]))["results"][0]
    del shown["per_process"]
    shown |= {"samples_ms": [], "latency_ms": {"mean": 5.0}}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(shown))
    (read,) = results_in(path)
    assert (read.measured("latency_ms").kind, read.measured("latency_ms").values) == ("summary", (5.0,))
    assert read.measured("peak_rss_mib").kind == "summary"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no document of results"),
        ('{"schema_version": 1}', "there are no results in it"),
        ('{"schema_version": 1, "results": [{"id": "x"}]}', "schema_version"),
        ('{"schema_version": 1, "results": [3]}', "keys and values"),
        ('{"schema_version": 1, "results": [', "not valid JSON"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, words):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        results_in(path)


def test_a_stored_result_is_read_as_it_was(tmp_path):
    path = tmp_path / "stored.json"
    path.write_text(schema.to_json(samples.result()))
    assert results_in(path) == [samples.result()]
