"""What tests of the command line need: a person with a home of their own, who types commands in real processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
QUICK = ("--processes", "1", "--min-seconds", "0.02", "--min-runs", "5")
"""Measures as little as can be: these tests judge what is done, not how fast it is."""

MODEL = '''
import copy

import torch
from data import make
from torch import nn


class Corners(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(8 * 9, 4)

    def features(self, image):
        return self.pool(self.norm(self.conv(image)).relu()).flatten(1)

    def forward(self, image):
        return self.head(self.features(image))


def build():
    """Random features, and a head fitted to data by least squares: trained without training."""
    torch.manual_seed(0)
    module = Corners().eval()
    images, labels = make("train")
    with torch.no_grad():
        found = copy.deepcopy(module).double().features(torch.from_numpy(images).double())
        wanted = nn.functional.one_hot(torch.from_numpy(labels), 4) * 2.0 - 1.0
        module.head.bias.zero_()
        # Rounded: the last digits of a solver depend on where its arrays lie in memory.
        module.head.weight.copy_(torch.linalg.lstsq(found, wanted.double()).solution.T.round(decimals=4))
    return module, {"image": torch.from_numpy(images[:1])}
'''
DATA = '''
import numpy as np

SIZES = {"train": 256, "calibration": 32, "validation": 60, "test": 60}


def make(split):
    """Images (N, 1, 6, 6) with one corner a little brighter, and which corner it is."""
    random = np.random.default_rng(list(SIZES).index(split))
    labels = random.integers(0, 4, SIZES[split])
    images = random.normal(0, 1, (len(labels), 1, 6, 6)).astype(np.float32)
    for image, label in zip(images, labels):
        image[0, 3 * (label // 2) :, 3 * (label % 2) :][:3, :3] += 1.2
    return images, labels
'''
TASK = """
import numpy as np
from data import SIZES, make


class Corners:
    metric = "top1"
    direction = "larger"

    def examples(self, split):
        if split in SIZES:
            images, _ = make(split)
            for start in range(0, len(images), 16):
                yield {"image": images[start : start + 16]}

    def score(self, outputs, split):
        _, labels = make(split)
        return {"top1": float((np.concatenate([b["scores"] for b in outputs]).argmax(1) == labels).mean())}
"""
PROJECT: Mapping[str, str] = {
    "model.py": MODEL,
    "data.py": DATA,
    "task.py": TASK,
    "edgekit.yaml": """
        schema_version: 1
        name: corners
        source: model.py:build
        outputs: [{name: scores}]
        task: task.py:Corners
        recipe: recipe.yaml
        targets: [linux-x86]
        """,
    "recipe.yaml": """
        schema_version: 1
        passes: [{fold_batch_norm: {}}]
        """,
}
"""A small real project: accuracy well above chance and below one, 0.1 s to make, several kilobytes."""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Files of a project."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
    return folder


def write_devices(project: Path, **entries: Any) -> None:
    """The project's devices.yaml: a Device (its own name is not used) for each name."""
    devices = {
        name: {
            key: value
            for key, value in {**vars(device)}.items()
            if key in ("target", "transport", "address", "options", "python", "emulated", "runner") and value
        }
        for name, device in entries.items()
    }
    (project / "devices.yaml").write_text(yaml.safe_dump({"schema_version": 1, "devices": devices}))


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be exactly one JSON document."""
        return json.loads(self.out)

    def check(self, code: int = 0) -> Done:
        """Itself, having ended with that code and without a traceback."""
        assert self.code == code, f"exit code {self.code}, not {code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
        assert "Traceback" not in self.out + self.err, self.err
        return self


class Running:
    """A command that is under way."""

    def __init__(self, process: subprocess.Popen[str], person: Person) -> None:
        self.process = process
        self.person = person

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """What Ctrl-C sends."""
        self.process.send_signal(number)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is seen while the command runs."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                out, err = self.process.communicate(timeout=10)
                raise AssertionError(f"{what} was not seen\n{out}\n{err}")
            time.sleep(0.005)

    def done(self) -> Done:
        """Its end."""
        try:
            out, err = self.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return Done(self.process.returncode, out, err)


class Person:
    """Somebody who types commands, with home, cache and settings of their own below one folder.

    Args:
        folder: Where everything of theirs is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        self.cwd = folder / "work"
        self.cache = folder / "cache"
        for path in (folder / "home", self.cwd, self.cache):
            path.mkdir(parents=True, exist_ok=True)
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith("EDGEKIT_") and k not in ("SSH_AUTH_SOCK", "CI")
        }
        pip = Path("~/.config/pip/pip.conf").expanduser()
        self.env = {
            **kept,
            **({"PIP_CONFIG_FILE": str(pip)} if pip.exists() else {}),
            "HOME": str(folder / "home"),
            "EDGEKIT_CACHE_DIR": str(self.cache),
            "EDGEKIT_CONFIG_DIR": str(folder / "settings"),
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            # Nets this small only get slower by a second thread, above all where other work runs beside.
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: object, cwd: Path | None = None, **env: str) -> Running:
        """Start a command."""
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit", *map(str, arguments)],
            cwd=cwd or self.cwd,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return Running(process, self)

    def leave(self) -> None:
        """End what is still running, where a test failed before it did."""
        for process in self._started:
            if process.stdout is not None and not process.stdout.closed:
                process.terminate()
                process.communicate(timeout=60)

    def run(self, *arguments: object, cwd: Path | None = None, **env: str) -> Done:
        """Type a command and wait for its end."""
        return self.start(*arguments, cwd=cwd, **env).done()

    def shell(self, line: str) -> Done:
        """Type a line of bash; `edgekit` is the command in it."""
        command = f'edgekit() {{ {shlex.quote(sys.executable)} -m edgekit "$@"; }}\n{line}'
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def without(self, *modules: str) -> dict[str, str]:
        """An environment in which some libraries are not installed."""
        folder = write(self.folder / f"without-{'-'.join(modules)}", {"sitecustomize.py": _BLOCKER})
        return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "TEST_BLOCKED": ",".join(modules)}

    def processes(self) -> list[str]:
        """Command lines of the processes that commands of this person left running."""
        mark = f"EDGEKIT_CACHE_DIR={self.cache}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(command_line(entry))
            except OSError:
                continue  # it ended while we looked, or is somebody else's
        return [line for line in found if line]

    def leftovers(self) -> list[Path]:
        """Half-written things in the cache."""
        return [path for path in self.cache.rglob("*") if path.name.endswith((".part", ".old"))]


def command_line(process: Path) -> str:
    """What a process was started as; empty for one that has ended."""
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def processes_below(folder: Path) -> list[int]:
    """Processes whose command line names something below a folder."""
    found = [entry for entry in Path("/proc").glob("[0-9]*") if f"{folder}/" in command_line(entry)]
    return [int(entry.name) for entry in found]


_BLOCKER = """
import os
import sys


class Blocker:
    names = os.environ.get("TEST_BLOCKED", "").split(",")

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker)
"""
