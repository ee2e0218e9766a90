from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.core.errors import ConfigError
from edgekit.flow.compare import compare
from edgekit.flow.gate import failed, judge, load_policy
from tests.unit.flow.test_compare import latency, result, scored


def policy(tmp_path, text: str):
    path = tmp_path / "policy.yaml"
    path.write_text(f"schema_version: 1\nmetrics:\n{text}")
    return load_policy(path)


def outcomes(tmp_path, text: str, a, b) -> list[str]:
    return [check.outcome for check in judge(policy(tmp_path, text), [compare(a, b)])]


@pytest.mark.parametrize(
    ("rule", "factor", "outcome"),
    [
        ("{direction: smaller, max_regression_pct: 5}", 1.2, "failed"),
        ("{direction: smaller, max_regression_pct: 30}", 1.2, "passed"),
        ("{direction: smaller, max_regression_pct: 5}", 0.8, "passed"),
        ("{direction: smaller, max_regression_pct: 5}", 1.0, "passed"),
        ("{direction: smaller, max_regression_abs: 1.5}", 1.2, "failed"),
        ("{direction: smaller, max_regression_abs: 2.5}", 1.2, "passed"),
        ("{direction: smaller, max_regression_pct: 50, max_regression_abs: 1.5}", 1.2, "failed"),
        ("{direction: smaller}", 1.2, "failed"),
        ("{direction: equal, max_regression_pct: 5}", 0.8, "failed"),
        ("{direction: larger, max_regression_pct: 5}", 0.8, "failed"),
    ],
)
def test_a_metric_fails_where_it_is_worse_than_allowed(tmp_path, rule, factor, outcome):
    a, b = result(10.0, 1), result(10.0 * factor, 2)
    assert outcomes(tmp_path, f"  latency_ms: {rule}\n", a, b) == [outcome]


def test_a_score_and_a_size_are_judged_in_their_own_unit(tmp_path):
    text = (
        "  top1: {direction: larger, max_regression_abs: 0.1}\n"
        "  artifact_bytes: {direction: smaller, max_regression_abs: 100}\n"
    )
    a, b = scored(0.9), replace(scored(0.6), artifact_bytes=scored(0.9).artifact_bytes + 101)
    checks = judge(policy(tmp_path, text), [compare(a, b)])
    assert [check.outcome for check in checks] == ["failed", "failed"]
    assert "0.3 worse, 0.1 is allowed" in checks[0].message
    assert "101 bytes worse, 100 is allowed" in checks[1].message
    assert failed(checks) == checks


@pytest.mark.parametrize(("missing", "outcome"), [("fail", "failed"), ("warn", "warned"), ("ignore", "ignored")])
def test_what_is_missing_or_not_comparable_does_what_the_policy_says(tmp_path, missing, outcome):
    text = "".join(f"  {name}: {{direction: smaller, missing: {missing}}}\n" for name in ("energy_mj", "latency_ms"))
    b = result(measured=latency(10.0, 2), device="attic-pi")
    checks = judge(policy(tmp_path, text), [compare(result(10.0, 1), b)])
    assert [check.outcome for check in checks] == [outcome, outcome]
    assert checks[0].message == "energy_mj was not measured"
    assert "not comparable: device kitchen-pi against attic-pi" in checks[1].message


def test_missing_fails_where_the_policy_says_nothing(tmp_path):
    assert outcomes(tmp_path, "  energy_mj: {direction: smaller}\n", result(), result()) == ["failed"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  latency_ms: {direction: smaler}\n", r"policy\.yaml:3: .*cannot be 'smaler'. Did you mean 'smaller'"),
        ("  latency_ms: {direction: smaller, max_regresion_pct: 5}\n", "Did you mean 'max_regression_pct'"),
        ("  latency_ms: {max_regression_pct: 5}\n", "missing required field `direction`"),
        ("  latency_ms: {direction: smaller, max_regression_pct: -1}\n", r"policy\.yaml:3: .*is -1"),
        ("  latency_ms: {direction: smaller, max_regression_abs: .nan}\n", "is nan"),
        ("  {}\n", "names no metric"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_line(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        policy(tmp_path, text)
