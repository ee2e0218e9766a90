"""Releases to deploy again and again, and a look at a device that tells whether a fault has broken it."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.core.device import Device
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners.base import HealthCheck, Job
from tests.unit.agent.models import WEIGHTS, artifact_in, tflite_model

EXAMPLES = np.arange(20, dtype=np.float32).reshape(5, 4)
NAME = "tiny"


class Releases:
    """Makes releases of one model that differ in one file of random bytes, so that each has something to be sent.

    Args:
        folder: Where they are put.
        padding: Bytes of that file.
    """

    def __init__(self, folder: Path, padding: int = 1 << 16) -> None:
        self.folder, self.padding, self.count = folder, padding, 0
        folder.mkdir(parents=True)
        np.save(folder / "x.npy", EXAMPLES)
        np.save(folder / "y.npy", EXAMPLES @ WEIGHTS)

    def job(self, *workloads: Workload) -> Job:
        """The deploy of a release that no device has seen; without workloads it ends with the switch."""
        self.count += 1
        folder = self.folder / f"artifact{self.count}"
        folder.mkdir()
        (folder / "padding.bin").write_bytes(random.Random(f"{self.folder.name} {self.count}").randbytes(self.padding))
        artifact = artifact_in(folder, tflite_model, backend="litert")
        return Job(
            artifact=artifact,
            plan=RunPlan(
                "litert",
                "device_litert.py",
                artifact.manifest.main,
                RuntimeRequirement(()),
                workloads,
                artifact.manifest.bindings,
            ),
            outputs=self.folder / "outputs",
            inputs={"golden": {"x": self.folder / "x.npy"}},
            release=True,
            health=HealthCheck("golden", {"y": self.folder / "y.npy"}),
            host_runtime=True,
        )


def with_this_python(device: Device) -> Device:
    """The device, whose Python is that of the tests: it has a runtime."""
    return replace(device, python=sys.executable)


def current(root: Path) -> str | None:
    """The release that programs on the device see."""
    link = root / "models" / NAME / "current"
    return link.readlink().name if link.is_symlink() else None


def broken(root: Path) -> list[str]:
    """What is wrong with a device: nothing, whatever happened to it.

    A release in force has to be there whole; a blob has to hold what its name says; a kept release has to be whole, too.
    """
    wrong = []
    link = root / "models" / NAME / "current"
    if link.is_symlink() and not (link / "release.json").is_file():
        wrong.append(f"current points to {link.readlink()}, which is not there")
    for folder in (root / "models" / NAME / "releases").glob("[!.]*"):
        record = json.loads((folder / "release.json").read_text())
        for entry in record["files"]:
            path = folder / entry["path"]
            if not path.is_file() or digest_of(path) != entry["sha256"]:
                wrong.append(f"{folder.name[:12]}: {entry['path']} is not what it was")
    blobs = [path for path in (root / "store").glob("*") if len(path.name) == 64]
    return wrong + [f"the blob {path.name[:12]} has other bytes" for path in blobs if digest_of(path) != path.name]


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
