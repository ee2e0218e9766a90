"""A report as one JSON document."""

from __future__ import annotations

import json
import math
from typing import Any

from edgekit._version import __version__
from edgekit.core import result as results
from edgekit.core import schema
from edgekit.report.model import Report, Row
from edgekit.report.words import headline


def document(report: Report) -> dict[str, Any]:
    """The report as plain data: run, headlines, results as `edgekit.core.result.document` gives them, comparisons.

    What is not a finite number is null.
    """
    plain = {
        "schema_version": schema.SCHEMA_VERSION,
        "kind": "report",
        "edgekit": __version__,
        "runs": list(report.runs),
        "commands": list(report.commands),
        "first": report.first,
        "last": report.last,
        "groups": [
            {
                "model": group.model,
                "device": group.device,
                "targets": list(group.targets),
                "emulated": group.emulated,
                "headline": headline(group),
            }
            for group in report.groups
        ],
        "results": [results.document(row.result) for row in report.rows],
        "comparisons": [_comparison(row) for row in report.rows if row.comparison],
    }
    return {key: _finite(value) for key, value in plain.items()}


def render(report: Report) -> str:
    """The document as indented JSON that every parser reads, ending in a newline."""
    return json.dumps(document(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _comparison(row: Row) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": row.result.id} | schema.to_plain(row.comparison)
    return shown


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
