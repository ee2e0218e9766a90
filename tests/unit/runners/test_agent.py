from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError, VerificationError
from edgekit.core.progress import Silent
from edgekit.core.run_output import measurements_of
from edgekit.core.workload import Workload
from edgekit.runners import agent as runner_module
from edgekit.runners.agent import AgentRunner, agent_digest, agent_files
from edgekit.runners.base import registry
from edgekit.transports.base import CommandResult, connect
from edgekit.transports.fake import FakeTransport
from tests.unit.agent.models import WEIGHTS
from tests.unit.runners.conftest import EXAMPLES


def test_the_registry_finds_it():
    assert registry.get("agent") is AgentRunner


def test_a_first_visit_pushes_runs_and_brings_the_outputs_back(job, local):
    workloads = (*job.plan.workloads, Workload("outputs", "golden-outputs"))
    found = AgentRunner().execute(replace(job, plan=replace(job.plan, workloads=workloads)), local.transport, Silent())
    assert found.released is True
    assert found.previous is None
    assert found.health.cosine == pytest.approx(1.0)
    assert found.bytes_sent > job.artifact.bytes
    assert np.allclose(np.load(found.outputs["golden-outputs"]["y"]), EXAMPLES @ WEIGHTS)
    assert {"inspect", "push", "run", "pull"} <= found.seconds.keys()
    latency = measurements_of(found)[0]
    assert (latency.metric, len(latency.processes), sum(latency.processes)) == ("latency_ms", 2, len(latency.values))


def test_a_visit_that_changes_nothing_takes_two_commands_and_sends_nothing(job, local):
    AgentRunner().execute(job, local.transport, Silent())
    local.commands = 0
    found = AgentRunner().execute(job, local.transport, Silent())
    assert (local.commands, found.bytes_sent) == (2, 0)
    assert found.previous == job.artifact.digest


def test_a_failed_health_check_names_the_cosine_and_switches_nothing(job, local, tmp_path):
    np.save(tmp_path / "y.npy", -(EXAMPLES @ WEIGHTS))
    with pytest.raises(VerificationError, match=r"cosine -1\.0000, at least 0\.99") as caught:
        AgentRunner().execute(job, local.transport, Silent())
    assert "still in force" in caught.value.hint
    assert not (local.transport.home / ".edgekit/models/tiny/current").exists()


def test_an_error_of_the_device_is_named_with_what_to_do(job, local, artifact, tmp_path):
    np.save(tmp_path / "x.npy", EXAMPLES.astype(np.float64))
    with pytest.raises(StableDeviceError, match="local: the health check: the model's input 'x' is float32"):
        AgentRunner().execute(job, local.transport, Silent())


def test_rollback_goes_back_to_the_release_before(job, local, artifact, tmp_path):
    AgentRunner().execute(job, local.transport, Silent())
    newer = replace(job, artifact=replace(artifact, digest="f" * 64))
    AgentRunner().execute(newer, local.transport, Silent())
    done = AgentRunner().rollback(local.transport, "tiny")
    assert (done.current, done.previous) == (artifact.digest, "f" * 64)
    with pytest.raises(StableDeviceError, match="no such earlier release"):
        AgentRunner().rollback(local.transport, "tiny")


def test_probe_gives_the_facts_of_the_device(local):
    found = AgentRunner().probe(local.transport)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] == len(os.sched_getaffinity(0)) or isinstance(found["cores"], int)


def test_a_device_without_python_is_told_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path))
    device = Device("bare", "here", "local", python="no-such-python")
    with (
        connect(device) as transport,
        pytest.raises(StableDeviceError, match="no Python at 'no-such-python'") as caught,
    ):
        AgentRunner().probe(transport)
    assert "`python:`" in caught.value.hint


def test_the_digest_covers_every_file_and_its_name(tmp_path, monkeypatch):
    names = {path.name for path in agent_files()}
    assert {"agent.py", "worker.py", "device_litert.py"} <= names
    assert agent_files()[-1].name == "agent.py", "its presence means that all the others are there"
    before = agent_digest()
    copies = [tmp_path / path.name for path in agent_files()]
    for copy, path in zip(copies, agent_files(), strict=True):
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(runner_module, "agent_files", lambda: tuple(copies))
    assert agent_digest() == before
    copies[0].write_bytes(copies[0].read_bytes() + b"\n")
    assert agent_digest() != before


def test_a_name_that_cannot_be_a_folder_is_refused_before_anything_is_sent(job, artifact, local):
    named = replace(job, artifact=replace(artifact, manifest=replace(artifact.manifest, name="../x")))
    with pytest.raises(ConfigError, match=r"'\.\./x'"):
        AgentRunner().execute(named, local.transport, Silent())
    assert local.commands == 0


# --- a device that is not what it should be -------------------------------------------------------------------------

FACTS = {"hostname": "pi", "python": "3.11.2", "libc": "glibc 2.36", "arch": "aarch64", "implementation": "CPython"}
INSPECTED = {
    "schema_version": 1,
    "ok": True,
    "facts": FACTS,
    "missing": [],
    "runtimes": [],
    "free_bytes": 10**9,
    "current": None,
}
RUN = {"workload": "latency", "kind": "latency", "init_ms": 1.0, "load_ms": 1.0, "samples_ms": [1.0]}
RAN = {
    "schema_version": 1,
    "ok": True,
    "facts_before": FACTS,
    "facts_after": FACTS,
    "health": {"ok": True, "cosine": 1.0, "max_abs": 0.0, "message": ""},
    "released": True,
    "previous": None,
    "runs": [RUN | {"process": 0}, RUN | {"process": 1}],
    "outputs": "x",
    "hook": None,
}


def answering(ran, inspected=INSPECTED, returncode=0, stderr=b""):
    def handler(argv, stdin):
        said = inspected if json.loads(stdin)["command"] == "inspect" else ran
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        return CommandResult(returncode, body, stderr, 0.0)

    return FakeTransport.scripted(Device("pi", "rpi4", "fake"), handler)


def visit(job, *args, **options):
    with answering(*args, **options) as transport:
        return AgentRunner().execute(job, transport, Silent())


def test_the_honest_answer_is_taken(job):
    assert len(visit(job, RAN).runs) == 2


def test_a_greeting_before_the_answer_does_no_harm(job):
    assert visit(job, b"Welcome to pi!\n" + json.dumps(RAN).encode()).released is True


@pytest.mark.parametrize(
    "ran",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"{",
        b'{"schema_version": 1, "ok": true, "runs": ' + b"[" * 100_000,
        b"A" * 1_000_000,
        {"ok": True},
        RAN | {"schema_version": 2},
        RAN | {"surprise": 1},
        RAN | {"runs": "none"},
        RAN | {"runs": [RUN | {"process": 0}]},
        RAN | {"runs": [RUN | {"process": 0}, RUN | {"process": 1, "workload": "other"}]},
        RAN | {"runs": [RUN | {"process": 0}, RUN | {"process": 1, "samples_ms": []}]},
        RAN | {"runs": [RUN | {"process": 0}, RUN | {"process": 1, "samples_ms": ["fast"]}]},
        RAN | {"runs": [RUN | {"process": 0}, RUN | {"process": 1, "samples_ms": [-1.0]}]},
        json.dumps(RAN).replace("[1.0]", "[NaN]").encode(),
        json.dumps(RAN).replace("[1.0]", "[1e999]").encode(),
        RAN | {"facts_before": {"cpu_model": {"nested": []}}},
        RAN | {"health": None},
        RAN | {"health": {"ok": True, "cosine": -1.0}},
        RAN | {"health": {"ok": True, "cosine": None}},
        RAN | {"released": False},
        {"schema_version": 1, "ok": False, "error": "bad"},
        {"schema_version": 1, "ok": False, "error": {"kind": "internal", "message": "odd"}},
    ],
    ids=range(24),
)
def test_an_answer_that_cannot_be_true_is_a_stable_error(job, ran):
    with pytest.raises(StableDeviceError) as caught:
        visit(job, ran)
    assert "pi" in caught.value.message
    assert len(str(caught.value)) < 2000


def test_a_device_cannot_ask_for_files_that_are_not_of_the_job(job):
    with pytest.raises(StableDeviceError, match="not of this job"):
        visit(job, RAN, INSPECTED | {"missing": ["0" * 64]})


def test_text_from_a_device_cannot_steer_the_terminal(job):
    error = {"kind": "model", "message": "\x1b]0;owned\x07\x1b[2Jbad\r\n" + "x" * 5000}
    with pytest.raises(StableDeviceError) as caught:
        visit(job, {"schema_version": 1, "ok": False, "error": error})
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("busy", TransientDeviceError),
        ("blob", TransientDeviceError),
        ("timeout", TransientDeviceError),
        ("stopped", TransientDeviceError),
        ("disk-full", StableDeviceError),
        ("permission", StableDeviceError),
        ("runtime", StableDeviceError),
        ("crashed", StableDeviceError),
        ("out-of-memory", StableDeviceError),
    ],
)
def test_only_what_may_pass_is_transient(job, kind, expected):
    body = {"kind": kind, "message": "so it is", "detail": {"peak_rss_mib": 12.5, "released": True}}
    with pytest.raises(expected, match="so it is") as caught:
        visit(job, {"schema_version": 1, "ok": False, "error": body})
    assert "edgekit rollback" in caught.value.hint


@pytest.mark.parametrize(
    ("returncode", "stderr", "expected", "words"),
    [
        (127, b"sh: python3: not found", StableDeviceError, "no Python"),
        (1, b"SyntaxError: future feature annotations is not defined", StableDeviceError, "too old"),
        (1, b"TypeError: 'type' object is not subscriptable", StableDeviceError, "too old"),
        (137, b"", StableDeviceError, "memory ran out"),
        (143, b"", TransientDeviceError, "ended before it answered"),
        (-1, b"", TransientDeviceError, "ended before it answered"),
        (1, b"Segmentation violation", StableDeviceError, "Segmentation violation"),
    ],
)
def test_a_command_without_an_answer_is_explained(job, returncode, stderr, expected, words):
    with pytest.raises(expected, match=words):
        visit(job, b"", b"", returncode=returncode, stderr=stderr)


def test_a_full_disk_is_said_before_anything_is_sent(job, artifact):
    inspected = INSPECTED | {"missing": [artifact.manifest.files[0].sha256], "free_bytes": 1000}
    with answering(RAN, inspected) as transport, pytest.raises(StableDeviceError, match="1 kB free"):
        AgentRunner().execute(job, transport, Silent())
    assert [call.kind for call in transport.calls] == ["run"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no array", "not an .npy file"),
        (b"x" * 5000, "at most"),
        (np.float64, "its manifest says float32"),
    ],
)
def test_an_output_that_is_not_what_the_manifest_says_is_refused(job, tmp_path, monkeypatch, data, words):
    if data is np.float64:
        np.save(tmp_path / "wrong.npy", np.zeros((5, 3), np.float64))
        data = (tmp_path / "wrong.npy").read_bytes()
    plan = replace(job.plan, workloads=(Workload("outputs", "out"),))
    run = {"workload": "out", "kind": "outputs", "process": 0, "init_ms": 1.0, "load_ms": 1.0, "examples": 5}
    with answering(RAN | {"runs": [run]}) as transport:
        answer = transport.run

        def answer_and_leave_outputs(argv, **options):
            request = json.loads(options["stdin"])
            if request["command"] == "run":
                transport.files[f".edgekit/runs/{request['run_id']}/out/y.npy"] = data
            return answer(argv, **options)

        monkeypatch.setattr(transport, "run", answer_and_leave_outputs)
        with pytest.raises(StableDeviceError, match=words):
            AgentRunner().execute(replace(job, plan=plan), transport, Silent())
