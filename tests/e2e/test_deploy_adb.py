"""`edgekit deploy` over ADB: the real `adb` program, a simulated Android device, a stand-in for benchmark_model."""

from __future__ import annotations

import shutil

import pytest
import yaml

from tests.devices import benchmark_model as stand_in
from tests.e2e.kit import PROJECT, QUICK, write

pytestmark = pytest.mark.slow


@pytest.fixture
def phone(person, adb_daemon, own_adb):
    """A project with the target android-arm64 and one device of it, `phone`; gives its models' folder."""
    person.env.update({key: value for key, value in own_adb.items() if key != "HOME"})
    program = stand_in.install(person.folder)
    # Each example is a process on the device.
    write(person.cwd, {**PROJECT, "data.py": PROJECT["data.py"].replace('"test": 60', '"test": 6')})
    entry = {
        "target": "android-arm64",
        "transport": "adb",
        "address": adb_daemon.address,
        "options": {"home": str(adb_daemon.home)},
        "runner_options": {"binary": str(program)},
        "emulated": True,
    }
    (person.cwd / "devices.yaml").write_text(yaml.safe_dump({"schema_version": 1, "devices": {"phone": entry}}))
    return adb_daemon.home / ".edgekit" / "models" / "corners"


def test_a_phone_is_probed_deployed_to_and_rolled_back(person, phone, adb_daemon):
    facts = person.run("devices", "probe", "phone", "--json").check().json["facts"]
    assert (facts["machine_model"], facts["abi"], facts["thermal_status"]) == ("Google Pixel 8", "arm64-v8a", "none")

    done = person.run("deploy", "--target", "android-arm64", "--json", *QUICK).check()
    (result,) = done.json["results"]
    assert (result["transport"], result["runner"], result["released"]) == ("adb", "benchmark_model", True)
    assert result["latency_ms"].keys() == {"count", "mean", "min", "max", "std"}
    assert result["samples_ms"] == []
    assert result["peak_rss_mib"] == 33.25
    assert "never yet on a phone" in result["unverified"]
    assert "unverified" in done.err
    accuracy = result["accuracy"]
    assert accuracy["device"]["top1"] == accuracy["host"]["top1"] == accuracy["source"]["top1"]
    assert accuracy["agreement"] == {"scores": 1.0}
    assert result["conditions"]["battery_pct"] == 84.0
    first = result["artifact_digest"]
    assert (phone / "current").readlink().name == first

    shown = person.run("report", result["run"]).check()
    assert "unverified" in shown.out
    # A release before this one, without minutes of building another model.
    releases = phone / "releases"
    (releases / first).rename(releases / "0123")
    (phone / "history").write_text(f"0123\n{first}\n")
    shutil.copytree(releases / "0123", releases / first)
    back = person.run("rollback", "corners", "--device", "phone", "--json").check().json
    assert (back["current"], back["previous"]) == ("0123", first)
    assert (phone / "current").readlink().name == "0123"
    refused = person.run("rollback", "corners", "--device", "phone").check(3)
    assert "no such earlier release" in refused.err
    assert not (adb_daemon.home / ".edgekit" / "lock.d").exists()


def test_a_phone_that_says_no_ends_in_a_hint_and_no_traceback(person, phone, adb_daemon):
    adb_daemon.faults.unauthorized = True
    done = person.run("devices", "probe", "phone").check(3)
    assert "has not allowed this computer to debug it" in done.err
    assert "accept" in done.err


def test_a_target_without_a_device_shows_how_an_adb_device_is_added(person, phone):
    (person.cwd / "devices.yaml").unlink()
    done = person.run("deploy", "--target", "android-arm64", *QUICK).check(2)
    assert "transport: adb, address: SERIAL" in done.err
