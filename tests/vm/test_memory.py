"""Memory on a machine that has 1 GiB: what a model takes, and what happens where it does not fit."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from edgekit.core.errors import StableDeviceError
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners.base import HealthCheck, Job
from tests.e2e.fault_kit import visit
from tests.unit.agent.models import artifact_in, tflite_model
from tests.vm.kit import MARKS, with_wheels

pytestmark = MARKS
SIZES = (4096, 6144)
WEIGHTS_MIB = SIZES[0] * SIZES[1] * 4 / (1 << 20)
LEFT_MIB = 45
TIMED = Workload("latency", "latency", inputs="golden", warmup_runs=1, min_runs=3, max_runs=3, min_seconds=0.0)

# Taken for good: nothing of it can be swapped out or dropped, and the kernel kills others first.
_BALLAST = """
import os, sys, time
left = int(sys.argv[1]) << 20
available = next(int(line.split()[1]) << 10 for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
if os.fork():
    os._exit(0)
os.setsid()
for stream in (0, 1, 2):
    os.dup2(os.open("/dev/null", os.O_RDWR), stream)
with open("/proc/self/oom_score_adj", "w") as stream:
    stream.write("-1000")
taken = bytearray(available - left)
taken[::4096] = b"x" * len(taken[::4096])
with open("/run/ballast", "w") as stream:
    stream.write(str(os.getpid()))
time.sleep(3600)
"""


@contextlib.contextmanager
def little_memory(machine):
    """All but LEFT_MIB of what is available is taken by something else."""
    machine.python(_BALLAST, str(LEFT_MIB))
    wait = "for i in $(seq 100); do [ -s /run/ballast ] && exit 0; sleep 0.3; done; exit 1"
    machine.run("sh", "-c", wait).check()
    try:
        yield
    finally:
        machine.run("sh", "-c", 'kill -9 "$(cat /run/ballast)"; rm /run/ballast').check()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The deploy of a model of the same name with 96 MiB of weights, which LiteRT copies when it loads them."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.02, SIZES).astype(np.float32)
    x = random.normal(0, 1, (2, SIZES[0])).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", x @ weights)

    def make(where, batch):
        return tflite_model(where, batch, weights)

    artifact = artifact_in(folder / "artifact", make, backend="litert", sizes=SIZES)
    manifest = artifact.manifest
    plan = RunPlan("litert", "device_litert.py", manifest.main, RuntimeRequirement(()), (TIMED,), manifest.bindings)
    job = Job(
        artifact=artifact,
        plan=plan,
        outputs=folder / "outputs",
        inputs={"golden": {"x": folder / "x.npy"}},
        release=True,
        health=HealthCheck("golden", {"y": folder / "y.npy"}),
    )
    return with_wheels(job)


def memory(ran):
    (run,) = ran.runs
    return run.memory


def test_a_model_that_does_not_fit_is_killed_and_the_release_before_still_serves(machine, site, large):
    before, boot = site.current(), machine.boot_id()
    with little_memory(machine), pytest.raises(StableDeviceError) as caught:
        visit(large, site.device)
    said = r"the health check was killed: the device ran out of memory \(.*\(it had taken \d+ MiB\)"
    assert re.search(said, caught.value.message)
    assert "smaller model" in caught.value.hint
    kernel = machine.run("dmesg").check()
    assert "Out of memory: Killed process" in kernel
    # The machine itself, and its SSH server, have gone on.
    assert machine.boot_id() == boot
    assert "sshd" not in [line.split("(")[1].split(")")[0] for line in kernel.splitlines() if "Killed process" in line]
    assert site.current() == before
    site.works_again()


def test_memory_figures_follow_the_models_size(machine, site, large, record_property, capsys):
    small = memory(visit(site.job(TIMED), site.device))
    measured = replace(large, release=False)
    big = memory(visit(measured, site.device))
    # The bare interpreter with LiteRT and numpy; the fixed part does not depend on the model.
    assert 20 < small["runtime_baseline_mib"] < 60
    assert big["runtime_baseline_mib"] == pytest.approx(small["runtime_baseline_mib"], abs=4)
    assert 0 < small["model_delta_mib"] < 30
    # Once where the file is mapped, and at most once more where XNNPACK lays the weights out for its kernels.
    assert 0.95 * WEIGHTS_MIB < big["model_delta_mib"] < 2.4 * WEIGHTS_MIB
    for found in (small, big):
        assert found["peak_rss_mib"] == pytest.approx(found["runtime_baseline_mib"] + found["model_delta_mib"], abs=0.1)
        assert found["peak_pss_mib"] <= found["peak_rss_mib"] + 0.1
    for name, found in (("1 kB of weights", small), (f"{WEIGHTS_MIB:.0f} MiB of weights", big)):
        record_property(name, json.dumps(found))
        with capsys.disabled():
            figures = ", ".join(f"{key.removesuffix('_mib')} {value:.1f}" for key, value in found.items())
            print(f"\n  LiteRT on the virtual Pi, {name}, MiB: {figures}")
