"""Writes docs/onnx-operators.md: how many of the ONNX project's operator cases the importer passes.

python -m tests.conformance.onnx_report          write it
python -m tests.conformance.onnx_report --check  fail where what is committed says something else
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from edgekit.core.files import write_atomic
from edgekit.frontends._onnx_import.ops import load_all
from edgekit.frontends._onnx_import.registry import translated
from tests.conformance.onnx_cases import (
    Exclusion,
    Outcome,
    all_cases,
    exclusion_of,
    exclusions,
    run_case,
    settings,
)

_BODIES = "(function bodies, written out)"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "onnx-operators.md"


@dataclass(frozen=True)
class Run:
    """What became of all cases.

    Attributes:
        outcomes: Of the cases that were tried.
        excluded: How many cases each exclusion covers.
    """

    outcomes: tuple[Outcome, ...]
    excluded: tuple[tuple[Exclusion, int], ...]

    @property
    def failed(self) -> dict[str, str]:
        """Cases that were tried and not passed, and what was wrong."""
        return {outcome.name: outcome.problem for outcome in self.outcomes if outcome.problem}

    @property
    def share(self) -> float:
        """Passed of tried, 0 … 1."""
        return 1 - len(self.failed) / len(self.outcomes)


def run_all() -> Run:
    """Run every case that is not excluded."""
    counts: dict[Exclusion, int] = dict.fromkeys(exclusions(), 0)
    outcomes = []
    for case in all_cases():
        exclusion = exclusion_of(case)
        if exclusion is None:
            outcomes.append(run_case(case))
        else:
            counts[exclusion] += 1
    return Run(tuple(outcomes), tuple(counts.items()))


def page(run: Run) -> str:
    """The page, in Markdown."""
    import onnx

    passed, tried = len(run.outcomes) - len(run.failed), len(run.outcomes)
    excluded = sum(count for _, count in run.excluded)
    return "\n".join(
        [
            "# ONNX operators",
            "",
            "<!-- Written by `python -m tests.conformance.onnx_report`; do not edit. -->",
            "",
            "An `.onnx` file that is to reach LiteRT or Core ML, or a pass, is first imported into torch. This page says how",
            "well: each operator case of the ONNX project itself (`onnx.backend.test.case.node`) is imported, run, and",
            "compared with the case's own tolerances. ONNX Runtime and OpenVINO read the file directly and need none of it.",
            "",
            f"**{passed} of {tried} cases pass ({run.share:.1%})**, with onnx {onnx.__version__}; {excluded} more are not",
            f"tried, for the reasons below. Opset 13 to {onnx.defs.onnx_opset_version()}; older files are first converted to 13.",
            "",
            "Operands that decide shapes (`shape`, `axes`, `k`, …) have to be constants, because every shape of a compiled",
            "model is static; in the cases that have them as inputs they are given as constants. An operator that cannot be",
            "imported is named with its node, domain, opset and the reason, all such nodes in one message.",
            "",
            "## Tried, and not passed",
            "",
            "| case | why |",
            "|---|---|",
            *(
                f"| `{name}` | {settings()['known_failures'].get(name, problem)} |"
                for name, problem in run.failed.items()
            ),
            "",
            "## Not tried",
            "",
            "| cases | why | which |",
            "|---|---|---|",
            *(f"| {count} | {exclusion.reason} | {_which(exclusion)} |" for exclusion, count in run.excluded),
            "",
            "## By operator",
            "",
            "Passed of tried; `function` where the operator has no translation of its own and is computed through the",
            "function body that the ONNX standard gives for it.",
            "",
            "| operator | passed | how |",
            "|---|---|---|",
            *_by_operator(run),
            "",
        ]
    )


def _which(exclusion: Exclusion) -> str:
    parts = (*exclusion.operators, *exclusion.types, *exclusion.names)
    return ", ".join(f"`{part}`" for part in parts)


def _by_operator(run: Run) -> list[str]:
    load_all()
    own = {op_type if not domain else f"{domain}.{op_type}" for domain, op_type in translated()}
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in run.outcomes:
        # Cases of function bodies written out are named after the case, not after an operator.
        groups[outcome.operator if outcome.operator[:1].isupper() or "." in outcome.operator else _BODIES].append(
            outcome
        )
    rows = []
    for operator, outcomes in sorted(groups.items()):
        passed = sum(not outcome.problem for outcome in outcomes)
        written_out = operator == _BODIES
        how = "translated" if operator in own or written_out else "function"
        rows.append(f"| {operator} | {passed} of {len(outcomes)} | {how} |")
    return rows


def main() -> int:
    """Write or check the page."""
    text = page(run_all())
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PAGE} is out of date: python -m tests.conformance.onnx_report", file=sys.stderr)
        return 1
    write_atomic(PAGE, text)
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
