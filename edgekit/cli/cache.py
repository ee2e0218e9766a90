"""`edgekit cache`: what is cached, and clearing it."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli.common import verb
from edgekit.cli.screen import Screen


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and clear what is cached.")
    app.add_typer(group, name="cache")

    @verb(group, "show", example="edgekit cache show\nedgekit cache show --json")
    def show(screen: Screen) -> None:
        """Say what is cached, where, and how much it takes."""
        from rich.table import Table

        from edgekit.core import schema
        from edgekit.core.units import format_bytes
        from edgekit.flow.cache import Cache

        cache = Cache()
        usage = cache.usage()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("kind", "entries", "size"):
            table.add_column(column)
        for entry in usage:
            table.add_row(entry.kind, str(entry.entries), format_bytes(entry.bytes))
        total = sum(entry.bytes for entry in usage)
        screen.answer(
            {"schema_version": 1, "path": str(cache.root), "bytes": total, "kinds": schema.to_plain(usage)},
            table,
            f"{format_bytes(total)} in {cache.root}",
        )

    @verb(group, "clear", example="edgekit cache clear\nedgekit cache clear --older-than 30")
    def clear(
        screen: Screen,
        older_than: Annotated[float, typer.Option("--older-than", help="Only what was not used for so many days.")] = 0,
    ) -> None:
        """Remove what is cached; everything in it can be made again."""
        from edgekit.core.units import format_bytes
        from edgekit.flow.cache import Cache

        freed = Cache().clear(older_than)
        screen.answer({"schema_version": 1, "freed_bytes": freed}, f"{format_bytes(freed)} freed")
