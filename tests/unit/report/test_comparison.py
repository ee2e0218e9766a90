from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from edgekit.flow.compare import compare
from edgekit.flow.gate import Check
from edgekit.report import comparison as report
from tests.unit.flow.test_compare import latency, result

CHECKS = [
    Check("latency_ms", "b against a on pi", "failed", "slower < 5 % \x00 & more"),
    Check("top1", "b against a on pi", "warned", "top1 was not measured"),
    Check("artifact_bytes", "b against a on pi", "passed", "no difference"),
]


@pytest.fixture
def comparisons():
    moved = result(measured=latency(8.0, 2), device="attic|pi")
    return [compare(result(10.0, 1), result(8.0, 2)), compare(result(10.0, 1), moved)]


def said(parts) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


def test_a_table_shows_ratio_interval_p_and_verdict(comparisons):
    text = said(report.renderables(comparisons, CHECKS))
    (row,) = [line for line in text.splitlines() if line.startswith("latency_ms") and "faster" in line]
    assert "10 ms" in row
    assert " … " in row
    assert "< 0.0001" in row
    assert "not comparable: device kitchen-pi against attic|pi" in text
    assert "failed: slower" in text


def test_the_document_is_json_with_everything(comparisons):
    shown = json.loads(json.dumps(report.document(comparisons, CHECKS)))
    row = shown["comparisons"][0]["rows"][0]
    assert (row["metric"], row["verdict"]) == ("latency_ms", "faster")
    assert row["ratio"]["low"] < row["ratio"]["estimate"] < row["ratio"]["high"]
    assert shown["gate"]["passed"] is False
    assert "gate" not in report.document(comparisons)


def test_markdown_begins_with_the_gate_and_escapes_what_names_hold(comparisons):
    text = report.markdown(comparisons, CHECKS)
    assert text.startswith("# Comparison\n\n**Gate: 1 of 3 checks failed**\n")
    assert "attic\\|pi" in text
    assert report.markdown(comparisons, CHECKS[2:]).startswith("# Comparison\n\n**Gate: passed**\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_junit_has_a_case_a_check_and_is_xml_whatever_a_message_holds():
    suites = ET.fromstring(report.junit(CHECKS))
    assert suites.attrib["tests"] == "3"
    assert (suites.attrib["failures"], suites.attrib["skipped"]) == ("1", "1")
    cases = {case.attrib["name"]: case for case in suites.iter("testcase")}
    assert "slower < 5 %" in cases["latency_ms"].find("failure").attrib["message"]
    assert cases["top1"].find("skipped") is not None
    assert cases["artifact_bytes"].find("failure") is None


def test_a_side_that_was_emulated_says_so(comparisons):
    both = [replace(result(10.0, seed), emulated=True) for seed in (1, 2)]
    text = report.markdown([compare(*both)])
    assert text.count("emulated") >= 3
