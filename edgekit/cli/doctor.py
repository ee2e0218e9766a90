"""`edgekit doctor`: what works here, what does not, and the command that mends it."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.backends.base import Backend


@dataclass(frozen=True)
class Check:
    """One thing that works here or does not.

    Attributes:
        kind: `backend`, `transport`, `frontend` or `tool`.
        name: Its name.
        what: What it is for.
        ok: Whether it works.
        versions: What is installed of it.
        mend: The command that mends it; empty where it works.
    """

    kind: str
    name: str
    what: str
    ok: bool
    versions: str = ""
    mend: str = ""


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(app, "doctor", example="edgekit doctor\nedgekit doctor --json")
    def doctor(screen: Screen) -> None:
        """Say which backends, transports and tools work here, and how to mend the rest."""
        from edgekit._version import __version__
        from edgekit.core import schema
        from edgekit.core.places import cache_dir

        checks = [*_backends(), *_frontends(), *_transports(), *_tools()]
        about = {
            "edgekit": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cache": str(cache_dir()),
        }
        screen.answer(
            {"schema_version": 1, **about, "checks": schema.to_plain(checks)},
            "  ".join(f"{key} {value}" for key, value in about.items()),
            _table(checks),
        )


def _pip(extra: str) -> str:
    return f"pip install 'edgekit[{extra}]'"


def _versions(names: tuple[str, ...]) -> str:
    from edgekit.core.extras import versions_of

    return ", ".join(f"{name} {version}" for name, version in versions_of(names).items())


def _backends() -> list[Check]:
    from edgekit.backends.base import registry

    found = []
    for name in registry.names():
        backend = registry.create(name)
        converts, runs = backend.can_convert(), backend.can_run()
        found.append(
            Check(
                "backend",
                f"{name}: convert",
                backend.summary,
                converts,
                _versions(backend.toolchain),
                "" if converts else _pip(backend.extra),
            )
        )
        runtime = _versions((backend.runtime_package,))
        found.append(
            Check(
                "backend",
                f"{name}: run here",
                backend.summary,
                runs,
                runtime,
                "" if runs else _to_run(backend),
            )
        )
    return found


def _to_run(backend: Backend) -> str:
    from edgekit.core.extras import is_installed

    # Core ML's library installs everywhere and runs on a Mac only: installing it again would mend nothing.
    if is_installed(backend.runtime_module):
        return f"{platform.system()} cannot; devices can"
    return _pip(backend.runtime_extra)


def _frontends() -> list[Check]:
    from edgekit.core.extras import is_installed
    from edgekit.frontends.base import registry

    found = []
    for name in registry.names():
        frontend = registry.get(name)
        module = {"torch": "torch", "onnx": "onnx", "keras": "keras"}.get(frontend.extra, frontend.extra)
        ok = is_installed(module)
        found.append(
            Check("frontend", name, frontend.summary, ok, _versions((module,)), "" if ok else _pip(frontend.extra))
        )
    return found


def _transports() -> list[Check]:
    from edgekit.transports.base import registry

    found = []
    for name in registry.names():
        transport = registry.get(name)
        mend = transport.missing()
        found.append(Check("transport", name, transport.summary, mend is None, mend=mend or ""))
    return found


def _tools() -> list[Check]:
    from edgekit.core.extras import is_installed

    charts = is_installed("plotly") and is_installed("jinja2")
    newer = sys.version_info >= (3, 11)
    return [
        Check(
            "tool",
            "HTML report",
            "one self-contained page",
            charts,
            _versions(("plotly", "jinja2")),
            "" if charts else _pip("report"),
        ),
        Check(
            "tool", "Python", "3.11 or newer", newer, platform.python_version(), "" if newer else "install Python 3.11"
        ),
    ]


def _table(checks: list[Check]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "what", "for", "installed", "to mend it"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "[green]works[/]" if check.ok else "[yellow]missing[/]"
        table.add_row(mark, f"{check.kind} {check.name}", check.what, check.versions, check.mend.replace("[", "\\["))
    return table
