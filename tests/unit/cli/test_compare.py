"""`edgekit compare` as a person types it, over results that are stored, and `bench` of two artifacts."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from edgekit.flow.store import Store
from tests.e2e.kit import PROJECT, write
from tests.unit.flow.test_compare import result

STRICT = "schema_version: 1\nmetrics:\n  latency_ms: {direction: smaller, max_regression_pct: 5}\n"
LAX = "schema_version: 1\nmetrics:\n  latency_ms: {direction: smaller, max_regression_pct: 50}\n"


@pytest.fixture
def measured(person):
    """A person with three runs: before, and after at 1.2 and at 1.0 times the latency."""
    with Store.open(person.cwd / ".edgekit" / "results.sqlite") as store:
        for number, (run, median, tag) in enumerate(
            [("20261101T100000-a", 10.0, "before"), ("20261102T100000-b", 12.0, "after"), ("20261103-c", 10.0, "again")]
        ):
            made = result(median, number + 1)
            created = f"2026-11-0{number + 1}T10:00:00+00:00"
            store.add(replace(made, id=f"{number}{made.id}", run=run, tags=(tag,), created=created))
    write(person.cwd, {"strict.yaml": STRICT, "lax.yaml": LAX})
    return person


def test_two_tags_are_compared(measured):
    said = measured.run("compare", "before", "after").check().out
    (row,) = [line for line in said.splitlines() if line.startswith("latency_ms")]
    assert "slower" in row
    shown = measured.run("compare", "before", "after", "--json").check().json
    assert shown["comparisons"][0]["rows"][0]["verdict"] == "slower"


def test_a_gate_decides_the_exit_code_and_writes_both_files(measured):
    files = ("--markdown", "gate.md", "--junit", "gate.xml")
    done = measured.run("compare", "before", "after", "--gate", "strict.yaml", *files, "--json").check(1)
    assert done.json["gate"]["passed"] is False
    assert "**Gate: 1 of 1 checks failed**" in (measured.cwd / "gate.md").read_text()
    assert ET.parse(measured.cwd / "gate.xml").getroot().attrib["failures"] == "1"
    assert (
        measured.run("compare", "before", "after", "--gate", "lax.yaml", *files, "--json")
        .check()
        .json["gate"]["passed"]
    )
    assert ET.parse(measured.cwd / "gate.xml").getroot().attrib["failures"] == "0"
    assert measured.run("compare", "before", "again", "--gate", "strict.yaml").check().code == 0


def test_a_baseline_is_kept_and_compared_with(measured):
    kept = measured.run("compare", "--save-baseline", "main", "20261101", "--json").check().json
    assert kept["artifacts"] == [result(10.0, 1).artifact_digest]
    shown = measured.run("compare", "--baseline", "main", "after", "--gate", "strict.yaml", "--json").check(1).json
    assert shown["comparisons"][0]["a"]["run"] == "20261101T100000-a"
    assert (
        "no baseline 'mine'. Did you mean 'main'" in measured.run("compare", "--baseline", "mine", "after").check(2).err
    )


def test_a_json_file_of_another_machine_is_a_side(measured):
    printed = measured.run("report", "20261101", "--json").check().out
    (measured.cwd / "old.json").write_text(printed)
    shown = measured.run("compare", "old.json", "after", "--json").check().json
    assert shown["comparisons"][0]["rows"][0]["verdict"] == "slower"
    (measured.cwd / "old.json").write_text(printed[: len(printed) // 2])
    assert "old.json: not valid JSON" in measured.run("compare", "old.json", "after").check(2).err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("before",), "Two runs are compared; one is given."),
        (("before", "nothing"), "There is no run, result or tag 'nothing'"),
        (("before", "after", "--gate", "none.yaml"), "There is no file 'none.yaml'"),
        (("before", "after", "--junit", "gate.xml"), "--junit writes what a gate found"),
        (("before", "after", "--alpha", "2"), "A level of 2.0"),
        (("before", "after", "--allow", "thread"), "Did you mean 'threads'"),
        (("--baseline", "main", "before", "after"), "one run is named"),
        (("--baseline", "a", "--save-baseline", "b", "before"), "one at a time"),
        (("--save-baseline", "../x", "before"), "cannot name a baseline"),
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_exit_code_2_and_says_what_is_wrong(measured, arguments, words):
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    assert words in measured.run("compare", *arguments).check(2).err


@pytest.mark.slow
def test_artifacts_that_take_turns_are_compared_at_the_end(person):
    write(person.cwd, PROJECT)
    target = ("--target", "linux-x86", "--backend", "onnxruntime")
    person.run("compile", *target, "--out", "made").check()
    (folder,) = (person.cwd / "made").iterdir()
    quick = ("--processes", "3", "--min-seconds", "0.01", "--min-runs", "5")
    shown = person.run("bench", folder, folder, "--device", "local", *quick, "--json").check().json
    (compared,) = shown["in_turns"]
    assert compared["in_turns"]
    assert "A and B are the same artifact (A/A)" in compared["notes"]
    first, second = shown["results"]
    assert first["id"] != second["id"]
    assert len(first["samples_per_process"]) == 3
    by_id = person.run("compare", first["id"][:12], second["id"][:12], "--json").check().json
    assert by_id["comparisons"][0]["in_turns"]
