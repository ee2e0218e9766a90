"""What is held on a device is given back: after a normal end, an error, a signal, and a kill."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.agent.kit import AGENT
from tests.unit.agent.test_conditions import TREES


@pytest.fixture
def held(monkeypatch):
    monkeypatch.syspath_prepend(str(AGENT))
    return importlib.import_module("held")


class Machine:
    def __init__(self, folder: Path, name: str) -> None:
        shutil.copytree(TREES / name, folder / "machine")
        self.root = folder / "root"
        self.root.mkdir()
        self.roots = {"proc": str(folder / "machine/proc"), "sys": str(folder / "machine/sys")}
        self.policies = folder / "machine/sys/devices/system/cpu/cpufreq"

    @property
    def governors(self) -> list[str]:
        return [path.read_text().strip() for path in sorted(self.policies.glob("*/scaling_governor"))]

    @property
    def note(self) -> Path:
        return self.root / "governor-before.json"


@pytest.fixture
def laptop(tmp_path):
    return Machine(tmp_path, "laptop")


def test_a_governor_is_set_noted_and_given_back(held, laptop):
    done = held.governor(str(laptop.root), "performance", **laptop.roots)
    assert (done["set"], done["trouble"]) == (["policy0", "policy2"], None)
    assert laptop.governors == ["performance", "performance"]
    assert json.loads(laptop.note.read_text())["governors"] == {"policy0": "powersave", "policy2": "powersave"}
    assert held.restore(str(laptop.root), **laptop.roots) == []
    assert laptop.governors == ["powersave", "powersave"]
    assert not laptop.note.exists()


SCRIPT = """
import sys, time, signal
sys.path.insert(0, sys.argv[1])
import attended
class Stopped(BaseException): pass
def stop(*_): raise Stopped
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
try:
    with attended.Attendant({"governor": "performance"}, sys.argv[2], print, sys.argv[3], sys.argv[4]):
        print("held", flush=True)
        time.sleep(60)
except Stopped:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_a_run_the_governor_is_given_back(held, laptop, number):
    argv = [sys.executable, "-c", SCRIPT, str(AGENT), str(laptop.root), laptop.roots["proc"], laptop.roots["sys"]]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert laptop.governors == ["performance", "performance"]
    process.send_signal(number)
    process.communicate(timeout=20)
    if number == signal.SIGKILL:
        assert laptop.governors == ["performance", "performance"]
        # What the next start of the agent does.
        assert held.restore(str(laptop.root), **laptop.roots) == []
    assert laptop.governors == ["powersave", "powersave"]
    assert not laptop.note.exists()


def test_the_next_request_gives_back_what_a_killed_agent_left(device):
    note = device.root / "governor-before.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note.write_text(json.dumps({"boot": boot, "governors": {}}))
    assert device.ask({"command": "inspect", "blobs": [], "model": None})["ok"] is True
    assert not note.exists()


def test_a_note_of_before_the_last_start_changes_nothing(held, laptop):
    laptop.note.write_text(json.dumps({"boot": "another", "governors": {"policy0": "performance"}}))
    assert held.restore(str(laptop.root), **laptop.roots) == []
    assert laptop.governors == ["powersave", "powersave"]
    assert not laptop.note.exists()


def test_half_a_note_is_removed_and_changes_nothing(held, laptop):
    laptop.note.write_text('{"boot": "x", "gover')
    assert held.restore(str(laptop.root), **laptop.roots) == []
    assert not laptop.note.exists()


def test_no_permission_is_said_and_leaves_no_note(held, laptop):
    for path in laptop.policies.glob("*/scaling_governor"):
        path.unlink()
        path.symlink_to("/proc/sys/kernel/ostype")  # may be read, and is written by nobody, not even by root
    found = held.governor(str(laptop.root), "performance", **laptop.roots)
    assert found["set"] == []
    assert found["trouble"] in ("Permission denied", "Operation not permitted")
    assert not laptop.note.exists()


def test_what_cannot_be_given_back_stays_noted(held, laptop):
    held.governor(str(laptop.root), "performance", **laptop.roots)
    shutil.rmtree(laptop.policies / "policy2")
    assert held.restore(str(laptop.root), **laptop.roots) == ["policy2"]
    assert laptop.note.exists()


def test_a_machine_without_policies_says_so(held, tmp_path):
    bare = Machine(tmp_path, "bare")
    assert "no frequency policies" in held.governor(str(bare.root), "performance", **bare.roots)["trouble"]


def test_cooling_waits_until_it_is_cool(held):
    readings = iter([61.0, 58.0, 54.5])
    waits = []
    found = held.cool(55.0, 60.0, lambda: next(readings), waits.append)
    assert (found["from_c"], found["to_c"], found["reached"], len(waits)) == (61.0, 54.5, True, 2)


def test_cooling_ends_at_its_time_and_without_a_sensor_at_once(held):
    found = held.cool(55.0, 0.05, lambda: 80.0)
    assert (found["to_c"], found["reached"]) == (80.0, False)
    assert held.cool(55.0, 60.0, lambda: None)["reached"] is None


def test_a_run_that_asks_for_a_governor_runs_where_there_is_none(device, tmp_path):
    from tests.unit.agent.kit import workload

    asked = {"governor": "no-such", "cool_below_c": 1000, "sensors": []}
    answer = device.ask(device.run_request(tmp_path, workloads=[workload("latency")], conditions=asked))
    governor = answer["held"]["governor"]
    assert governor["asked"] == "no-such"
    assert governor["set"] == []
    assert governor["trouble"]
    run = answer["runs"][0]
    assert run["cooled"]["below_c"] == 1000
    assert run["conditions_before"]["busiest"] == run["conditions_before"]["busiest"][:3]
    assert run["watched"]
    assert run["conditions_after"]["other_cores"] >= 0


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../etc/*", 3])
def test_a_sensor_outside_sys_is_refused(device, tmp_path, pattern):
    answer = device.ask(device.run_request(tmp_path, conditions={"sensors": [pattern]}))
    assert answer["error"]["kind"] == "request"
    assert "below /sys" in answer["error"]["message"]


def test_the_note_is_left_alone_while_the_run_that_wrote_it_goes_on(device, tmp_path):
    note_pid = tmp_path / "pid"
    slow = device.start(device.run_request(tmp_path, options={"sleep": 1, "note": str(note_pid)}))
    deadline = time.monotonic() + 30
    while not note_pid.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = device.root / "governor-before.json"
    note.write_text(json.dumps({"boot": boot, "governors": {}}))
    os.utime(note)
    assert device.ask({"command": "inspect", "blobs": [], "model": None})["ok"] is True
    assert note.exists()
    slow.communicate(timeout=60)
