"""`edgekit deploy` to a machine with its own kernel and memory: the whole line, with the runtime's wheels for aarch64."""

from __future__ import annotations

import pytest
import yaml

from tests.e2e.kit import PROJECT, QUICK, Person, write
from tests.vm.kit import MARKS

pytestmark = MARKS


@pytest.fixture
def person(tmp_path, wheel_cache):
    person = Person(tmp_path / "person")
    (person.cache / "wheels").symlink_to(wheel_cache)
    yield person
    person.leave()


def entry(device):
    """A device as devices.yaml has it."""
    keys = ("target", "transport", "address", "options", "emulated")
    return {"schema_version": 1, "devices": {device.name: {key: getattr(device, key) for key in keys}}}


def test_a_project_is_deployed_and_measured(person, machine):
    write(person.cwd, {**PROJECT, "devices.yaml": yaml.safe_dump(entry(machine.device()))})
    done = person.run("deploy", "--target", "rpi4", "--backend", "litert", "--json", *QUICK).check()
    (result,) = done.json["results"]
    assert result["released"] is True
    conditions = result["conditions"]
    assert (conditions["emulated"], conditions["xnnpack_applied"]) == (True, True)
    assert conditions["cores"] == 2
    assert conditions["kernel"].endswith("-cloud-arm64")
    assert result["accuracy"]["device"] == result["accuracy"]["host"]
    assert 20 < result["runtime_baseline_mib"] < 60
    assert 0 < result["model_delta_mib"] < 30
    assert result["peak_rss_mib"] == pytest.approx(result["runtime_baseline_mib"] + result["model_delta_mib"], abs=0.1)
    link = machine.run("readlink", "/root/.edgekit/models/corners/current").check().strip()
    assert link == f"releases/{result['artifact_digest']}"
    again = person.run("deploy", "--target", "rpi4", "--backend", "litert", "--json", *QUICK).check()
    assert again.json["results"][0]["bytes_sent"] == 0
