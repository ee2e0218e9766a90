"""A pytest plugin: where CI is set, a skipped test that is not in `allowed_skips.txt` fails the run.

A test that skips because something is missing looks like one that passed. On a person's machine that is a service; on
the build server it hides that a part of the product is not tested any more.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")
LIST_OPTION = "--allowed-skips"


@dataclass(frozen=True)
class Rule:
    """One allowed skip: patterns of a node id and of a reason, `*` for any text."""

    node: re.Pattern[str]
    reason: re.Pattern[str]

    def allows(self, node: str, reason: str) -> bool:
        """Whether this rule is about that skip."""
        return bool(self.node.fullmatch(node) and self.reason.fullmatch(reason))


def read_rules(path: Path) -> list[Rule]:
    """The rules in a file.

    Raises:
        pytest.UsageError: A line is not `<node id> | <reason>`.
    """
    rules = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        node, bar, reason = (part.strip() for part in text.partition("|"))
        if not (node and bar and reason):
            raise pytest.UsageError(f"{path}:{number}: expected `<node id> | <reason>`.")
        rules.append(Rule(_pattern(node), _pattern(reason)))
    return rules


def _pattern(text: str) -> re.Pattern[str]:
    # Not fnmatch: the brackets of parametrised tests are meant as they are.
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


class SkipGuard:
    """Collects the skips of a run and judges them at its end."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self.refused: list[tuple[str, str]] = []

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(rule.allows(report.nodeid, reason) for rule in self.rules):
            self.refused.append((report.nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.refused:
            return
        terminalreporter.section("skipped, but CI is set and they are not in tests/allowed_skips.txt", red=True)
        for node, reason in self.refused:
            terminalreporter.line(f"{node} | {reason}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file that lists the allowed skips can be another one, for this plugin's own tests."""
    parser.addoption(LIST_OPTION, default=str(ALLOWED), help="file of the tests that may be skipped where CI is set")


def pytest_configure(config: pytest.Config) -> None:
    """Judge in the main process only: with pytest-xdist the workers' reports arrive there."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipGuard(read_rules(Path(config.getoption(LIST_OPTION)))), "skip-guard")
