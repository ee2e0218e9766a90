"""Devices that LiteRT has no wheel for: tflite-runtime instead, real, on emulated Debian systems of those kinds."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.operator_versions import NEWEST
from tests.devices import operator_versions
from tests.e2e.kit import PROJECT, QUICK, Person, write, write_devices

pytestmark = [pytest.mark.slow, pytest.mark.network]
INT8 = """
    schema_version: 1
    passes: [{fold_batch_norm: {}}]
    lowering: {quantize: {scheme: static_wi8_ai8}}
    """


class Bench:
    """A person with a project and one emulated device."""

    def __init__(self, person, pi):
        self.person, self.pi = person, pi
        write(person.cwd, {**PROJECT, "int8.yaml": INT8})
        write_devices(person.cwd, pi=pi.device())
        self.first = self.deploy()

    def deploy(self, *options):
        done = self.person.run("deploy", "--target", self.pi.target, "--backend", "litert", "--json", *QUICK, *options)
        (result,) = done.check().json["results"]
        return result, done.err

    def artifact(self, folder: Path) -> Path:
        """The first result's artifact, exported."""
        out = folder / "exported"
        self.person.run("compile", "--target", self.pi.target, "--backend", "litert", "--out", out).check()
        (found,) = out.iterdir()
        return found

    def versions(self):
        """What the runtime that was sent there says of itself."""
        (runtime,) = (self.pi.home / ".edgekit" / "runtimes").iterdir()
        shutil.copy(operator_versions.__file__, self.pi.home)
        argv = ["/usr/bin/env", f"PYTHONPATH={runtime}", "python3", f"{self.pi.home}/operator_versions.py"]
        done = subprocess.run(self.pi.within(argv), check=True, capture_output=True, text=True, timeout=300)
        return json.loads(done.stdout)


def bench(tmp_path_factory, wheel_cache, pi):
    person = Person(tmp_path_factory.mktemp("bench"))
    (person.cache / "wheels").symlink_to(wheel_cache)
    return Bench(person, pi)


@pytest.fixture(scope="module")
def old(tmp_path_factory, wheel_cache, emulated_pi_bullseye):
    """64-bit, Python 3.9, glibc 2.31."""
    return bench(tmp_path_factory, wheel_cache, emulated_pi_bullseye)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, wheel_cache, emulated_pi_32bit):
    """32-bit, Python 3.11, glibc 2.36, NumPy of the system's own."""
    return bench(tmp_path_factory, wheel_cache, emulated_pi_32bit)


@pytest.fixture(params=["old", "narrow"])
def device(request):
    return request.getfixturevalue(request.param)


RELEASES = {"rpi4": "2.13.0", "rpi-32bit": "2.14.0"}


def test_tflite_runtime_takes_the_place_of_litert_and_that_is_said(device):
    result, said = device.first
    release = RELEASES[device.pi.target]
    assert (result["conditions"]["runtime"], result["conditions"]["runtime_version"]) == ("tflite-runtime", release)
    assert f"tflite-runtime=={release}" in said
    assert "ai-edge-litert==2.3.0" in said
    assert (result["released"], result["emulated"]) == (True, True)
    # The wheel for armv7l was built without XNNPACK.
    assert result["conditions"]["xnnpack_applied"] is (device.pi.target != "rpi-32bit")
    accuracy = result["accuracy"]
    assert accuracy["device"]["top1"] == accuracy["host"]["top1"]
    assert accuracy["agreement"] == {"scores": 1.0}


def test_a_second_deploy_there_sends_nothing_either(device):
    result, _ = device.deploy()
    assert result["bytes_sent"] == 0


def test_int8_runs_on_it(device):
    result, _ = device.deploy("--recipe", "int8.yaml")
    assert abs(result["accuracy"]["device"]["top1"] - result["accuracy"]["host"]["top1"]) <= 1 / 60


def test_the_table_of_operators_is_what_the_runtime_itself_says(device):
    found = device.versions()
    release = RELEASES[device.pi.target]
    assert found["runtime"] == f"tflite-runtime {release}"
    assert found["versions"] == {
        str(code): op.versions[release] for code, op in NEWEST.items() if release in op.versions
    }


def test_an_operator_it_lacks_is_named_before_anything_is_sent(narrow, tmp_path):
    artifact = narrow.artifact(tmp_path)
    model = flatbuffer.read((artifact / "model.tflite").read_bytes())
    model.operatorCodes[0].version = 99
    _with_model(artifact, flatbuffer.write(model))
    store = narrow.pi.home / ".edgekit" / "store"
    before = sorted(path.name for path in store.iterdir())
    done = narrow.person.run("deploy", artifact, "--device", "pi", "--json", *QUICK).check(3)
    message = done.json["error"]["message"]
    assert "version 99" in message
    assert "tflite-runtime==2.14.0" in message
    assert "Nothing was sent" in message
    assert sorted(path.name for path in store.iterdir()) == before


def _with_model(artifact: Path, content: bytes) -> None:
    """The artifact with another model file, and a manifest that says so."""
    (artifact / "model.tflite").write_bytes(content)
    manifest = json.loads((artifact / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "model.tflite":
            entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    (artifact / "manifest.json").write_text(json.dumps(manifest))
