"""Memory by stage, the limit that a process has, and why one was killed; trees as in tests/fixtures/conditions."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tests.unit.agent.kit import AGENT, workload
from tests.unit.agent.test_conditions import TREES

_spec = importlib.util.spec_from_file_location("agent_memory", AGENT / "memory.py")
memory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(memory)


def test_each_stage_has_what_is_held_and_the_most_within_it():
    stages = memory.Stages()
    stages.mark("import")
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    stages.mark("load")
    del block
    stages.mark("steady")
    sizes = stages.sizes
    assert sizes["load"]["rss_mib"] - sizes["import"]["rss_mib"] > 50
    assert sizes["load"]["pss_mib"] > 50
    figures = stages.figures()
    assert figures["peak_rss_mib"] == max(sizes["load"]["peak_mib"], sizes["steady"]["peak_mib"])
    assert figures["model_delta_mib"] > 50
    if stages.cleared:
        assert sizes["steady"]["peak_mib"] < sizes["load"]["peak_mib"]


def test_a_kernel_that_refuses_to_clear_is_said_and_the_peak_is_an_upper_bound(tmp_path):
    (tmp_path / "clear_refs").mkdir()  # nobody may write to it
    (tmp_path / "status").write_text("VmHWM:\t   90000 kB\nVmRSS:\t   40960 kB\nVmSwap:\t    1024 kB\n")
    stages = memory.Stages(str(tmp_path))
    stages.mark("import")
    stages.mark("load")
    assert stages.cleared is False
    assert stages.sizes["load"] == {"rss_mib": 40.0, "swap_mib": 1.0, "peak_mib": pytest.approx(87.891, abs=0.001)}
    assert stages.figures()["peak_rss_mib"] == pytest.approx(87.891, abs=0.001)


def tree(name):
    return {"proc": str(TREES / name / "proc"), "cgroup": str(TREES / name / "cgroup")}


def test_the_tightest_limit_of_all_groups_counts():
    assert memory.limit(**tree("pi4")) == (512.0, "memory.max of its control group")


def test_the_older_control_groups_are_read_too():
    assert memory.limit(**tree("laptop")) == (256.0, "memory.limit_in_bytes of its control group")
    assert list(memory.kills(**tree("laptop")).values()) == [4]


def test_without_a_group_the_limit_is_all_memory(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:        1048576 kB\n")
    assert memory.limit(str(tmp_path), str(tmp_path)) == (1024.0, "all memory of the device")


def test_a_counted_kill_is_told_with_the_limit(tmp_path):
    shutil.copytree(TREES / "pi4", tmp_path / "pi4")
    here = {"proc": str(tmp_path / "pi4/proc"), "cgroup": str(tmp_path / "pi4/cgroup")}
    before = memory.kills(**here)
    words, detail = memory.killed(before, **here)
    assert words.startswith("most likely the device ran out of memory")
    assert detail["oom_kills"] == 0
    events = tmp_path / "pi4/cgroup/user.slice/memory.events"
    events.write_text(events.read_text().replace("oom_kill 1", "oom_kill 2"))
    words, detail = memory.killed(before, **here)
    assert words == "the device ran out of memory (limit: 512 MiB, memory.max of its control group)"
    assert detail == {"oom_kills": 1, "limit_mib": 512.0, "limit": "memory.max of its control group"}


def test_a_kill_in_the_agents_answer_names_the_limit(device, tmp_path):
    answer = device.ask(device.run_request(tmp_path, options={"signal": 9}))
    assert answer["error"]["detail"]["limit_mib"] > 0
    assert "limit: " in answer["error"]["message"]


def test_a_cold_load_is_a_workload_of_its_own(device, tmp_path):
    answer = device.ask(device.run_request(tmp_path, workloads=[workload("load", processes=2)]))
    assert [run["kind"] for run in answer["runs"]] == ["load", "load"]
    assert {run["cold"] for run in answer["runs"]} <= {True, False}
    assert all(run["load_ms"] > 0 for run in answer["runs"])
    assert not (device.root / "runs" / "r1").exists()


def test_a_sustained_workload_is_told_in_windows(device, tmp_path):
    answer = device.ask(device.run_request(tmp_path, workloads=[workload("sustained", max_seconds=1.1)]))
    run = answer["runs"][0]
    assert {"t", "count", "p50_ms", "p90_ms", "max_ms"} == set(run["windows"][0])
    assert run["watched"]
