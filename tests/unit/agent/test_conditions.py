"""Conditions as they are read, on recorded trees: see tests/fixtures/conditions/README.md. Unverified on hardware."""

from __future__ import annotations

import importlib
import shutil
import time
from pathlib import Path

import pytest

from tests.unit.agent.kit import AGENT

TREES = Path(__file__).resolve().parents[2] / "fixtures" / "conditions"


@pytest.fixture
def conditions(monkeypatch):
    monkeypatch.syspath_prepend(str(AGENT))
    return importlib.import_module("conditions")


def roots(name):
    return {"proc": str(TREES / name / "proc"), "sys": str(TREES / name / "sys")}


def test_a_hot_raspberry_pi_is_read_whole(conditions):
    found = conditions.read(**roots("pi4"))
    assert found["policies"]["policy0"] == {
        "governor": "ondemand",
        "cores": "0 1 2 3",
        "hardware_min_mhz": 600.0,
        "hardware_max_mhz": 1800.0,
        "min_mhz": 600.0,
        "max_mhz": 1800.0,
        "cur_mhz": 1500.0,
    }
    assert found["zones"] == [{"zone": "thermal_zone0", "type": "cpu-thermal", "temp_c": 81.3}]
    assert found["throttling"] == {
        "raw": "0x50001",
        "now": ["under-voltage"],
        "occurred": ["under-voltage", "throttled"],
    }
    assert found["throttled"] is True
    assert (found["ram_available_mib"], found["swap_used_mib"], found["memory_pressure_pct"]) == (200.0, 50.0, 12.5)
    assert (found["load_1min"], found["cpu_pressure_pct"]) == (2.5, 30.0)


def test_a_laptop_has_two_policies_a_battery_and_counts_its_throttling(conditions):
    found = conditions.read(**roots("laptop"))
    assert list(found["policies"]) == ["policy0", "policy2"]
    assert [zone["type"] for zone in found["zones"]] == ["acpitz", "x86_pkg_temp"]
    assert (found["temp_c"], found["throttle_count"], found["battery_pct"]) == (52.0, 7, 64.0)
    assert found["throttling"] is None


def test_what_a_machine_does_not_tell_is_none_or_absent(conditions):
    found = conditions.read(**roots("bare"))
    assert {found[key] for key in ("temp_c", "governor", "throttling", "load_1min", "memory_pressure_pct")} == {None}
    assert (found["policies"], found["zones"]) == ({}, [])


def test_flags_are_decoded_into_now_and_since_the_start(conditions):
    assert conditions.decoded(0) == {"raw": "0x0", "now": [], "occurred": []}
    assert conditions.decoded(0xE0006)["now"] == ["frequency capped", "throttled"]
    assert conditions.decoded(0x80008)["occurred"] == ["soft temperature limit"]


def test_vcgencmd_is_asked_where_the_kernel_does_not_tell(conditions, tmp_path):
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x20000\n")
    program.chmod(0o755)
    assert conditions.firmware(str(tmp_path), str(program))["occurred"] == ["frequency capped"]
    program.write_text("#!/bin/sh\necho 'VCHI initialization failed'\nexit 255\n")
    assert conditions.firmware(str(tmp_path), str(program)) is None


def test_the_busiest_processes_are_named_with_their_share(conditions, tmp_path):
    shutil.copytree(TREES / "pi4" / "proc", tmp_path / "proc")
    before = conditions.processes(str(tmp_path / "proc"))
    assert before[100][0] == "browser (main)"
    stat = tmp_path / "proc" / "100" / "stat"
    stat.write_text(stat.read_text().replace(" 500 0 ", " 650 0 "))
    after = conditions.processes(str(tmp_path / "proc"))
    ticks = conditions._TICKS
    assert conditions.busiest(before, after, 2.0) == [
        {"name": "browser (main)", "pid": 100, "cores": round(150 / ticks / 2, 3)}
    ]


def test_what_a_host_takes_from_a_virtual_machine_counts_as_work_of_others(conditions, tmp_path):
    (tmp_path / "stat").write_text("cpu  100 0 50 900 0 0 0 40 0 0\n")
    assert conditions.busy_seconds(str(tmp_path)) == 190 / conditions._TICKS


def test_a_sampler_keeps_what_it_saw_until_it_is_stopped(conditions):
    with conditions.Sampler(lambda: {"x": 1}, 0.01) as sampler:
        deadline = time.monotonic() + 20
        while len(sampler.rows) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    kept = len(sampler.rows)
    assert kept >= 3
    assert not sampler.is_alive()
    assert [row["t"] for row in sampler.rows] == sorted(row["t"] for row in sampler.rows)


def test_sensors_are_found_by_pattern_and_read_as_numbers(conditions):
    sys = roots("laptop")["sys"]
    files = conditions.files_of(["class/powercap/intel-rapl:*/energy_uj", "class/no/such*"], sys)
    assert len(files) == 3
    assert conditions.numbers(files, sys)["class/powercap/intel-rapl:0/energy_uj"] == 262143000000.0
