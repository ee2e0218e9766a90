"""The runner benchmark_model against a simulated Android device, with a stand-in for Google's program."""

from __future__ import annotations

import http.server
import json
import os
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.core import schema
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError, VerificationError
from edgekit.core.files import sha256_file
from edgekit.core.progress import Silent
from edgekit.core.run_output import measurements_of
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners import _benchmark_binary as binary
from edgekit.runners import _shell_store
from edgekit.runners.base import HealthCheck, Job, registry
from edgekit.runners.benchmark_model import BenchmarkModelRunner, flags
from edgekit.transports.base import connect
from edgekit.transports.fake import FaultyTransport
from tests.devices import benchmark_model as stand_in
from tests.unit.agent.models import WEIGHTS, artifact_in, tflite_model

EXAMPLES = np.arange(20, dtype=np.float32).reshape(5, 4)
LATENCY = Workload("latency", "latency", warmup_runs=2, min_runs=3, min_seconds=0.0, max_seconds=5.0, processes=2)
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "benchmark_model"
TEST = Workload("outputs", "test", inputs="test")


class Heard(Silent):
    """Progress that remembers."""

    def __init__(self):
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture
def make_artifact(tmp_path):
    def make(name="one", extra="x"):
        folder = tmp_path / f"artifact-{name}"
        (folder / "labels").mkdir(parents=True)
        (folder / "labels" / "names.txt").write_text(extra)
        return artifact_in(folder, tflite_model, backend="litert", target="android-arm64", source=f"{name}.py")

    return make


@pytest.fixture
def make_job(make_artifact, tmp_path):
    np.save(tmp_path / "x.npy", EXAMPLES)
    np.save(tmp_path / "y.npy", EXAMPLES @ WEIGHTS)

    def make(name="one", *workloads, **more):
        artifact = make_artifact(name, extra=name)
        plan = RunPlan(
            "litert", "device_litert.py", artifact.manifest.main, RuntimeRequirement(()), workloads or (LATENCY,)
        )
        sets = {"golden": {"x": tmp_path / "x.npy"}, "test": {"x": tmp_path / "x.npy"}}
        health = HealthCheck("golden", {"y": tmp_path / "y.npy"})
        return replace(
            Job(artifact, plan, tmp_path / "outputs", sets, release=True, health=health, arch="aarch64"), **more
        )

    return make


RECORDED = json.loads((FIXTURES / "pi_xnnpack_memory.json").read_text())["output"] + (
    "Overall peak memory footprint (MB) via periodic monitoring: 33.25\n"
)
NO_FILES = ("output_filepath",)


@pytest.fixture
def tool(tmp_path):
    """Makes a program: one that prints a recorded log and takes no files, where nothing else is said; `real` computes."""

    def make(real=False, **settings):
        settings = settings if real else {"recorded": RECORDED, "without": NO_FILES, **settings}
        folder = tmp_path / f"tool{len(list(tmp_path.glob('tool*')))}"
        folder.mkdir()
        return stand_in.install(folder, **settings)

    return make


@pytest.fixture
def visit(adb_daemon, tool):
    """Does a job on the device; `program` and more options of the runner may be given."""
    default = tool()

    def do(job, program=None, heard=None, **options):
        device = adb_daemon.device(runner_options={"binary": str(program or default), **options})
        with connect(device) as transport:
            return BenchmarkModelRunner().execute(job, transport, heard or Heard())

    return do


@pytest.fixture
def models(adb_daemon):
    return adb_daemon.home / ".edgekit" / "models" / "tiny"


def current(models):
    return (models / "current").readlink().name if (models / "current").is_symlink() else None


def serves_a_whole_release(models):
    record = schema.load_json(models / "current" / "release.json").value
    return all(sha256_file(models / "current" / entry["path"]) == entry["sha256"] for entry in record["files"])


def test_the_registry_finds_it():
    assert registry.get("benchmark_model") is BenchmarkModelRunner


# A deploy


def test_a_first_visit_sends_checks_switches_measures_and_computes(visit, make_job, models, adb_daemon, tool):
    heard = Heard()
    job = make_job("one", replace(LATENCY, processes=1), TEST)
    found = visit(job, program=tool(real=True), heard=heard)
    assert found.released is True
    assert found.previous is None
    assert current(models) == job.artifact.digest
    assert serves_a_whole_release(models)
    assert (models / "current" / "labels" / "names.txt").read_text() == "one"
    assert found.health.ok
    assert found.health.cosine == pytest.approx(1.0)
    values = np.load(found.outputs["test"]["y"])
    assert values.shape == (5, 3)
    assert np.allclose(values, EXAMPLES @ WEIGHTS)
    assert found.facts_before["soc"] == "Google Tensor G3"
    assert found.facts_before["arch"] == "aarch64"
    assert found.facts_after["battery_pct"] == 84.0
    assert any("unverified" in note for note in heard.notes)
    root = adb_daemon.home / ".edgekit"
    assert not (root / "lock.d").exists()
    assert list((root / "runs").iterdir()) == []
    assert [path.name for path in root.rglob(".*")] == []


def test_the_measurements_are_summaries_with_memory_and_what_ran(visit, make_job):
    measured = {m.metric: m for m in measurements_of(visit(make_job()))}
    assert {m.kind for m in measured.values()} == {"summary"}
    latency = measured["latency_ms"]
    assert latency.values[0] == pytest.approx(55.0432)
    assert latency.metadata["summary"]["count"] == 100
    assert latency.metadata["xnnpack_applied"] is True
    assert latency.metadata["runtime"] == "LiteRT benchmark_model"
    assert "never yet on a phone" in latency.metadata["unverified"]
    assert measured["peak_rss_mib"].values == (33.25,)
    assert measured["model_delta_mib"].values == (18.7227,)
    assert latency.conditions_before["thermal_status"] == "none"


def test_a_second_visit_sends_nothing(visit, make_job):
    job = make_job()
    assert visit(job).bytes_sent > job.artifact.bytes
    again = visit(job)
    assert (again.bytes_sent, again.previous) == (0, job.artifact.digest)


def test_a_measurement_alone_takes_no_releases_place(visit, make_job, models):
    found = visit(make_job(release=False, health=None))
    assert found.released is False
    assert measurements_of(found)[0].values[0] > 0
    assert current(models) is None


def test_earlier_releases_are_kept_as_many_as_asked_for(visit, make_job, models):
    digests = []
    for name in ("one", "two", "three", "four"):
        job = make_job(name, keep_releases=2)
        digests.append(job.artifact.digest)
        visit(job)
    assert current(models) == digests[3]
    assert {path.name for path in (models / "releases").iterdir()} == set(digests[1:])


def test_the_hook_is_told_of_a_switch(visit, make_job, models, adb_daemon):
    models.mkdir(parents=True)
    (models / "on-switch").write_text(f'#!{adb_daemon.bin}/sh\necho "$2" > {models}/told\nexit 3\n')
    (models / "on-switch").chmod(0o755)
    heard = Heard()
    visit(make_job(), heard=heard)
    assert (models / "told").read_text() == "\n"
    assert any("on-switch failed (exit status 3)" in text for text in heard.warnings)


# What goes wrong


def test_outputs_that_differ_stop_the_switch(visit, make_job, models, tmp_path, tool):
    visit(make_job("good"))
    before = current(models)
    bad = make_job("bad")
    np.save(tmp_path / "y.npy", -(EXAMPLES @ WEIGHTS))
    with pytest.raises(VerificationError, match=r"cosine -1\.0000, at least 0\.99") as caught:
        visit(bad, program=tool(real=True))
    assert "still in force" in caught.value.hint
    assert current(models) == before


def test_a_run_that_fails_stops_the_switch_and_says_why(visit, make_job, models, tool):
    with pytest.raises(VerificationError, match="Failed to allocate tensors"):
        visit(make_job(), program=tool(fails="Failed to allocate tensors!"))
    assert current(models) is None


def test_a_build_without_the_flags_deploys_and_says_what_was_not_checked(visit, make_job, tool, models):
    heard = Heard()
    found = visit(make_job("one", LATENCY, TEST), program=tool(), heard=heard)
    assert found.released
    assert found.health.ok
    assert found.health.cosine is None
    assert "outputs were not compared: this build of benchmark_model has no --output_filepath" in found.health.message
    assert found.outputs == {}
    assert any("accuracy on the device is unavailable" in text for text in heard.warnings)


def test_a_delegate_that_did_not_take_the_model_is_warned_of(visit, make_job, tool):
    heard = Heard()
    visit(make_job(), program=tool(), heard=heard, delegate="gpu")
    assert any("GPU was asked for, and benchmark_model does not say whether" in text for text in heard.warnings)


def test_another_architecture_is_refused_before_anything_is_sent(make_adb_daemon, make_job, tool):
    daemon = make_adb_daemon(properties={"ro.product.cpu.abi": "armeabi-v7a"})
    device = daemon.device(runner_options={"binary": str(tool())})
    with connect(device) as transport, pytest.raises(StableDeviceError, match="is armv7l, but its target"):
        BenchmarkModelRunner().execute(make_job(), transport, Heard())
    assert list((daemon.home / ".edgekit" / "store").iterdir()) == []


def test_a_full_disk_leaves_the_release_before_in_force(visit, make_job, models, adb_daemon):
    visit(make_job("one"))
    before = current(models)
    adb_daemon.faults.quota = 0
    with pytest.raises(StableDeviceError, match="Disk full"):
        visit(make_job("two"))
    assert current(models) == before
    assert serves_a_whole_release(models)


def test_a_blob_that_rotted_on_the_device_is_sent_anew(visit, make_job, models, adb_daemon):
    job = make_job()
    main = next(entry for entry in job.artifact.manifest.files if entry.path == job.plan.model_file)
    store = adb_daemon.home / ".edgekit" / "store"
    store.mkdir(parents=True)
    (store / main.sha256).write_bytes(b"rotten")
    with pytest.raises(TransientDeviceError, match="another hash"):
        visit(job)
    assert visit(job).released
    assert serves_a_whole_release(models)


def test_a_file_of_the_current_release_that_rotted_is_mended_by_a_deploy(visit, make_job, models):
    job = make_job()
    visit(job)
    damaged = models / "current" / job.plan.model_file
    damaged.unlink()
    damaged.write_bytes(b"rotten")
    assert visit(job).released
    assert serves_a_whole_release(models)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_cut_at_any_call_leaves_a_whole_release(visit, make_job, models, adb_daemon, tool, when):
    visit(make_job("one"))
    before = current(models)
    program = str(tool())
    job = make_job("two", replace(LATENCY, processes=1))
    number, done = 0, False
    while not done:
        number += 1
        device = adb_daemon.device(runner_options={"binary": program})
        with FaultyTransport(connect(device), fail_at=number, when=when) as transport:
            try:
                BenchmarkModelRunner().execute(job, transport, Heard())
                done = True
            except (TransientDeviceError, VerificationError):
                pass
        assert current(models) in (before, job.artifact.digest)
        assert serves_a_whole_release(models)
    assert current(models) == job.artifact.digest
    assert number > 8


def test_two_runs_at_once_are_never_mixed(adb_daemon, make_job, visit, models, monkeypatch):
    root = adb_daemon.home / ".edgekit"
    (root / "lock.d").mkdir(parents=True)
    (root / "lock.d" / "owner").write_text("somebody")
    boot = "/proc/sys/kernel/random/boot_id"
    (root / "lock.d" / "boot").write_text(Path(boot).read_text())
    (root / "lock.d" / "until").write_text(str(int(time.time()) + 3600))
    monkeypatch.setattr(_shell_store, "LOCK_SECONDS", 1.0)
    with pytest.raises(TransientDeviceError, match="another run has held the device"):
        visit(make_job())
    assert current(models) is None
    (root / "lock.d" / "until").write_text("1")
    assert visit(make_job("two")).released


def test_a_lock_from_before_a_restart_is_void(adb_daemon, make_job, visit):
    lock = adb_daemon.home / ".edgekit" / "lock.d"
    lock.mkdir(parents=True)
    for name, text in (("owner", "ghost"), ("boot", "another-boot"), ("until", str(int(time.time()) + 3600))):
        (lock / name).write_text(text)
    assert visit(make_job()).released


def test_layers_cannot_be_compared_there(visit, make_job):
    with pytest.raises(ConfigError, match="no inner values"):
        visit(make_job("one", Workload("intermediates", "layers")))


def test_an_unknown_option_of_the_runner_is_named(visit, make_job):
    with pytest.raises(ConfigError, match="runner_options.*delegat"):
        visit(make_job(), delegat="gpu")


# Rollback and probe


def test_rollback_goes_back_one_release_after_the_other(visit, make_job, models, adb_daemon):
    digests = []
    for name in ("one", "two", "three"):
        job = make_job(name)
        digests.append(job.artifact.digest)
        visit(job)
    runner = BenchmarkModelRunner()
    with connect(adb_daemon.device()) as transport:
        done = runner.rollback(transport, "tiny")
        assert (done.current, done.previous) == (digests[1], digests[2])
        assert runner.rollback(transport, "tiny").current == digests[0]
        with pytest.raises(StableDeviceError, match="no such earlier release"):
            runner.rollback(transport, "tiny")
        assert runner.rollback(transport, "tiny", digests[2][:10]).current == digests[2]
        with pytest.raises(StableDeviceError, match="no release of other"):
            runner.rollback(transport, "other")
        with pytest.raises(ConfigError, match="cannot name a folder"):
            runner.rollback(transport, "../tiny")
    assert serves_a_whole_release(models)


def test_rollback_refuses_a_release_that_is_not_what_it_was(visit, make_job, models, adb_daemon):
    first = make_job("one")
    visit(first)
    visit(make_job("two"))
    before = current(models)
    (models / "releases" / first.artifact.digest / first.plan.model_file).write_bytes(b"rotten")
    with connect(adb_daemon.device()) as transport, pytest.raises(TransientDeviceError, match="is not what it was"):
        BenchmarkModelRunner().rollback(transport, "tiny")
    assert current(models) == before


def test_probe_gives_the_facts_of_the_device(adb_daemon):
    with connect(adb_daemon.device()) as transport:
        found = BenchmarkModelRunner().probe(transport)
    assert (found["machine_model"], found["abi"], found["api_level"]) == ("Google Pixel 8", "arm64-v8a", 34)
    assert found["temp_c"] == 66.5
    assert found["free_mib"] > 0
    assert found["kernel"] == os.uname().release


# The program


def test_flags_are_those_of_the_tool():
    given = flags("/m.tflite", replace(LATENCY, threads=4), binary.BenchmarkOptions(delegate="gpu", gpu_backend="cl"))
    assert given[0] == "--graph=/m.tflite"
    assert {"--num_threads=4", "--num_runs=3", "--warmup_runs=2", "--max_secs=5"} <= set(given)
    assert {"--report_peak_memory_footprint=true", "--use_gpu=true", "--gpu_backend=cl"} <= set(given)
    assert not [flag for flag in given if "xnnpack" in flag]
    assert "--use_xnnpack=false" in flags("/m", LATENCY, binary.BenchmarkOptions(delegate="cpu"))
    nnapi = flags("/m", LATENCY, binary.BenchmarkOptions(delegate="nnapi", nnapi_accelerator="edgetpu"))
    assert {"--use_nnapi=true", "--nnapi_accelerator_name=edgetpu"} <= set(nnapi)


def test_no_program_says_how_to_get_one(monkeypatch):
    monkeypatch.delenv(binary.VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="needs LiteRT's benchmark_model") as caught:
        binary.find(binary.BenchmarkOptions(), "phone")
    assert "runner_options: {binary: PATH}" in caught.value.hint
    with pytest.raises(ConfigError, match="no benchmark_model at '/no/where'"):
        binary.find(binary.BenchmarkOptions(binary="/no/where"), "phone")


def test_the_environment_names_the_program_and_a_hash_is_checked(monkeypatch, tool):
    program = tool()
    monkeypatch.setenv(binary.VARIABLE, str(program))
    assert binary.find(binary.BenchmarkOptions(), "phone") == program
    with pytest.raises(ConfigError, match="not the one in devices"):
        binary.find(binary.BenchmarkOptions(binary=str(program), sha256="0" * 64), "phone")


@pytest.mark.parametrize(
    ("machine", "arch", "fits"), [(183, "aarch64", True), (62, "aarch64", False), (40, "armv7l", True)]
)
def test_a_program_for_another_processor_is_refused(tmp_path, machine, arch, fits):
    program = tmp_path / "benchmark_model"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine))
    if fits:
        binary.require_fit(program, arch, "phone")
    else:
        with pytest.raises(ConfigError, match="is for x86_64, and 'phone' is aarch64"):
            binary.require_fit(program, arch, "phone")


def test_a_file_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello, this is no program")
    with pytest.raises(ConfigError, match="no ELF file"):
        binary.require_fit(tmp_path / "text", "aarch64", "phone")


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_download_is_pinned_by_its_hash_and_kept(server, tmp_path, monkeypatch):
    folder, url = server
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    (folder / "tool").write_bytes(b"#!/bin/sh\n")
    sha256 = sha256_file(folder / "tool")
    options = binary.BenchmarkOptions(url=f"{url}/tool", sha256=sha256)
    found = binary.find(options, "phone")
    assert sha256_file(found) == sha256
    (folder / "tool").write_bytes(b"changed")
    assert binary.find(options, "phone") == found
    with pytest.raises(StableDeviceError, match="has another SHA-256"):
        binary.find(replace(options, sha256="0" * 64), "phone")
    with pytest.raises(StableDeviceError, match="cannot be fetched"):
        binary.find(replace(options, url=f"{url}/nothing", sha256="1" * 64), "phone")


@pytest.mark.parametrize("options", [{"url": "https://x/tool"}, {"url": "http://example.org/tool", "sha256": "0" * 64}])
def test_a_download_without_a_pin_or_without_https_is_refused(options):
    with pytest.raises(ConfigError, match="sha256|not HTTPS"):
        binary.find(binary.BenchmarkOptions(**options), "phone")
