"""Small projects with real files, for the tests of the flow."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

from edgekit.core.target import Target, load_target
from edgekit.flow.build import Builder
from edgekit.flow.cache import Cache
from edgekit.flow.project import load_project

ROOT = Path(__file__).resolve().parents[3]

MODEL = """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        )
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
        return net, (torch.rand(1, 1, 8, 8),)
    """

TASK = """
    import numpy as np

    class Digits:
        metric = "accuracy"
        direction = "larger"
        sizes = {"calibration": (4, 4), "validation": (4, 3), "test": (5,)}

        def examples(self, split):
            generator = np.random.default_rng(len(split))
            for size in self.sizes.get(split, ()):
                yield {"input": generator.random((size, 1, 8, 8), dtype=np.float32)}

        def score(self, outputs, split):
            scores = np.concatenate([batch["output"] for batch in outputs])
            return {"accuracy": float((scores.argmax(-1) == 0).mean()), "spread": float(scores.std())}
    """


class Heard:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    @contextmanager
    def step(self, title: str, total: float | None = None):
        self.steps.append(title)
        yield self

    def advance(self, done: float = 1.0) -> None:
        """Nothing to show."""

    def say(self, text: str) -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def count(self, beginning: str) -> int:
        """How many steps began like this."""
        return sum(step.startswith(beginning) for step in self.steps)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write text files, dedented; returns the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
    return folder


def project_yaml(*, task: bool = False, more: str = "") -> str:
    """An `edgekit.yaml` around `model.py:build`."""
    lines = ["schema_version: 1", "name: digits", "source: model.py:build", "targets: [intel-cpu]"]
    if task:
        lines.append("task: task.py:Digits")
    return "\n".join(lines) + "\n" + textwrap.dedent(more)


def builder_in(folder: Path, heard: Heard | None = None, **cache: bool) -> Builder:
    """A builder of the project in a folder, with the cache of the environment."""
    return Builder(load_project(folder), heard or Heard(), Cache(**cache), timeout_seconds=300)


def intel() -> Target:
    """A target whose first backend is openvino."""
    return load_target("intel-cpu")


def python(code: str, *argv: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that has edgekit and this kit."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
