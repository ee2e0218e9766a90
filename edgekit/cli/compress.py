"""`edgekit compress`: run the recipe's passes and write a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import options
from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.flow.state import ModelInfo


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "compress",
        example="edgekit compress\nedgekit compress model.py:build --recipe recipe.yaml --task task.py:Digits",
    )
    def compress(
        screen: Screen,
        source: options.Source = None,
        recipe: options.Recipe = None,
        name: options.Name = None,
        task: options.Task = None,
        weights: options.Weights = None,
        out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the checkpoint.")] = None,
        no_cache: options.NoCache = False,
    ) -> None:
        """Run the recipe's passes, score before and after each, write a checkpoint and a .pt2."""
        from edgekit.core.errors import ConfigError
        from edgekit.flow.checkpoint import save_checkpoint
        from edgekit.flow.convert import DEFAULT_TIMEOUT_SECONDS

        project = options.project_of(source, name, task, recipe, None, weights)
        if project.recipe is None or not project.recipe.passes:
            raise ConfigError(
                "There is no pass to run: no recipe was given, or it has none.",
                "--recipe recipe.yaml, with: passes: [fold_batch_norm: {}]",
            )
        builder = options.builder_of(project, screen, DEFAULT_TIMEOUT_SECONDS, no_cache)
        state = builder.compressed(project.recipe)
        folder = out or project.root / "build" / project.name / "checkpoint"
        save_checkpoint(state.live(), project.source_request, folder, with_program=True)
        screen.answer(_document(state.info, folder), _table(state.info), f"checkpoint: {folder}")


def _document(info: ModelInfo, folder: Path) -> dict[str, Any]:
    from edgekit.core import schema

    return {
        "schema_version": 1,
        "checkpoint": str(folder),
        "digest": info.digest,
        "parameters": info.parameters,
        "history": schema.to_plain(info.history),
    }


def _table(info: ModelInfo) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("pass", "changed", "parameters", "metric (validation)", "notes"):
        table.add_column(column, overflow="fold")
    for record in info.history:
        metric = ", ".join(
            f"{name} {record.metrics_before[name]:.4g} → {value:.4g}" for name, value in record.metrics_after.items()
        )
        table.add_row(
            record.name,
            "yes" if record.modified else "no",
            f"{record.parameters_before:,} → {record.parameters_after:,}",
            metric or "no task",
            "; ".join(record.notes),
        )
    return table
