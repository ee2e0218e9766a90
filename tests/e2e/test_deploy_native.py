"""`edgekit deploy` to a device without Python, over a real sshd: the program is compiled, the library is fetched as a wheel."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit.backends.base import registry as backends
from edgekit.core.artifact import load_artifact
from edgekit.core.progress import Silent
from edgekit.core.target import read_target
from edgekit.core.workload import Workload
from edgekit.runners.base import Job
from edgekit.runners.base import registry as runners
from edgekit.transports.base import connect
from tests.devices import bare
from tests.devices.pi import EmulatedPi
from tests.e2e.kit import PROJECT, QUICK, Person, write, write_devices
from tests.e2e.site import LOOP_TARGET

pytest.importorskip("ziglang", reason="needs the compiler: pip install ziglang")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the device is this machine, as an x86_64 one"),
]


def only(document):
    """The one result of a report."""
    (result,) = document["results"]
    return result


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """LiteRT artifacts of the small project: float32, and int8 whose inputs and outputs are integers."""
    person = Person(tmp_path_factory.mktemp("native-builder"))
    integers = "schema_version: 1\npasses: []\nlowering: {quantize: {scheme: static_wi8_ai8, io: int8}}\n"
    write(person.cwd, {**PROJECT, "targets/loop-x86.yaml": LOOP_TARGET, "int8.yaml": integers})
    found = {}
    for name, recipe in (("float32", "recipe.yaml"), ("int8", "int8.yaml")):
        person.run("compile", "-t", "loop-x86", "-b", "litert", "-r", recipe, "--out", person.folder / name).check()
        (found[name],) = (person.folder / name).iterdir()
    return found


@pytest.fixture
def project(person):
    write(person.cwd, {**PROJECT, "targets/loop-x86.yaml": LOOP_TARGET})
    return person


@pytest.fixture
def board(project, make_sshd, tmp_path):
    """A device whose PATH has a shell and small tools only."""
    path = bare.make_path(tmp_path / "bin", "dash")
    sshd = make_sshd(settings=(f"SetEnv PATH={path}",))
    device = dataclasses.replace(sshd.device(), target="loop-x86")
    write_devices(project.cwd, pi=dataclasses.replace(device, runner="native"), agent=device)
    return sshd


def current(sshd, model="corners"):
    link = sshd.home / ".edgekit" / "models" / model / "current"
    return link.readlink().name if link.is_symlink() else None


def test_a_device_without_python_is_deployed_to_and_measured(project, board, artifacts):
    refused = project.run("deploy", artifacts["float32"], "--device", "agent", *QUICK).check(3)
    assert "There is no Python at 'python3'" in refused.err
    assert "`runner: native`" in refused.err
    result = only(project.run("deploy", artifacts["float32"], "--device", "pi", "--json", *QUICK).check().json)
    assert (result["runner"], result["released"], result["artifact_digest"]) == ("native", True, current(board))
    assert len(result["samples_ms"]) >= 5
    assert result["conditions"]["runtime_version"] == "2.3.0"
    assert result["conditions"]["xnnpack_applied"] is True
    assert 4 < result["peak_rss_mib"] < 25
    again = only(project.run("deploy", artifacts["float32"], "--device", "pi", "--json", *QUICK).check().json)
    assert again["bytes_sent"] == 0
    probed = project.run("devices", "probe", "pi", "--json").check().json["facts"]
    assert (probed["arch"], probed["python"]) == ("x86_64", None)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_it_computes_what_the_agent_computes_with_less_memory(
    kind, make_sshd, own_home, artifacts, wheel_cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "wheels").symlink_to(wheel_cache)
    artifact = load_artifact(artifacts[kind])
    golden = {spec.name: artifact.path / "golden" / "inputs" / f"{spec.name}.npy" for spec in artifact.manifest.inputs}
    quick = Workload("latency", "latency", min_runs=20, min_seconds=0.05)
    backend = backends.create("litert")
    target = read_target(Path(__file__).resolve().parents[2] / "targets" / "linux-x86.yaml")
    plan = backend.run_plan(artifact.manifest, target, [quick, Workload("outputs", "golden")])
    found = {}
    with connect(make_sshd().device()) as transport:
        for name in ("native", "agent"):
            job = Job(backend.driven(artifact), plan, tmp_path / name, {"golden": golden}, arch="x86_64")
            found[name] = runners.create(name).execute(job, transport, Silent())
    native, agent = (np.load(found[name].outputs["golden"]["scores"]) for name in ("native", "agent"))
    np.testing.assert_array_equal(native, agent)
    memory = {name: dict(one.runs[0].memory) for name, one in found.items()}
    assert memory["native"]["peak_rss_mib"] < memory["agent"]["peak_rss_mib"] / 2
    with capsys.disabled():
        middle = {name: float(np.median(one.runs[0].samples_ms)) for name, one in found.items()}
        print(
            f"\n  {kind}: {memory}; median ms {middle}; sent { ({n: o.bytes_sent for n, o in found.items()}) }", end=""
        )


def test_a_release_that_computes_something_else_is_not_switched_to(project, board, artifacts, tmp_path):
    project.run("deploy", artifacts["float32"], "--device", "pi", *QUICK).check()
    was = current(board)
    bad = shutil.copytree(artifacts["int8"], tmp_path / "bad")
    expected = bad / "golden" / "expected" / "scores.npy"
    np.save(expected, -np.load(expected))
    done = project.run("deploy", bad, "--device", "pi", *QUICK).check(1)
    assert "the release before is still in force" in done.err
    assert current(board) == was


def test_rollback_and_what_was_damaged_since(project, board, artifacts):
    first = only(project.run("deploy", artifacts["float32"], "--device", "pi", "--json", *QUICK).check().json)
    second = only(project.run("deploy", artifacts["int8"], "--device", "pi", "--json", *QUICK).check().json)
    project.run("rollback", "corners", "--device", "pi").check()
    assert current(board) == first["artifact_digest"]
    project.run("deploy", artifacts["int8"], "--device", "pi", *QUICK).check()
    release = board.home / ".edgekit" / "models" / "corners" / "releases" / first["artifact_digest"]
    model = next(release.glob("*.tflite"))
    data = model.read_bytes()
    model.unlink()
    model.write_bytes(data[:-1] + b"!")
    done = project.run("rollback", "corners", "--device", "pi").check(3)
    assert "is not what it was; deploy it anew" in done.err
    assert current(board) == second["artifact_digest"]


def test_a_runner_that_there_is_not_is_named_with_the_nearest(project, board, artifacts):
    devices = project.cwd / "devices.yaml"
    devices.write_text(devices.read_text().replace("runner: native", "runner: natve"))
    done = project.run("deploy", artifacts["float32"], "--device", "pi", *QUICK).check(2)
    assert "There is no runner 'natve'. Did you mean 'native'?" in done.err
    assert not (board.home / ".edgekit").exists()


def test_an_emulated_arm_board_computes_the_same(project, artifacts, emulated_pi: EmulatedPi):
    device = dataclasses.replace(emulated_pi.device(), runner="native")
    write(project.cwd, {"targets/rpi4.yaml": _arm_target()})
    write_devices(project.cwd, pi=device)
    done = project.run("deploy", "--target", "rpi4", "--backend", "litert", "--device", "pi", "--json", *QUICK).check()
    result = only(done.json)
    assert (result["runner"], result["emulated"], result["conditions"]["runtime_version"]) == ("native", True, "2.3.0")
    assert result["accuracy"]["device"] == result["accuracy"]["host"]


def _arm_target() -> str:
    return (Path(__file__).resolve().parents[2] / "targets" / "rpi4.yaml").read_text()
