"""A report as Markdown (GitHub's), for pull requests and release notes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgekit.report.model import Report
from edgekit.report.words import ACCURACY, DEFINITIONS, SPEED, Column, conditions, headline, moment, notes

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#])")


def render(report: Report) -> str:
    """The report as one Markdown text, ending in a newline."""
    lines = [f"# {escape(report.title)}", ""]
    for group in report.groups:
        lines += [f"- **{escape(group.title)}**: {escape(headline(group))}"]
    for title, columns in (("Speed and memory", SPEED), ("Accuracy", ACCURACY)):
        lines += ["", f"## {title}", "", *_table(report, columns)]
    found = notes(report)
    if found:
        lines += ["", "## To know", "", *(f"- {escape(note)}" for note in found)]
    lines += ["", "## Conditions", ""]
    for group in report.groups:
        listed = "; ".join(f"{name}: {escape(text)}" for name, text in conditions(group).items())
        lines.append(f"- **{escape(group.title)}**: {listed}")
    lines += [
        "",
        "## What the figures mean",
        "",
        *(f"- **{name}**: {escape(text)}" for name, text in DEFINITIONS.items()),
    ]
    made = [f"Made {escape(moment(report.last))}, run {escape(', '.join(report.runs))}."]
    lines += ["", *made, *(f"\n{_code(command)}" for command in report.commands)]
    return "\n".join(lines) + "\n"


def _table(report: Report, columns: Sequence[Column]) -> list[str]:
    heads = ["Model", "Device", "Artifact"]
    heads += [f"{column.name} ({column.unit})" if column.unit else column.name for column in columns]
    lines = [_line(heads), _line([":--"] * 3 + ["--:"] * len(columns))]
    for group in report.groups:
        device = f"{group.device} (emulated)" if group.emulated else group.device
        lines += [
            _line([escape(text) for text in (group.model, device, row.label, *(c.cell(row) for c in columns))])
            for row in group.rows
        ]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    flat = " ".join(text.split())
    return _SPECIAL.sub(r"\\\1", flat.replace("&", "&amp;"))


def _code(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
