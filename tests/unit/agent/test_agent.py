from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.unit.agent.kit import AGENT, workload


def error_of(answer):
    assert answer["ok"] is False, answer
    return answer["error"]


def test_inspect_says_what_is_missing_and_what_is_here(device):
    here = device.put(b"here")
    answer = device.ask({"command": "inspect", "blobs": [here, "0" * 64], "model": "digits"})
    assert answer["ok"] is True
    assert answer["missing"] == ["0" * 64]
    assert (answer["runtimes"], answer["current"]) == ([], None)
    assert answer["facts"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert answer["free_bytes"] > 0


def test_inspect_removes_what_crashed_runs_left(device):
    for path in ("runtimes/.x.1.part", "runs/old", "store/.blob.part"):
        (device.root / path).mkdir(parents=True)
        os.utime(device.root / path, (0, 0))
    (device.root / "runs" / "new").mkdir()
    device.ask({"command": "inspect", "blobs": [], "model": None})
    assert [path.name for path in (device.root / "runs").iterdir()] == ["new"]
    assert not list((device.root / "runtimes").iterdir())
    assert not list((device.root / "store").iterdir())


def test_outputs_are_computed_in_batches_without_the_padding(device, tmp_path):
    answer = device.ask(device.run_request(tmp_path, expected=2.0))
    assert answer["health"] == {"ok": True, "cosine": 1.0, "max_abs": 0.0, "message": ""}
    assert (answer["released"], answer["previous"]) == (True, None)
    assert answer["runs"][0]["examples"] == 5
    found = np.load(Path(answer["outputs"]) / "outputs" / "y.npy")
    assert np.array_equal(found, np.arange(15, dtype=np.float32).reshape(5, 3) * 2)
    assert (device.root / "models/digits/current/model.txt").read_text() == "2.0"


def test_latency_keeps_samples_of_each_fresh_process_apart(device, tmp_path):
    note = tmp_path / "pid"
    request = device.run_request(
        tmp_path, workloads=[workload("latency", processes=2)], options={"note": str(note)}, release=False
    )
    answer = device.ask(request)
    assert [run["process"] for run in answer["runs"]] == [0, 1]
    for run in answer["runs"]:
        assert len(run["warmup_ms"]) == 1
        assert 3 <= len(run["samples_ms"]) <= 4
        assert run["memory"]["peak_rss_mib"] >= run["memory"]["runtime_baseline_mib"] > 1
    assert device.current is None
    assert not (device.root / "runs" / "r1").exists()


def test_a_set_of_exactly_the_models_shape_is_one_call(device, tmp_path):
    answer = device.ask(device.run_request(tmp_path, options={"batch": 5}))
    assert answer["runs"][0]["examples"] == 5


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"signal": signal.SIGSEGV}, "crashed", "SIGSEGV"),
        ({"signal": signal.SIGKILL}, "out-of-memory", "ran out of memory"),
        ({"memory": True}, "out-of-memory", "not enough memory"),
        ({"errno": errno.ENOSPC}, "disk-full", "told to"),
        ({"import": "no_such_runtime"}, "runtime", "no_such_runtime"),
        ({"refuse": True}, "model", "not a model"),
    ],
)
def test_what_kills_a_worker_is_told_apart(device, tmp_path, options, kind, words):
    error = error_of(device.ask(device.run_request(tmp_path, options=options)))
    assert error["kind"] == kind
    assert words in error["message"]
    assert error["detail"]["released"] is True


def test_a_killed_worker_says_how_much_memory_it_had(device, tmp_path):
    error = error_of(device.ask(device.run_request(tmp_path, options={"signal": signal.SIGKILL})))
    assert error["detail"]["peak_rss_mib"] > 5


def test_a_worker_that_takes_too_long_is_killed(device, tmp_path):
    note = tmp_path / "pid"
    request = device.run_request(
        tmp_path, options={"sleep": 60, "note": str(note)}, workloads=[workload(timeout_seconds=1.0)]
    )
    assert error_of(device.ask(request))["kind"] == "timeout"
    assert not Path(f"/proc/{note.read_text()}").exists()


@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (np.zeros((4, 3), np.float64), "model", "'x' is float32, the input set's is float64"),
        (np.zeros((4, 7), np.float32), "model", "'x' has the shape [2, 3], the input set's [4, 7]"),
        (np.zeros((0, 3), np.float32), "request", "no examples"),
    ],
)
def test_inputs_that_do_not_fit_are_named(device, tmp_path, array, kind, words):
    request = device.run_request(tmp_path, inputs={"golden": {"x": device.put_array(array, tmp_path)}})
    error = error_of(device.ask(request))
    assert error["kind"] == kind
    assert words in error["message"]


def test_an_input_of_another_name_is_refused(device, tmp_path):
    request = device.run_request(tmp_path)
    request["inputs"] = {"golden": {"image": request["inputs"]["golden"]["x"]}}
    assert "the model's inputs are x; given: image" in error_of(device.ask(request))["message"]


def test_a_blob_with_other_bytes_is_removed_and_named(device, tmp_path):
    request = device.run_request(tmp_path)
    sha256 = request["model"]["files"][0]["sha256"]
    (device.root / "store" / sha256).write_bytes(b"9.0")
    error = error_of(device.ask(request))
    assert (error["kind"], error["detail"]["sha256"]) == ("blob", sha256)
    assert not (device.root / "store" / sha256).exists()
    assert device.current is None


@pytest.mark.parametrize("wrong", [-2.0, float("nan")])
def test_an_unhealthy_release_is_not_switched_to(device, tmp_path, wrong):
    device.ask(device.run_request(tmp_path, factor=2.0, expected=2.0))
    answer = device.ask(device.run_request(tmp_path, factor=wrong, expected=2.0))
    assert answer["ok"] is True
    assert answer["health"]["ok"] is False
    assert "'y'" in answer["health"]["message"]
    assert (answer["released"], answer["runs"]) == (False, [])
    assert device.current == "digest2.0"
    assert [path.name for path in (device.root / "models/digits/releases").iterdir()] == ["digest2.0"]


def test_a_crash_in_the_health_check_switches_nothing(device, tmp_path):
    request = device.run_request(tmp_path, expected=2.0, options={"signal": signal.SIGABRT})
    error = error_of(device.ask(request))
    assert (error["kind"], error["detail"]["released"]) == ("crashed", False)
    assert device.current is None


def test_programs_see_the_old_release_or_the_new_one_never_none(device, tmp_path):
    device.ask(device.run_request(tmp_path, factor=1.0, expected=1.0))
    process = device.start(device.run_request(tmp_path, factor=3.0, expected=3.0))
    seen = set()
    while process.poll() is None:
        seen.add((device.root / "models/digits/current/model.txt").read_text())
    process.communicate()
    assert seen | {"3.0"} == {"1.0", "3.0"}
    assert device.current == "digest3.0"


def test_old_releases_are_pruned_and_rollback_goes_back_one_by_one(device, tmp_path):
    for factor in (1.0, 2.0, 3.0, 4.0):
        device.ask(device.run_request(tmp_path, factor=factor, keep_releases=2, workloads=[]))
    releases = device.root / "models/digits/releases"
    assert sorted(path.name for path in releases.iterdir()) == ["digest2.0", "digest3.0", "digest4.0"]
    back = {"command": "rollback", "model": "digits", "to": None}
    assert [device.ask(back)["current"] for _ in range(2)] == ["digest3.0", "digest2.0"]
    error = error_of(device.ask(back))
    assert error["kind"] == "release"
    assert device.current == "digest2.0"


def test_a_damaged_release_is_made_anew(device, tmp_path):
    device.ask(device.run_request(tmp_path, workloads=[]))
    file = device.root / "models/digits/current/model.txt"
    file.unlink()
    file.write_text("broken")
    assert device.ask(device.run_request(tmp_path, expected=2.0))["health"]["ok"] is True
    assert file.read_text() == "2.0"


def test_unused_blobs_go_after_a_day_and_those_of_releases_stay(device, tmp_path):
    request = device.run_request(tmp_path, workloads=[])
    unused = device.put(b"unused")
    for path in (device.root / "store").iterdir():
        os.utime(path, (0, 0))
    device.ask(request)
    left = {path.name for path in (device.root / "store").iterdir()}
    assert request["model"]["files"][0]["sha256"] in left
    assert unused not in left


def test_a_second_run_waits_for_the_lock_or_is_told_that_the_device_is_busy(device, tmp_path):
    note = tmp_path / "pid"
    slow = device.start(device.run_request(tmp_path, options={"sleep": 1, "note": str(note)}))
    wait_for(note)
    impatient = device.run_request(tmp_path, run_id="r2", lock_seconds=0.1)
    assert error_of(device.ask(impatient))["kind"] == "busy"
    assert device.ask({"command": "inspect", "blobs": [], "model": None})["ok"] is True
    assert device.ask(device.run_request(tmp_path, run_id="r3"))["ok"] is True
    assert slow.wait(timeout=30) == 0
    slow.communicate()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: str) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, "close"])
def test_no_worker_outlives_the_agent_or_its_host(device, tmp_path, end):
    note = tmp_path / "pid"
    process = device.start(device.run_request(tmp_path, options={"sleep": 300, "note": str(note)}))
    wait_for(note)
    if end == "close":
        process.stdout.close()
    else:
        process.send_signal(end)
    assert is_gone(note.read_text())
    process.wait(timeout=20)
    for stream in (process.stdout, process.stderr):
        stream.close()


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "../x"},
        {"run_id": ".."},
        {"driver": "device_../../x.py"},
        {"driver": "agent.py"},
        {"model": {"name": "../x", "digest": "d", "main": "m", "files": []}},
        {"model": {"name": "x", "digest": "d/e", "main": "m", "files": []}},
        {"model": {"name": "x", "digest": "d", "main": "../m", "files": []}},
        {"model": {"name": "x", "digest": "d", "main": "m", "files": [{"path": "/etc/x", "sha256": "0" * 64}]}},
        {"inputs": {"golden": {"x": "../../etc/passwd"}}},
        {"workloads": [workload(name="../out")]},
        {"workloads": [workload(processes=True)]},
        {"workloads": [workload("health")]},
        {"runtime": {"kind": "wheels", "digest": "..", "wheels": []}},
        {"runtime": {"kind": "none"}},
        {"command": "erase"},
        {"schema_version": 2},
    ],
)
def test_a_request_that_leaves_its_folders_or_its_form_is_refused(device, tmp_path, change):
    error = error_of(device.ask(device.run_request(tmp_path) | change))
    assert error["kind"] == "request", error


def test_a_hook_of_the_devices_owner_is_told_of_a_switch(device, tmp_path):
    device.ask(device.run_request(tmp_path, factor=1.0, workloads=[]))
    hook = device.root / "models/digits/on-switch"
    hook.write_text(f'#!/bin/sh\necho "$1 $2" > {tmp_path}/told\nexit 3\n')
    hook.chmod(0o755)
    answer = device.ask(device.run_request(tmp_path, factor=2.0, workloads=[]))
    assert answer["hook"] == {"returncode": 3, "message": ""}
    assert (tmp_path / "told").read_text().split() == [f"{device.root}/models/digits/current", "digest1.0"]


@pytest.fixture
def agent(monkeypatch):
    monkeypatch.syspath_prepend(str(AGENT))
    for name in ("agent", "store", "facts", "conditions", "held", "attended"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("agent")


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EACCES, "permission"), (errno.EIO, "internal")],
)
def test_what_the_system_refuses_has_a_kind(agent, monkeypatch, number, kind):
    def refuse(data):
        raise OSError(number, "refused")

    monkeypatch.setattr(agent, "handle", refuse)
    assert agent.answer(b"{}")["error"]["kind"] == kind


def test_what_is_no_request_still_gets_an_answer(agent):
    for data in (b"", b"[]", b"\xff", b'{"schema_version": 1}'):
        assert agent.answer(data)["error"]["kind"] == "request"
