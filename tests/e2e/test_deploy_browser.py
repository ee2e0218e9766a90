"""`edgekit deploy --target web`: a real Chromium, the real LiteRT.js."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, VerificationError
from edgekit.core.progress import Silent
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners.base import HealthCheck, Job, registry
from edgekit.transports.base import connect
from tests.e2e.kit import PROJECT, QUICK, Person, write
from tests.unit.agent.models import WEIGHTS, artifact_in, tflite_model

pytestmark = [pytest.mark.slow, pytest.mark.network]
EXAMPLES = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.fixture(scope="session")
def litertjs(tmp_path_factory):
    """A cache in which LiteRT.js is, once it was fetched."""
    return tmp_path_factory.mktemp("litertjs")


@pytest.fixture
def here(litertjs, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(litertjs))
    with connect(Device("local", "web", "local")) as transport:
        yield transport


@pytest.fixture
def job(tmp_path):
    artifact = artifact_in(tmp_path / "artifact", tflite_model, backend="litert", target="web")
    np.save(tmp_path / "x.npy", EXAMPLES)
    np.save(tmp_path / "y.npy", EXAMPLES @ WEIGHTS)
    workloads = (
        Workload("latency", "latency", warmup_runs=3, min_runs=5, max_runs=20, min_seconds=0.0, processes=2),
        Workload("outputs", "test"),
    )
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
        outputs=tmp_path / "outputs",
        inputs={"golden": {"x": tmp_path / "x.npy"}},
        health=HealthCheck("golden", {"y": tmp_path / "y.npy"}),
    )


def test_a_browser_computes_times_and_tells_its_memory(job, here):
    found = registry.create("browser").execute(job, here, Silent())
    assert np.allclose(np.load(found.outputs["test"]["y"]), EXAMPLES @ WEIGHTS)
    assert found.health.cosine == pytest.approx(1.0)
    first, second, outputs = found.runs
    assert (first.process, second.process, outputs.examples) == (0, 1, 5)
    for run in (first, second):
        assert 5 <= len(run.samples_ms) <= 20
        assert len(run.warmup_ms) == 2
        assert min(run.samples_ms) > 0
        # A model of a few bytes need not raise the peak of a whole browser.
        assert run.memory["peak_rss_mib"] >= run.memory["runtime_baseline_mib"] > 0
    assert first.runtime["cross_origin_isolated"] is True
    assert first.runtime["browser"].startswith("Chromium ")
    assert found.released is False


def test_a_model_that_computes_something_else_fails_its_health_check(job, here, tmp_path):
    np.save(tmp_path / "y.npy", -(EXAMPLES @ WEIGHTS))
    with pytest.raises(VerificationError, match=r"cosine -1\.0000"):
        registry.create("browser").execute(job, here, Silent())


def test_a_damaged_model_is_an_error_of_the_device_and_no_hang(job, here):
    (job.artifact.path / job.plan.model_file).write_bytes(b"TFL3 this is no model" * 10)
    with pytest.raises(StableDeviceError, match="The browser's runtime refused"):
        registry.create("browser").execute(job, here, Silent())


@pytest.mark.skipif(Path("/dev/dri").exists(), reason="this machine has a graphics processor")
def test_webgpu_where_there_is_none_is_said(job, here):
    here.device = replace(here.device, runner_options={"accelerator": "webgpu"})
    with pytest.raises(ConfigError, match="no WebGPU adapter"):
        registry.create("browser").execute(replace(job, health=None), here, Silent())


def test_deploy_to_the_web_ends_with_the_devices_accuracy(tmp_path, litertjs):
    person = Person(tmp_path)
    (person.cache / "npm").parent.mkdir(parents=True, exist_ok=True)
    (litertjs / "npm").mkdir(exist_ok=True)
    (person.cache / "npm").symlink_to(litertjs / "npm")
    write(person.cwd, PROJECT)
    done = person.run("deploy", "--target", "web", "--json", *QUICK).check()
    (result,) = done.json["results"]
    assert (result["target"], result["runner"], result["device"]) == ("web", "browser", "local")
    accuracy = result["accuracy"]
    assert accuracy["device"]["top1"] == accuracy["source"]["top1"]
    assert accuracy["agreement"] == {"scores": 1.0}
    assert result["conditions"]["runtime"] == "LiteRT.js"
    assert json.dumps(result["samples_ms"]) != "[]"
