"""`edgekit compress`: run the recipe's passes and write a checkpoint and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options
from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.core.target import Target
    from edgekit.flow.build import Builder
    from edgekit.flow.recipe import Budget, Recipe
    from edgekit.report.compression import Shown

_REPORT = "report.html"


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "compress",
        example="edgekit compress\nedgekit compress model.py:build --recipe recipe.yaml --task task.py:Digits --seed 1\n"
        "edgekit compress --target rpi4",
    )
    def compress(
        screen: Screen,
        source: options.Source = None,
        recipe: options.Recipe = None,
        name: options.Name = None,
        task: options.Task = None,
        weights: options.Weights = None,
        seed: options.Seed = None,
        target: Annotated[
            str | None,
            typer.Option(
                "--target", "-t", help="Time the stages in this target's runtime, on this machine; in torch without."
            ),
        ] = None,
        backend: options.BackendName = None,
        out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the checkpoint.")] = None,
        html: Annotated[
            Path | None,
            typer.Option("--html", help=f"The HTML report's file; {_REPORT} in the checkpoint's folder by default."),
        ] = None,
        no_cache: options.NoCache = False,
    ) -> None:
        """Run the recipe's passes, score before and after each, write a checkpoint, a .pt2 and a report."""
        from edgekit.core.errors import ConfigError
        from edgekit.core.target import load_target
        from edgekit.flow.checkpoint import save_checkpoint
        from edgekit.flow.convert import DEFAULT_TIMEOUT_SECONDS
        from edgekit.flow.cost import runnable_backend
        from edgekit.report import compression as shown

        if html is not None:
            shown.require_html()
        project = options.project_of(source, name, task, recipe, None, weights, seed)
        where = (load_target(target, project.root), backend) if target is not None else None
        if backend is not None and where is None:
            raise ConfigError("--backend says in which of a target's runtimes stages are timed.", "--target linux-x86")
        if where is not None:
            runnable_backend(*where)
        if project.recipe is None or not project.recipe.passes:
            raise ConfigError(
                "There is no pass to run: no recipe was given, or it has none.",
                "--recipe recipe.yaml, with: passes: [fold_batch_norm: {}]",
            )
        builder = options.builder_of(project, screen, DEFAULT_TIMEOUT_SECONDS, no_cache)
        found = _run(builder, project.recipe, where)
        folder = out or project.root / "build" / project.name / "checkpoint"
        save_checkpoint(found.made.state.live(), project.source_request, folder, with_program=True)
        report = html or (folder / _REPORT if shown.can_write_html() else None)
        if report is not None:
            shown.write_html(found, report)
        written = {"checkpoint": str(folder), "report": str(report) if report else None}
        said = [f"checkpoint: {folder}", *([f"report: {report}"] if report else [])]
        screen.answer(shown.document(found) | written, *shown.renderables(found), *said)


def _run(builder: Builder, recipe: Recipe, where: tuple[Target, str | None] | None) -> Shown:
    from edgekit.flow.cost import time_files, time_stages
    from edgekit.flow.pipeline import metrics_of
    from edgekit.report.compression import Shown

    made = builder.compression(recipe)
    data = builder.data
    validation, test = (data.split("validation"), data.split("test")) if data is not None else (None, None)
    return Shown(
        name=builder.project.name,
        made=made,
        timings=time_files(made, recipe, builder, where) if where else time_stages(made.stages, builder.progress),
        metric=data.metric if data is not None and validation is not None else "",
        direction=data.direction if data is not None else "larger",
        examples=validation.examples if validation is not None else 0,
        test=(metrics_of(made.source, builder.tools, "test"), metrics_of(made.state, builder.tools, "test")),
        test_examples=test.examples if test is not None else 0,
        budget=_words(recipe.budget) if validation is not None else "",
    )


def _words(budget: Budget | None) -> str:
    if budget is None:
        return ""
    drop = str(budget.max_drop).removeprefix("rel:")
    what = "ends the run" if budget.on_break == "stop" else "is rolled back"
    return f"budget: a pass with which the loss against the source exceeds {drop} on the validation split {what}"
