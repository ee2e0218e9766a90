"""`edgekit deploy` to an iPhone and to a Mac: a real SSH server, coremltools' real code there, a stand-in for what macOS has."""

from __future__ import annotations

import pytest
import yaml

from tests.devices.mac import StandInMac, listing, phone
from tests.e2e.kit import PROJECT, QUICK, write

pytestmark = pytest.mark.slow


@pytest.fixture
def mac(person, make_sshd, tmp_path):
    """A project, and devices `my-iphone` and `mini` that are one stand-in Mac behind a real sshd."""
    mac = StandInMac(tmp_path / "mac", listing(phone(tunnelState="disconnected")))
    sshd = make_sshd()
    sshd.wrap(mac.login)
    # Each call is a file to the phone and one back.
    write(person.cwd, {**PROJECT, "data.py": PROJECT["data.py"].replace('"test": 60', '"test": 6')})
    entry = {
        "transport": "ssh",
        "address": sshd.address,
        "options": sshd.device().options,
        "python": str(mac.bin / "python3"),
    }
    devices = {"my-iphone": {**entry, "target": "iphone15"}, "mini": {**entry, "target": "mac"}}
    (person.cwd / "devices.yaml").write_text(yaml.safe_dump({"schema_version": 1, "devices": devices}))
    return mac


def test_an_iphone_is_probed_and_measured_and_nothing_is_released_on_it(person, mac):
    facts = person.run("devices", "probe", "my-iphone", "--json").check().json["facts"]
    assert facts["machine_model"] == "Mac14,3"
    assert facts["phones"].startswith("'Test iPhone' (iPhone 15 (iPhone15,4), iOS 18.1")

    done = person.run("deploy", "--target", "iphone15", "--json", *QUICK).check()
    (result,) = done.json["results"]
    assert (result["transport"], result["runner"], result["released"]) == ("ssh", "coreml_mac", False)
    assert "never yet on a Mac or a phone" in result["unverified"]
    assert len(result["samples_ms"]) == 5
    assert result["conditions"]["os"] == "iOS 18.1 (22B83)"
    assert result["conditions"]["runtime"] == "Core ML on the phone"
    assert "init_ms" not in result, "that is coremltools on the Mac, not the phone"
    accuracy = result["accuracy"]
    assert accuracy["device"]["top1"] == accuracy["host"]["top1"]
    assert "the model does not stay on 'Test iPhone'" in done.err
    assert "unverified" in person.run("report", result["run"]).check().out

    refused = person.run("rollback", "corners", "--device", "my-iphone").check(2)
    assert "keeps no releases" in refused.err

    mac.set(listing=listing(phone(developerModeStatus="disabled")))
    off = person.run("deploy", "--target", "iphone15", *QUICK).check(3)
    assert "Developer Mode is off" in off.err
    assert "Privacy & Security" in off.err

    mac.set(listing=listing(phone(), phone(udid="B", name="Second")))
    several = person.run("deploy", "--target", "iphone15", *QUICK).check(2)
    assert "Several phones are attached" in several.err
    assert "runner_options: {device:" in several.err


def test_a_mac_is_measured_itself(person, mac):
    (result,) = person.run("deploy", "--target", "mac", "--json", *QUICK).check().json["results"]
    assert (result["device"], result["runner"], result["released"]) == ("mini", "coreml_mac", False)
    assert (result["conditions"]["os"], result["conditions"]["cpu_model"]) == ("macOS 15.1 (24B83)", "Apple M2")
    assert len(result["samples_ms"]) >= 5
    assert result["accuracy"]["device"]["top1"] == result["accuracy"]["host"]["top1"]
