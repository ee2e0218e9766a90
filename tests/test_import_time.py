"""What starts fast stays fast: which libraries are loaded by an import, and by the commands that need none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = [
    "accelerate",
    "ai_edge_litert",
    "alembic",
    "coremltools",
    "jinja2",
    "litert_torch",
    "nncf",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "paramiko",
    "peft",
    "plotly",
    "sklearn",
    "sqlalchemy",
    "torch",
    "transformers",
]
CORE = sorted(path.stem for path in (ROOT / "edgekit" / "core").glob("*.py") if path.stem != "__init__")


def loaded_by(code: str, folder: Path) -> list[str]:
    """The heavy libraries that are in memory after `code` ran in a fresh interpreter."""
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted(set({HEAVY!r}) & sys.modules.keys())))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded: list[str] = json.loads(result.stdout.splitlines()[-1])
    return loaded


def command(*arguments: str) -> str:
    """Code that runs the command line and goes on after it."""
    return (
        f"import sys\nsys.argv = ['edgekit', *{list(arguments)!r}]\nfrom edgekit.cli.main import main\n"
        "try:\n    code = main()\nexcept SystemExit as ended:\n    code = ended.code\n"
        "assert not code, f'exit code {code}'"
    )


@pytest.mark.parametrize("arguments", [("--help",), ("targets",), ("targets", "rpi4"), ("deploy", "--help")])
def test_a_command_that_needs_no_model_loads_no_heavy_library(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert loaded_by(command(*arguments), tmp_path) == []


def test_importing_the_package_loads_no_heavy_library(tmp_path: Path) -> None:
    assert loaded_by("import edgekit", tmp_path) == []


def test_importing_the_words_loads_no_heavy_library(tmp_path: Path) -> None:
    assert loaded_by("\n".join(f"import edgekit.core.{name}" for name in CORE), tmp_path) == []


def test_the_plugins_can_be_named_without_loading_their_libraries(tmp_path: Path) -> None:
    kinds = ("frontends", "passes", "backends", "transports", "runners")
    lines = [
        f"from edgekit.{kind}.base import registry as {kind}\n[{kind}.get(n) for n in {kind}.names()]" for kind in kinds
    ]
    assert loaded_by("\n".join(lines), tmp_path) == []
