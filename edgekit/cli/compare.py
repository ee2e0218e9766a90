"""`edgekit compare`: two results beside each other, and a gate for build servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options
from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.core.result import Result
    from edgekit.flow.compare import Comparison
    from edgekit.flow.gate import Check
    from edgekit.flow.store import Store

_GATE_FAILED = 1


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "compare",
        example="edgekit compare before after\n"
        "edgekit compare 20261124T0930 20261124T1015 --gate policy.yaml --junit gate.xml --markdown gate.md\n"
        "edgekit compare --save-baseline main 20261124T0930\n"
        "edgekit compare --baseline main 20261124T1015",
    )
    def compare(
        screen: Screen,
        names: Annotated[
            list[str],
            typer.Argument(
                metavar="A B",
                help="Runs or results by their first characters, tags, or JSON files. B is judged against A.",
            ),
        ],
        baseline: Annotated[
            str | None, typer.Option("--baseline", help="Stands for A: a baseline by its name.")
        ] = None,
        save_baseline: Annotated[
            str | None, typer.Option("--save-baseline", help="Keep the results of the one run given under this name.")
        ] = None,
        alpha: Annotated[
            float, typer.Option("--alpha", help="How often equal things may be called different, for each metric.")
        ] = 0.01,
        allow: Annotated[
            list[str] | None,
            typer.Option("--allow", help="Compare although this differs: cpu, device, runtime, threads, …"),
        ] = None,
        gate: Annotated[
            Path | None, typer.Option("--gate", help="A policy file; exit 1 where a metric breaks it.")
        ] = None,
        markdown: Annotated[
            Path | None, typer.Option("--markdown", help="Write a Markdown summary to this file.")
        ] = None,
        junit: Annotated[
            Path | None, typer.Option("--junit", help="Write the gate's checks as JUnit XML to this file.")
        ] = None,
    ) -> int:
        """Ratios with intervals and a test, or why they are not comparable; exit 1 where a gate fails."""
        from edgekit.core.errors import ConfigError
        from edgekit.core.places import find_root
        from edgekit.flow import baselines
        from edgekit.flow.gate import failed, judge, load_policy

        _require_sides(names, baseline, save_baseline)
        if junit is not None and gate is None:
            raise ConfigError(
                "--junit writes what a gate found.", "edgekit compare A B --gate policy.yaml --junit gate.xml"
            )
        root = find_root(Path.cwd())
        policy = load_policy(gate) if gate is not None else None
        with options.store_of(root) as store:
            if save_baseline is not None:
                _save(screen, root, save_baseline, _results(names[0], store))
                return 0
            a = baselines.load(root, baseline).results if baseline is not None else _results(names[0], store)
            comparisons = _compared(a, _results(names[-1], store), alpha, tuple(allow or ()))
        checks = judge(policy, comparisons) if policy is not None else []
        _answer(screen, comparisons, checks, markdown, junit)
        return _GATE_FAILED if failed(checks) else 0


def _require_sides(names: Sequence[str], baseline: str | None, save_baseline: str | None) -> None:
    from edgekit.core.errors import ConfigError

    if baseline is not None and save_baseline is not None:
        raise ConfigError("--baseline compares and --save-baseline keeps: one at a time.", "edgekit compare --help")
    wanted = 1 if baseline is not None or save_baseline is not None else 2
    if len(names) != wanted:
        given = "one is given" if len(names) == 1 else f"{len(names)} are given"
        raise ConfigError(
            f"{'With --baseline or --save-baseline one run is named' if wanted == 1 else 'Two runs are compared'}; {given}.",
            "edgekit compare before after    (edgekit report --list lists the runs)",
        )


def _results(name: str, store: Store) -> list[Result]:
    from edgekit.flow.selection import results_of

    return results_of(name, store)


def _save(screen: Screen, root: Path, name: str, results: Sequence[Result]) -> None:
    from edgekit.flow import baselines

    path = baselines.save(root, name, results)
    digests = list(dict.fromkeys(result.artifact_digest for result in results))
    kept = {"schema_version": 1, "baseline": name, "file": str(path), "artifacts": digests, "results": len(results)}
    screen.answer(kept, f"{name}: {len(results)} result(s), {', '.join(d[:12] for d in digests)}, kept in {path}")


def _compared(a: Sequence[Result], b: Sequence[Result], alpha: float, allow: tuple[str, ...]) -> list[Comparison]:
    from edgekit.flow.compare import compare, matched

    return [compare(one, other, alpha=alpha, allow=allow) for one, other in matched(a, b)]


def _answer(
    screen: Screen,
    comparisons: Sequence[Comparison],
    checks: Sequence[Check],
    markdown: Path | None,
    junit: Path | None,
) -> None:
    from edgekit.core.files import write_atomic
    from edgekit.report import comparison as report

    if markdown is not None:
        write_atomic(markdown, report.markdown(comparisons, checks))
        screen.note(f"summary: {markdown}")
    if junit is not None:
        write_atomic(junit, report.junit(checks))
        screen.note(f"JUnit: {junit}")
    screen.answer(report.document(comparisons, checks), *report.renderables(comparisons, checks))
