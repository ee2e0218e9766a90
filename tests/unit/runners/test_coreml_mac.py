"""The runner on a stand-in Mac (tests/devices/mac.py) over the local transport."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError, VerificationError
from edgekit.core.progress import Silent
from edgekit.core.run_output import measurements_of
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners import coreml_mac as module
from edgekit.runners.base import HealthCheck, Job, registry
from edgekit.runners.coreml_mac import UNVERIFIED, CoreMLMac, mac_files
from edgekit.transports.base import connect
from tests.devices.mac import ROOT, UDID, StandInMac, listing, phone
from tests.unit.agent.models import WEIGHTS, artifact_in

EXAMPLES = np.arange(20, dtype=np.float32).reshape(5, 4)
PHONE = {"device": UDID}


CONVERT = """
import sys
import coremltools as ct
from coremltools.converters.mil import Builder
from tests.unit.agent.models import WEIGHTS

@Builder.program(input_specs=[Builder.TensorSpec(shape=(int(sys.argv[2]), 4))], opset_version=ct.target.iOS17)
def program(args_0):
    return Builder.matmul(x=args_0, y=WEIGHTS, name="y")

ct.convert(
    program, "milinternal", compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS17
).save(sys.argv[1])
"""


def mil_model(folder, batch):
    """y = x · WEIGHTS as an ML Program; in a process of its own, as coremltools warns of much and cleans up late."""
    path = str(folder / "model.mlpackage")
    subprocess.run([sys.executable, "-c", CONVERT, path, str(batch)], cwd=ROOT, check=True, capture_output=True)
    return "model.mlpackage", {"inputs.x": "args_0"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return artifact_in(tmp_path_factory.mktemp("artifact") / "tiny", mil_model, backend="coreml", target="iphone15")


@pytest.fixture
def job(artifact, tmp_path):
    np.save(tmp_path / "x.npy", EXAMPLES)
    np.save(tmp_path / "y.npy", EXAMPLES @ WEIGHTS)
    workloads = (
        Workload("latency", "latency", warmup_runs=2, min_runs=3, max_runs=20, min_seconds=0.0, processes=1),
        Workload("outputs", "test", inputs="test"),
    )
    requirement = RuntimeRequirement(())
    main, bindings = artifact.manifest.main, artifact.manifest.bindings
    return Job(
        artifact=artifact,
        plan=RunPlan("coreml", "device_coreml.py", main, requirement, workloads, bindings, {"precision": "float16"}),
        outputs=tmp_path / "outputs",
        inputs={"golden": {"x": tmp_path / "x.npy"}, "test": {"x": tmp_path / "x.npy"}},
        release=True,
        health=HealthCheck("golden", {"y": tmp_path / "y.npy"}),
        arch="aarch64",
    )


class Notes(Silent):
    """Keeps what a person would be told."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)

    warn = note


@pytest.fixture
def visit(tmp_path, monkeypatch):
    """Does something with the runner on a stand-in Mac, with its devices and options of the runner."""
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))

    def do(job, *devices, options=None, mac=None, progress=None, target="iphone15", python="python3"):
        mac = mac or StandInMac(tmp_path / "mac", listing(*devices))
        for name, value in mac.environment.items():
            monkeypatch.setenv(name, value)
        device = Device("mini", target, "local", python=str(mac.bin / python), runner_options=options or {})
        with connect(device) as transport:
            runner = CoreMLMac()
            return runner.probe(transport) if job is None else runner.execute(job, transport, progress or Silent())

    return do


def test_the_registry_finds_it():
    assert registry.get("coreml_mac") is CoreMLMac


def test_what_is_pushed_is_small_and_called_last():
    files = mac_files()
    assert files[-1].name == "visit.py"
    assert {"agent.py", "worker.py", "device_coreml.py", "device_iphone.py"} <= {path.name for path in files}
    assert len({path.name for path in files}) == len(files), "they lie in one folder there"


def test_a_macs_files_have_the_grammar_of_python_3_9_and_start_with_the_standard_library():
    import ast

    for path in (path for path in mac_files() if path.parent.name == "mac"):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        found = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        siblings = {sibling.stem for sibling in mac_files()}
        assert found <= sys.stdlib_module_names | siblings


@pytest.mark.slow
def test_the_mac_computes_times_and_checks(job, visit):
    progress = Notes()
    found = visit(job, options={"device": "mac", "compute_units": "cpu_only"}, progress=progress)
    assert np.allclose(np.load(found.outputs["test"]["y"]), EXAMPLES @ WEIGHTS, atol=1e-5)
    assert found.health.cosine == pytest.approx(1.0)
    assert (found.released, found.previous) == (False, None)
    assert found.facts_before["os"] == "macOS 15.1 (24B83)"
    assert (found.facts_before["cpu_model"], found.facts_before["arch"]) == ("Apple M2", "aarch64")
    latency = measurements_of(found)[0]
    assert (latency.metric, latency.kind) == ("latency_ms", "samples")
    assert 3 <= len(latency.values) <= 20
    assert (latency.metadata["delegate"], latency.metadata["unverified"]) == ("cpu_only", UNVERIFIED)
    assert any("no release was made" in text for text in progress.said)
    assert any(UNVERIFIED in text for text in progress.said)


@pytest.mark.slow
def test_a_phone_is_measured_by_coremltools_own_benchmarker(job, visit, tmp_path):
    progress = Notes()
    found = visit(job, phone(tunnelState="disconnected"), progress=progress)
    assert np.allclose(np.load(found.outputs["test"]["y"]), EXAMPLES @ WEIGHTS, atol=1e-5)
    assert found.health.cosine == pytest.approx(1.0)
    assert found.released is False
    assert (found.facts_after["machine_model"], found.facts_after["os"]) == (
        "iPhone 15 (iPhone15,4)",
        "iOS 18.1 (22B83)",
    )
    assert found.facts_after["through"] == "Mac14,3, macOS 15.1 (24B83)"
    measured = {one.metric: one for one in measurements_of(found)}
    assert measured.keys() == {"latency_ms", "first_inference_ms", "load_ms", "throughput_ips"}, "the phone's alone"
    assert (len(measured["latency_ms"].values), len(measured["latency_ms"].warmups)) == (3, 1), "by number, not by time"
    assert measured["latency_ms"].metadata["unverified"] == UNVERIFIED
    assert any("the model does not stay on 'Test iPhone'" in text for text in progress.said)
    assert (tmp_path / "mac" / "tunnel").exists(), "asked before coremltools wants a connection"
    assert not list((tmp_path / "cache").rglob("requests")), "what went to and fro is gone"


@pytest.mark.slow
def test_outputs_that_are_wrong_fail_the_health_check(job, visit, tmp_path):
    np.save(tmp_path / "y.npy", -(EXAMPLES @ WEIGHTS))
    with pytest.raises(VerificationError, match=r"health check on mini failed: cosine -1\.0000") as caught:
        visit(job, options={"device": "mac"})
    assert "Nothing was left there" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "said", "hint"),
    [
        (
            {"refuses": "The device is locked. (com.apple.mobiledevice error 0xE80000E2)"},
            "is locked",
            "Unlock the phone",
        ),
        (
            {"build_error": "a.swift: note: x\nerror: Signing for 'modelrunnerd' requires a development team."},
            "error: Signing for 'modelrunnerd' requires a development team",
            "development_team",
        ),
    ],
)
def test_what_the_phone_or_xcode_refuses_is_told_with_what_to_do(job, visit, tmp_path, state, said, hint):
    mac = StandInMac(tmp_path / "mac", listing(phone()))
    mac.set(**state)
    with pytest.raises(StableDeviceError, match=said) as caught:
        visit(job, mac=mac)
    assert hint in caught.value.hint


@pytest.mark.slow
def test_a_package_that_core_ml_does_not_load_is_told(artifact, job, visit, tmp_path):
    def broken(folder, batch):
        mil_model(folder, batch)
        weights = folder / "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
        weights.write_bytes(weights.read_bytes()[:60])
        return "model.mlpackage", {"inputs.x": "args_0"}

    other = artifact_in(tmp_path / "broken", broken, backend="coreml", target="iphone15")
    with pytest.raises(StableDeviceError, match="mini: the health check: "):
        visit(replace(job, artifact=other), options={"device": "mac"})


def test_a_probe_tells_the_macs_tools_and_its_phones(visit):
    found = visit(None, phone(), phone(udid="B", name="Second", pairingState="unpaired"))
    assert (found["machine_model"], found["xcode"]) == ("Mac14,3", "Xcode 16.1")
    assert found["coremltools"].startswith("9.")
    assert found["python_path"] == sys.executable
    assert "'Test iPhone' (iPhone 15 (iPhone15,4)" in found["phones"]
    assert "not paired" in found["phones"]


def test_a_mac_without_xcode_can_be_probed_and_says_what_phones_need(job, visit, tmp_path):
    mac = StandInMac(tmp_path / "mac")
    assert visit(None, mac=mac)["phones"] is None
    with pytest.raises(StableDeviceError, match="The Mac 'mini' has no xcrun") as caught:
        visit(job, mac=mac)
    assert "xcode-select" in caught.value.hint


def test_a_machine_that_is_no_mac_is_refused_before_anything_is_sent(job, visit, tmp_path):
    mac = StandInMac(tmp_path / "mac", listing(phone()))
    (mac.bin / "sw_vers").unlink()
    with pytest.raises(StableDeviceError, match="'mini' is no Mac: it has no sw_vers"):
        visit(job, mac=mac)
    assert not list((tmp_path / "cache").rglob("store/*"))


def test_a_python_without_coremltools_is_named_with_what_to_install(job, visit, tmp_path):
    mac = StandInMac(tmp_path / "mac", listing(phone()))
    (mac.bin / "bare").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (mac.bin / "bare").chmod(0o755)
    with pytest.raises(StableDeviceError, match="has no coremltools") as caught:
        visit(job, mac=mac, python="bare")
    assert "pip install 'coremltools>=9,<10'" in caught.value.hint


def test_no_python_at_all_is_told(job, visit, tmp_path):
    with pytest.raises(StableDeviceError, match="There is no Python at '.*absent' on the Mac 'mini'"):
        visit(job, phone(), python="absent")


def test_devicectl_that_never_ends_is_given_up(job, visit, tmp_path, monkeypatch):
    mac = StandInMac(tmp_path / "mac", listing(phone()))
    mac.set(list_sleep=60)
    short = tmp_path / "short"
    short.mkdir()
    for path in mac_files():
        text = path.read_text().replace("LIST_SECONDS = 60.0", "LIST_SECONDS = 0.5")
        (short / path.name).write_text(text)
    monkeypatch.setattr(module, "mac_files", lambda: tuple(short / path.name for path in mac_files_before))
    with pytest.raises(TransientDeviceError, match="list devices` took longer than 0 s"):
        visit(job, mac=mac)


mac_files_before = mac_files()


def test_a_listing_of_many_megabytes_is_refused(job, visit, tmp_path):
    mac = StandInMac(tmp_path / "mac", " " * (5 << 20))
    with pytest.raises(StableDeviceError, match=r"has 5242880 bytes, which no list has"):
        visit(job, mac=mac)


def test_a_phone_of_another_instruction_set_is_refused(job, visit):
    with pytest.raises(StableDeviceError, match="is armv7s, but its target 'iphone15' is aarch64"):
        visit(job, phone(cpuType={"name": "armv7s"}))


def test_an_accuracy_that_takes_too_many_calls_is_said_to_be_unavailable(job, visit, tmp_path):
    np.save(tmp_path / "many.npy", np.zeros((2 * module.MAX_CALLS + 1, 4), np.float32))
    many = replace(job, inputs={**job.inputs, "test": {"x": tmp_path / "many.npy"}})
    progress = Notes()
    with pytest.raises(StableDeviceError, match="No iPhone is connected"):
        visit(many, progress=progress)
    assert any("accuracy on the phone is unavailable: it would take 501 calls" in text for text in progress.said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backend": "litert"}, "Core ML's packages"),
        ({"workloads": (Workload("intermediates", "inner"),)}, "no inner values"),
        ({"workloads": (Workload("sustained", "hot"),)}, "cannot do the workload 'sustained'"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_mac_is_asked(job, visit, change, said):
    with pytest.raises(ConfigError, match=said):
        visit(replace(job, plan=replace(job.plan, **change)))


def test_an_unknown_option_is_named_with_the_ones_there_are(job, visit):
    with pytest.raises(ConfigError, match=r"unknown key 'units'.*compute_units"):
        visit(job, options={"units": "all"})


def test_a_target_whose_system_is_macos_means_the_mac_itself(job, visit, tmp_path):
    mac = StandInMac(tmp_path / "mac", listing())
    mac.set(sysctl={"hw.optional.arm64": "0"})
    with pytest.raises(StableDeviceError, match="is x86_64, but its target 'mac' is aarch64"):
        visit(job, mac=mac, target="mac")


SUMMARY = """
import json, sys
from types import SimpleNamespace as S
import device_coreml

class MLNeuralEngineComputeDevice: ...
class MLCPUComputeDevice: ...

def one(kind, unit, ms):
    usage = unit and S(preferred_compute_device=unit())
    statistics = S(median=ms) if ms is not None else None
    return S(spec=S(type=kind, outputs=[S(name=kind + "_0")]), compute_device_usage=usage, measurement=S(statistics=statistics))

operations = [one("conv", MLNeuralEngineComputeDevice, 2.0), one("relu", MLNeuralEngineComputeDevice, 0.5),
              one("topk", MLCPUComputeDevice, None), one("const", None, None)]
print(json.dumps(device_coreml.summary(operations)))
"""


def test_operations_are_counted_by_unit_and_the_slowest_are_named():
    done = subprocess.run(
        [sys.executable, "-c", SUMMARY], cwd=ROOT / "edgekit/agent", capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["units"] == {"NeuralEngine": 2, "CPU": 1}
    assert found["slowest"][0] == {"operator": "conv", "name": "conv_0", "unit": "NeuralEngine", "estimated_ms": 2.0}
    assert module._said(found) == "operations by unit, as Core ML plans them: NeuralEngine 2, CPU 1"
    assert module._said({"units": SimpleNamespace()}) == ""
