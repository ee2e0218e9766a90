"""`edgekit targets`: the classes of device that models can be compiled for."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.core.target import Target


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(app, "targets", example="edgekit targets\nedgekit targets rpi4\nedgekit targets --json")
    def targets(
        screen: Screen, name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show one in full.")] = None
    ) -> None:
        """List the targets, or explain one."""
        from edgekit.core.places import find_root
        from edgekit.core.target import find_targets, load_target, read_target

        root = find_root(Path.cwd())
        if name is not None:
            _one(screen, load_target(name, root))
            return
        found = [read_target(path) for path in find_targets(root).values()]
        listing = [_document(target) for target in found]
        screen.answer({"schema_version": 1, "targets": listing}, _table(found))


def missing_parts(target: Target) -> list[str]:
    """What of a target this edgekit does not have yet: backends, transports, runners."""
    lacking = []
    for kind, names in (("backend", target.backends), ("transport", target.transports), ("runner", target.runners)):
        if names and not _any_known(f"edgekit.{kind}s", names):
            lacking.append(f"{kind} {' or '.join(names)}")
    return lacking


def _any_known(package: str, names: tuple[str, ...]) -> bool:
    """Whether a plugin of one of the names is here: our own first, since asking for others' takes its time."""
    from edgekit.core.registry import plugin_names

    return not plugin_names(package).isdisjoint(names) or any((package, name) in _others() for name in names)


@functools.cache
def _others() -> frozenset[tuple[str, str]]:
    """Group and name of every plugin that other packages bring; one look through all that is installed."""
    # Parsing the metadata of all that is installed costs more than everything else here: a look at the raw files tells
    # whether anybody brings a plugin at all.
    files = (file for folder in sys.path if folder for file in Path(folder).glob("*.dist-info/entry_points.txt"))
    if not any(b"[edgekit." in file.read_bytes() for file in files):
        return frozenset()
    from importlib.metadata import entry_points

    found = entry_points()
    groups = [group for group in found.groups if group.startswith("edgekit.")]
    return frozenset((group, point.name) for group in groups for point in found.select(group=group))


def _document(target: Target) -> dict[str, Any]:
    from edgekit.core import schema

    lacking = missing_parts(target)
    return {**schema.to_plain(target), "deployable": not lacking, "missing": lacking}


def _table(found: list[Target]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("target", "device", "cpu", "backends", "reached by", "state"):
        table.add_column(column, overflow="fold")
    for target in found:
        lacking = missing_parts(target)
        table.add_row(
            target.name,
            target.summary,
            f"{target.cpu.arch} {target.cpu.model}".strip(),
            ", ".join(target.backends),
            ", ".join(target.transports) or ", ".join(target.runners),
            f"not built yet: {'; '.join(lacking)}" if lacking else "ready",
        )
    return table


def _one(screen: Screen, target: Target) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    cpu, os = target.cpu, target.os
    rows = {
        "target": target.name,
        "device": target.summary,
        "soc": target.soc,
        "cpu": f"{cpu.arch} {cpu.model}, {cpu.cores or '?'} cores{f' at {cpu.max_mhz} MHz' if cpu.max_mhz else ''}",
        "isa": ", ".join(cpu.isa),
        "ram": ", ".join(f"{size} MiB" for size in target.ram_mib),
        "os": f"{os.name or os.family}{f', glibc {os.glibc}' if os.glibc else ''}{f', Python {os.python}' if os.python else ''}",
        "accelerators": ", ".join(target.accelerators),
        "precisions": ", ".join(target.precisions),
        "backends": ", ".join(target.backends),
        "transports": ", ".join(target.transports),
        "runners": ", ".join(target.runners),
        "runtimes": ", ".join(f"{name} {version}" for name, version in target.runtimes.items()),
        "threads": str(target.threads),
        "notes": "\n".join(target.notes),
        "not built yet": "; ".join(missing_parts(target)),
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    screen.answer(_document(target), table)
