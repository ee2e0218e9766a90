"""`edgekit sensitivity`: what each layer costs in each precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options
from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.flow.sensitivity import Sensitivity


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "sensitivity",
        example="edgekit sensitivity\nedgekit sensitivity model.py:build --task task.py:Digits --html sensitivity.html\n"
        "edgekit sensitivity --precisions static_wi8_ai8,weight_only_wi4_afp32 --max-drop 0.01",
    )
    def sensitivity(
        screen: Screen,
        source: options.Source = None,
        precisions: Annotated[
            str | None,
            typer.Option(
                "--precisions", help="Names with commas: float16, static_wi8_ai8, …; the usual ones by default."
            ),
        ] = None,
        layers: Annotated[
            list[str] | None,
            typer.Option("--layers", help="A module path, or a pattern with *; may be given several times."),
        ] = None,
        split: Annotated[str, typer.Option("--split", help="The split that judges: validation or calibration.")] = (
            "validation"
        ),
        examples: Annotated[
            int | None, typer.Option("--examples", help="Only that many of its examples; the metric needs all.", min=1)
        ] = None,
        max_drop: Annotated[
            float | None,
            typer.Option("--max-drop", help="Choose mixed precision that loses at most this much.", min=0),
        ] = None,
        max_bytes: Annotated[
            int | None,
            typer.Option("--max-bytes", help="Choose mixed precision whose weights take at most so many bytes.", min=1),
        ] = None,
        recipe: options.Recipe = None,
        name: options.Name = None,
        task: options.Task = None,
        weights: options.Weights = None,
        html: options.Html = None,
        no_cache: options.NoCache = False,
    ) -> None:
        """Quantize each layer alone, in each precision, and show what that costs; the most sensitive layer first."""
        from edgekit.core.errors import ConfigError
        from edgekit.flow.imported import as_torch
        from edgekit.flow.recipe import Recipe
        from edgekit.flow.sensitivity import PRECISIONS, Request, measure
        from edgekit.report import sensitivity as shown

        if max_drop is not None and max_bytes is not None:
            raise ConfigError("Mixed precision is chosen by --max-drop or by --max-bytes, not by both.")
        project = options.project_of(source, name, task, recipe, None, weights)
        builder = options.builder_of(project, screen, no_cache=no_cache)
        wanted = tuple(part.strip() for part in precisions.split(",") if part.strip()) if precisions else PRECISIONS
        state = as_torch(builder.compressed(project.recipe or Recipe()), builder.tools)
        request = Request(wanted, tuple(layers or ()), split, examples)
        found = measure(state, builder.tools, request)
        overrides = _mixed(found, max_drop, max_bytes)
        if html is not None:
            shown.write_html(found, project.name, overrides, html)
            screen.note(f"sensitivity: {html}")
        chosen = [shown.recipe_of(overrides)] if overrides else []
        screen.answer(shown.document(found, overrides), *shown.renderables(found), *chosen)


def _mixed(found: Sensitivity, max_drop: float | None, max_bytes: int | None) -> dict[str, str] | None:
    """Overrides under a budget; None where there is none."""
    from edgekit.flow.mixed import choices_of, choose_mixed

    if max_drop is not None:
        return choose_mixed(choices_of(found), max_loss=max_drop)
    if max_bytes is None:
        return None
    whole = sum({effect.layer: 4 * effect.weights for effect in found.effects}.values())
    return choose_mixed(choices_of(found), min_bytes_saved=max(0, whole - max_bytes))
