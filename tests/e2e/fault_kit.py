"""Releases to deploy again and again, and a look at a device that tells whether a fault has broken it."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.core.device import Device
from edgekit.core.errors import DeviceError
from edgekit.core.progress import Progress, Silent
from edgekit.core.run_output import RunOutput
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners.agent import AgentRunner
from edgekit.runners.base import HealthCheck, Job
from edgekit.transports.base import connect
from tests.devices import whole
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
    return whole.current(root, NAME)


def broken(root: Path) -> list[str]:
    """What is wrong with a device: see `whole.broken`."""
    return whole.broken(root, NAME)


def visit(job: Job, device: Device, progress: Progress | None = None) -> RunOutput:
    """Deploy once, without edgekit's own tries over again."""
    with connect(device) as transport:
        return AgentRunner().execute(job, transport, progress or Silent())


def attempt(job: Job, device: Device, progress: Progress | None = None) -> bool:
    """Whether a deploy worked; what it raises otherwise is one of our own errors, or the test fails."""
    try:
        return visit(job, device, progress).released
    except DeviceError:
        return False


def judged(root: Path, job: Job, before: str | None, worked: bool) -> str | None:
    """The device is whole, and serves what it should: the release in force."""
    assert broken(root) == []
    now = current(root)
    assert now in ({job.artifact.digest} if worked else {before, job.artifact.digest})
    return now
