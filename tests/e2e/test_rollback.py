"""`edgekit rollback`, on this machine as the device."""

import pytest

from tests.e2e.kit import PROJECT, QUICK, write

pytestmark = pytest.mark.slow


def test_the_release_before_comes_back(person):
    write(person.cwd, PROJECT)
    target = ("--target", "linux-x86", "--backend", "openvino", "--quiet", "--json", *QUICK)
    first = person.run("deploy", *target).check().json["results"][0]["artifact_digest"]
    write(person.cwd, {"model.py": (person.cwd / "model.py").read_text().replace("manual_seed(0)", "manual_seed(1)")})
    second = person.run("deploy", *target).check().json["results"][0]["artifact_digest"]
    assert first != second
    name = person.run("deploy", *target).check().json["results"][0]["model"]
    back = person.run("rollback", name, "--device", "local", "--json").check().json
    assert back["current"] == first
    assert back["previous"] == second
    assert person.run("rollback", "nobody", "--device", "local").code in (2, 3)
