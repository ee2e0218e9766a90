"""Comparisons and gates as tables, as JSON, as Markdown for a pull request, and as JUnit XML for a build server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from edgekit.core import schema
from edgekit.core.units import format_bytes, format_ms
from edgekit.flow.compare import NOT_COMPARABLE, Comparison, Row, Side
from edgekit.flow.gate import Check, failed
from edgekit.report.markdown import escape

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEADS = ("metric", "A", "B", "B/A", "interval", "p", "verdict")
_DASH = "–"
# XML 1.0 has no place for other control characters, not even escaped.
_NO_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def document(comparisons: Sequence[Comparison], checks: Sequence[Check] = ()) -> dict[str, Any]:
    """Everything as plain data."""
    shown: dict[str, Any] = {
        "schema_version": schema.SCHEMA_VERSION,
        "kind": "comparison",
        "comparisons": [schema.to_plain(comparison) for comparison in comparisons],
    }
    if checks:
        shown["gate"] = {"passed": not failed(checks), "checks": [schema.to_plain(check) for check in checks]}
    return shown


def renderables(comparisons: Sequence[Comparison], checks: Sequence[Check] = ()) -> list[RenderableType]:
    """The parts of it for a terminal."""
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for comparison in comparisons:
        parts += [Text(), *(Text(line, style="bold") for line in _title(comparison))]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for head in _HEADS:
            table.add_column(head, justify="left" if head in ("metric", "verdict") else "right", overflow="fold")
        for row in comparison.rows:
            table.add_row(*_cells(row), style="" if row.improved is not False else "yellow")
        parts += [table, *(Text(f"  • {note}") for note in _notes(comparison))]
    if checks:
        parts += [Text(), Text("Gate", style="bold")]
        parts += [Text(f"  {check.outcome}: {check.message}") for check in checks]
    return parts


def markdown(comparisons: Sequence[Comparison], checks: Sequence[Check] = ()) -> str:
    """A summary as Markdown, the gate's outcome first, ending in a newline."""
    lines = ["# Comparison", ""]
    if checks:
        broken = failed(checks)
        lines += [f"**Gate: {f'{len(broken)} of {len(checks)} checks failed' if broken else 'passed'}**", ""]
        lines += [f"- {check.outcome}: {escape(check.message)} ({escape(check.subject)})" for check in checks]
        lines.append("")
    for comparison in comparisons:
        lines += [f"## {escape(comparison.b.label)} on {escape(comparison.b.device)}", ""]
        lines += [f"- {escape(line)}" for line in _title(comparison)]
        lines += ["", _line(_HEADS), _line([":--", "--:", "--:", "--:", "--:", "--:", ":--"])]
        lines += [_line([escape(cell) for cell in _cells(row)]) for row in comparison.rows]
        lines += ["", *(f"- {escape(note)}" for note in _notes(comparison)), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def junit(checks: Sequence[Check]) -> str:
    """The gate as JUnit XML: a test case a check; what was warned of or ignored is skipped, with its message."""
    broken = failed(checks)
    skipped = [check for check in checks if check.outcome in ("warned", "ignored")]
    counts = {"tests": str(len(checks)), "failures": str(len(broken)), "skipped": str(len(skipped)), "errors": "0"}
    suites = ET.Element("testsuites", {"name": "edgekit compare", **counts})
    suite = ET.SubElement(suites, "testsuite", {"name": "gate", **counts})
    for check in checks:
        names = {"classname": _xml(check.subject), "name": _xml(check.metric)}
        case = ET.SubElement(suite, "testcase", names)
        message = {"message": _xml(check.message)}
        if check.outcome == "failed":
            ET.SubElement(case, "failure", {**message, "type": "regression"}).text = message["message"]
        elif check.outcome == "passed":
            ET.SubElement(case, "system-out").text = message["message"]
        else:
            ET.SubElement(case, "skipped", message)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _title(comparison: Comparison) -> list[str]:
    return [f"{name}: {_side(side)}" for name, side in (("A", comparison.a), ("B", comparison.b))]


def _side(side: Side) -> str:
    emulated = ", emulated" if side.emulated else ""
    return f"{side.label} on {side.device}{emulated}, run {side.run}, artifact {side.artifact_digest[:12]}"


def _cells(row: Row) -> list[str]:
    ratio, interval = _DASH, _DASH
    if row.ratio is not None:
        ratio = f"{row.ratio.estimate:.4g}"
        interval = ratio if row.test == "exact" else f"{row.ratio.low:.4g} … {row.ratio.high:.4g}"
    elif row.difference is not None:
        ratio = f"{row.difference.estimate:+.4g}"
        interval = f"{row.difference.low:+.4g} … {row.difference.high:+.4g}"
    p = _DASH if row.p is None else "< 0.0001" if row.p < 1e-4 else f"{row.p:.2g}"
    return [row.metric, _figure(row, row.a), _figure(row, row.b), ratio, interval, p, _verdict(row)]


def _figure(row: Row, value: float | None) -> str:
    if value is None:
        return _DASH
    if row.unit == "ms":
        return format_ms(value)
    if row.unit == "bytes":
        return format_bytes(value)
    return f"{value:.4g}{f' {row.unit}' if row.unit else ''}"


def _verdict(row: Row) -> str:
    if row.blind_to:
        return f"{row.verdict} ({row.blind_to})"
    return f"{row.verdict}: {row.reason}" if row.verdict == NOT_COMPARABLE else row.verdict


def _notes(comparison: Comparison) -> Iterator[str]:
    tests = dict.fromkeys(row.test for row in comparison.rows if row.p is not None)
    if tests:
        yield (
            f"alpha {comparison.alpha:g} for each metric; intervals hold {100 * (1 - comparison.alpha):g} %;"
            f" tests: {', '.join(tests)}{'; measured in turns' if comparison.in_turns else ''}"
        )
    yield from comparison.notes


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
