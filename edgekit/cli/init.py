"""`edgekit init`: a small project that works, to be changed into one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

_TEMPLATE = Path(__file__).parent / "project_template"


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(app, "init", example="edgekit init mymodel && cd mymodel && edgekit deploy --target linux-x86")
    def init(
        screen: Screen,
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made where it does not exist.")] = Path(),
    ) -> None:
        """Write a small working project: edgekit.yaml, model.py, task.py, and what they need."""
        from edgekit.core.errors import ConfigError
        from edgekit.core.files import write_atomic

        files = {path.name.removesuffix(".tmpl"): path for path in sorted(_TEMPLATE.glob("*.tmpl"))}
        there = [name for name in files if (folder / name).exists()]
        if there:
            raise ConfigError(
                f"'{folder}' already has {', '.join(there)}; nothing was written.", "edgekit init another-folder"
            )
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"'{folder}' is a file.", "edgekit init another-folder")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "model"
        for file, path in files.items():
            text = path.read_text(encoding="utf-8").replace("$name", name).replace("$target", host_target())
            write_atomic(folder / file, text)
        screen.answer(
            {"schema_version": 1, "folder": str(folder), "files": list(files)},
            f"{folder}: {', '.join(files)}",
            "next: " + (f"cd {folder} && " if folder != Path() else "") + f"edgekit deploy --target {host_target()}",
        )


def host_target() -> str:
    """The target that this machine is."""
    import platform

    return {"aarch64": "linux-arm64", "arm64": "linux-arm64"}.get(platform.machine(), "linux-x86")
