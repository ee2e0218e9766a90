"""Gate: a policy file that says which differences a build server lets pass.

    schema_version: 1
    metrics:
      latency_ms: {direction: smaller, max_regression_pct: 5}
      artifact_bytes: {direction: smaller, max_regression_abs: 100000}
      top1: {direction: larger, max_regression_abs: 0.01, missing: warn}

A metric fails where it got worse, by more than chance explains, and by more than the policy allows. Noise alone does not
fail a build, and is not passed in silence either: what could not be told is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.flow.compare import NOT_COMPARABLE, SAME, Comparison, Row

Outcome = Literal["passed", "failed", "warned", "ignored"]


@dataclass(frozen=True)
class Rule:
    """What one metric may do.

    Attributes:
        direction: Which way is better; `equal` where any change is a regression.
        max_regression_pct: How much worse it may get, in percent of A.
        max_regression_abs: The same in the metric's own unit. Where both are given, either is enough to fail.
        missing: What happens where the metric is absent, or not comparable.
    """

    direction: Literal["smaller", "larger", "equal"]
    max_regression_pct: float | None = None
    max_regression_abs: float | None = None
    missing: Literal["fail", "warn", "ignore"] = "fail"


@dataclass(frozen=True)
class Policy:
    """A policy file."""

    schema_version: int
    metrics: Mapping[str, Rule]


@dataclass(frozen=True)
class Check:
    """What a rule made of a comparison.

    Attributes:
        metric: The metric.
        subject: What was compared.
        outcome: Whether it passed.
        message: Why.
    """

    metric: str
    subject: str
    outcome: Outcome
    message: str


def load_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        ConfigError: It is missing, has an unknown key, or limits what cannot be.
    """
    document = schema.load_yaml(path)
    policy = schema.versioned(Policy, document)
    if not policy.metrics:
        raise ConfigError(f"{path}: `metrics` names no metric, so that nothing could ever fail.")
    for name, rule in policy.metrics.items():
        for limit in ("max_regression_pct", "max_regression_abs"):
            value = getattr(rule, limit)
            if value is not None and not value >= 0:
                raise ConfigError(f"{document.where('metrics', name, limit)}: `{limit}` is {value}; it is 0 or more.")
    return policy


def judge(policy: Policy, comparisons: Sequence[Comparison]) -> list[Check]:
    """One check for each metric of the policy and each comparison."""
    return [
        _check(name, rule, comparison, comparison.row(name))
        for comparison in comparisons
        for name, rule in policy.metrics.items()
    ]


def failed(checks: Sequence[Check]) -> list[Check]:
    """Those that keep a build from passing."""
    return [check for check in checks if check.outcome == "failed"]


def _check(name: str, rule: Rule, comparison: Comparison, row: Row | None) -> Check:
    subject = f"{comparison.b.label} against {comparison.a.label} on {comparison.b.device}"
    if row is None or row.verdict == NOT_COMPARABLE:
        why = f"{name} was not measured" if row is None else f"{name} is not comparable: {row.reason}"
        outcome: Outcome = {"fail": "failed", "warn": "warned", "ignore": "ignored"}[rule.missing]  # type: ignore[assignment]
        return Check(name, subject, outcome, why)
    said = describe(row)
    if row.verdict == SAME:
        return Check(name, subject, "passed", said)
    over = _over(rule, row)
    return Check(name, subject, "failed" if over else "passed", f"{said}{f'; {over}' if over else ''}")


def _over(rule: Rule, row: Row) -> str:
    """How a difference breaks the rule; empty where it does not."""
    if row.a is None or row.b is None:
        return ""
    # The estimate that respects the rounds, where there is one: the two medians alone do not.
    change = row.a * (row.ratio.estimate - 1) if row.ratio is not None else row.b - row.a
    worse = {"smaller": change, "larger": -change, "equal": abs(change)}[rule.direction]
    if worse <= 0:
        return ""
    limits = []
    if rule.max_regression_pct is not None:
        # A share of nothing: any regression from 0 is more than any share of it.
        share = 100 * worse / abs(row.a) if row.a else float("inf")
        limits.append(
            (share > rule.max_regression_pct, f"{share:.3g} % worse, {rule.max_regression_pct:g} % is allowed")
        )
    if rule.max_regression_abs is not None:
        unit = f" {row.unit}" if row.unit else ""
        limits.append(
            (worse > rule.max_regression_abs, f"{worse:.4g}{unit} worse, {rule.max_regression_abs:g} is allowed")
        )
    if not limits:
        return "no regression is allowed"
    return "; ".join(text for broken, text in limits if broken)


def describe(row: Row) -> str:
    """A row in one sentence's words: verdict, ratio with interval, p, and what would have been found."""
    parts = [f"{row.metric}: {row.verdict}"]
    if row.ratio is not None and row.test == "exact":
        parts.append(f"ratio {row.ratio.estimate:.4g}")
    elif row.ratio is not None:
        parts.append(
            f"ratio {row.ratio.estimate:.4g} ({100 * row.ratio.confidence:g} % interval {row.ratio.low:.4g} to"
            f" {row.ratio.high:.4g})"
        )
    elif row.difference is not None:
        parts.append(f"change {row.difference.estimate:+.4g} ({row.difference.low:+.4g} to {row.difference.high:+.4g})")
    if row.p is not None:
        parts.append(f"p = {row.p:.2g}, {row.test}")
    if row.blind_to:
        parts.append(row.blind_to)
    return ", ".join(parts) + (f": {row.reason}" if row.reason else "")
