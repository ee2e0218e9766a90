"""The agent runner against a real SSH server: what a pulled cable leaves on the device."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.core.errors import TransientDeviceError
from edgekit.core.progress import Silent
from edgekit.core.workload import Workload
from edgekit.runners.agent import AgentRunner
from edgekit.transports.base import connect
from tests.devices.proxy import CuttingProxy
from tests.devices.sshd import eventually
from tests.unit.agent.models import WEIGHTS
from tests.unit.runners.conftest import EXAMPLES, Counting

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def remote(sshd):
    return replace(sshd.device(), python=sys.executable)


def workers() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"/worker.py") for word in words):
            found.add(path.parent.name)
    return found


def test_a_release_is_deployed_and_a_second_visit_takes_two_commands(job, remote, sshd):
    plan = replace(job.plan, workloads=(*job.plan.workloads, Workload("outputs", "out")))
    with connect(remote) as transport:
        found = AgentRunner().execute(replace(job, plan=plan), transport, Silent())
        assert np.allclose(np.load(found.outputs["out"]["y"]), EXAMPLES @ WEIGHTS)
        counting = Counting(transport)
        again = AgentRunner().execute(job, transport, Silent())
    assert (counting.commands, again.bytes_sent) == (2, 0)
    assert (Path(sshd.home) / ".edgekit/models/tiny/current/model.onnx").is_file()


def test_a_broken_connection_leaves_no_worker_running_on_the_device(job, sshd):
    endless = Workload("latency", "endless", max_runs=10**9, min_seconds=300.0, max_seconds=300.0)
    current = Path(sshd.home) / ".edgekit/models/tiny/current"
    before = workers()
    failures = []

    def visit(port):
        device = replace(sshd.device(port=port), python=sys.executable)
        try:
            with connect(device) as transport:
                AgentRunner().execute(replace(job, plan=replace(job.plan, workloads=(endless,))), transport, Silent())
        except TransientDeviceError as error:
            failures.append(error)

    with CuttingProxy(sshd.port) as cable:
        thread = threading.Thread(target=visit, args=[cable.port])
        thread.start()
        assert eventually(lambda: current.exists() and workers() - before)
    thread.join(timeout=60)
    assert failures
    assert eventually(lambda: not workers() - before)
