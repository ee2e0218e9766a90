from __future__ import annotations

import sys

import numpy as np
import pytest

from edgekit.core.device import Device
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners.base import HealthCheck, Job
from edgekit.transports.base import connect
from tests.unit.agent.models import WEIGHTS, artifact_in, onnx_model

EXAMPLES = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.fixture
def artifact(tmp_path):
    return artifact_in(tmp_path / "artifact", onnx_model, backend="onnxruntime")


@pytest.fixture
def job(artifact, tmp_path):
    np.save(tmp_path / "x.npy", EXAMPLES)
    np.save(tmp_path / "y.npy", EXAMPLES @ WEIGHTS)
    latency = Workload("latency", "latency", warmup_runs=2, min_runs=3, max_runs=5, min_seconds=0.0, processes=2)
    return Job(
        artifact=artifact,
        plan=RunPlan("onnxruntime", "device_onnxruntime.py", "model.onnx", RuntimeRequirement(()), (latency,)),
        outputs=tmp_path / "outputs",
        inputs={"golden": {"x": tmp_path / "x.npy"}},
        release=True,
        health=HealthCheck("golden", {"y": tmp_path / "y.npy"}),
        host_runtime=True,
    )


@pytest.fixture
def device():
    return Device("local", "here", "local", python=sys.executable)


class Counting:
    """Counts the commands of a transport."""

    def __init__(self, transport):
        self.commands = 0
        self.transport = transport
        run = transport.run

        def counted(*args, **options):
            self.commands += 1
            return run(*args, **options)

        transport.run = counted


@pytest.fixture
def local(device, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    with connect(device) as transport:
        yield Counting(transport)
