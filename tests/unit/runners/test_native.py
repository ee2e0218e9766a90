"""The native runner on this machine as a device without Python: the real compiler, the real library."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.core.device import Device
from edgekit.core.errors import (
    BackendError,
    ConfigError,
    MissingExtraError,
    StableDeviceError,
    TransientDeviceError,
    VerificationError,
)
from edgekit.core.files import sha256_file
from edgekit.core.progress import Silent
from edgekit.core.workload import RunPlan, RuntimeRequirement, Workload
from edgekit.runners import _native_answer as answers
from edgekit.runners import _native_build as build
from edgekit.runners import _native_library as library
from edgekit.runners.base import HealthCheck, Job
from edgekit.runners.native import Native
from edgekit.transports.base import CommandResult, connect
from tests.devices import bare
from tests.devices.sshd import eventually
from tests.unit.agent.models import WEIGHTS, artifact_in, tflite_model

pytest.importorskip("ziglang", reason="needs the compiler: pip install ziglang")
runtime = pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install ai-edge-litert")
pytestmark = pytest.mark.skipif(
    platform.machine() not in build.TARGETS, reason="LiteRT has no library for this machine"
)

ARCH = platform.machine()
LIBRARY = Path(runtime.__file__).parent / "libLiteRt.so"
PINNED = "ai-edge-litert==2.3.0"
EXAMPLES = np.arange(20, dtype=np.float32).reshape(5, 4)
LATENCY = Workload("latency", "latency", warmup_runs=3, min_runs=4, max_runs=6, min_seconds=0.0, processes=2)
TEST = Workload("outputs", "test", inputs="golden")
DEVICE = Device("box", f"linux-{ARCH}", "local", runner="native")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A cache in which the program is compiled once for all tests."""
    folder = tmp_path_factory.mktemp("native-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE_DIR", str(folder))
        build.program(ARCH, "box")
    return folder


@pytest.fixture
def cache(compiled, tmp_path, monkeypatch):
    """A cache of the test's own, so that its device is empty, with the programs that are compiled already."""
    folder = tmp_path / "cache"
    folder.mkdir()
    shutil.copytree(compiled / "native", folder / "native", ignore=shutil.ignore_patterns("compiler"))
    (folder / "native" / "compiler").symlink_to(compiled / "native" / "compiler")
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(folder))
    # The same file as in the wheel; tests/e2e/test_deploy_native.py fetches the wheel itself.
    monkeypatch.setattr(library, "find", lambda requirement, facts: library.Library(LIBRARY, "2.3.0"))
    return folder


@pytest.fixture
def home(cache):
    return cache / "devices" / "box"


@pytest.fixture
def make_job(tmp_path):
    np.save(tmp_path / "x.npy", EXAMPLES)
    np.save(tmp_path / "y.npy", EXAMPLES @ WEIGHTS)

    def make(name="one", *workloads, make_model=tflite_model, **more):
        artifact = artifact_in(tmp_path / name, make_model, backend="litert", source=f"{name}.py")
        plan = RunPlan(
            "litert",
            "device_litert.py",
            artifact.manifest.main,
            RuntimeRequirement((PINNED,), min_glibc="2.17"),
            workloads or (LATENCY, TEST),
            artifact.manifest.bindings,
        )
        health = HealthCheck("golden", {"y": tmp_path / "y.npy"})
        sets = {"golden": {"x": tmp_path / "x.npy"}}
        return replace(Job(artifact, plan, tmp_path / "outputs", sets, release=True, health=health, arch=ARCH), **more)

    return make


@pytest.fixture
def visit(cache):
    def do(job, device=DEVICE, progress=None):
        with connect(device) as transport:
            return Native().execute(job, transport, progress or Silent())

    return do


def current(home):
    link = home / ".edgekit" / "models" / "tiny" / "current"
    return link.readlink().name if link.is_symlink() else None


# --- what a visit does ----------------------------------------------------------------------------------------------


def test_a_visit_releases_measures_and_computes(make_job, visit, home):
    job = make_job()
    found = visit(job)
    assert found.released is True
    assert current(home) == job.artifact.digest
    assert found.health.cosine == 1.0
    latency, again, outputs = found.runs
    assert [run.process for run in (latency, again)] == [0, 1]
    assert (len(latency.warmup_ms), 4 <= len(latency.samples_ms) <= 6) == (2, True)
    assert outputs.examples == 5
    np.testing.assert_array_equal(np.load(found.outputs["test"]["y"]), EXAMPLES @ WEIGHTS)
    assert found.bytes_sent > LIBRARY.stat().st_size
    assert not list((home / ".edgekit" / "runs").iterdir())


def test_it_says_what_ran_and_what_memory_it_took(make_job, visit):
    run = visit(make_job("one", replace(LATENCY, threads=2))).runs[0]
    assert run.runtime == {
        "runtime": "ai-edge-litert",
        "runtime_version": "2.3.0",
        "interface": "C API",
        "threads": 2,
        "delegate": "XNNPACK",
        "xnnpack_applied": True,
    }
    memory = run.memory
    assert memory["peak_rss_mib"] >= memory["peak_pss_mib"] > 1
    assert memory["model_delta_mib"] == pytest.approx(memory["peak_rss_mib"] - memory["runtime_baseline_mib"], abs=0.01)
    assert min(run.init_ms, run.load_ms, run.first_inference_ms) > 0


def test_the_built_in_kernels_are_taken_where_the_plan_says_so(make_job, visit):
    job = make_job("one", replace(LATENCY, processes=1))
    run = visit(replace(job, plan=replace(job.plan, options={"xnnpack": False}))).runs[0]
    assert (run.runtime["delegate"], run.runtime["xnnpack_applied"]) == ("none", False)


def test_a_second_visit_sends_nothing(make_job, visit):
    job = make_job("one", LATENCY)
    assert visit(job).bytes_sent > 0
    assert visit(job).bytes_sent == 0


def test_the_facts_are_those_that_the_agent_gives(make_job, visit):
    facts = visit(make_job("one", LATENCY)).facts_before
    assert (facts["arch"], facts["python"], facts["cores"]) == (ARCH, None, os.cpu_count())
    assert facts["hostname"] == platform.node()
    assert facts["kernel"] == platform.release()
    assert facts["ram_mib"] > 100
    assert facts["libc"].startswith("glibc 2.")


def test_a_measurement_takes_no_releases_place(make_job, visit, home):
    found = visit(make_job("one", LATENCY, release=False, health=None))
    assert (found.released, found.health, current(home)) == (False, None, None)
    assert len(found.runs) == 2


@pytest.mark.parametrize("shell", list(bare.SHELLS))
def test_it_needs_a_shell_and_small_tools_and_no_python(shell, make_job, cache, tmp_path, monkeypatch):
    lacking = bare.missing(shell)
    if lacking:
        pytest.skip(lacking)
    visit_path = bare.make_path(tmp_path / "bin", shell)
    build.program(ARCH, "box")
    monkeypatch.setenv("PATH", str(visit_path))
    assert shutil.which("python3") is None
    with connect(DEVICE) as transport:
        first, second = make_job("one"), make_job("two")
        assert Native().execute(first, transport, Silent()).health.ok
        assert Native().execute(second, transport, Silent()).previous == first.artifact.digest
        assert Native().rollback(transport, "tiny").current == first.artifact.digest
        assert Native().probe(transport)["libc"].startswith("glibc 2.")


# --- releases -------------------------------------------------------------------------------------------------------


def test_a_release_that_computes_something_else_is_not_switched_to(make_job, visit, home, tmp_path):
    good = make_job()
    visit(good)
    np.save(tmp_path / "y.npy", -(EXAMPLES @ WEIGHTS))
    with pytest.raises(VerificationError, match=r"health check on 'box' failed: cosine -1\.0000"):
        visit(make_job("other"))
    assert current(home) == good.artifact.digest


def test_a_file_that_is_no_model_is_not_switched_to(make_job, visit, home):
    def broken(folder, batch):
        main, bindings = tflite_model(folder, batch)
        (folder / main).write_bytes((folder / main).read_bytes()[:200])
        return main, bindings

    good = make_job()
    visit(good)
    with pytest.raises(VerificationError, match="health check on 'box' failed: box: .*"):
        visit(make_job("broken", make_model=broken))
    assert current(home) == good.artifact.digest


def test_rollback_goes_back_and_further_back_is_refused(make_job, visit, home):
    first, second = make_job("one"), make_job("two")
    visit(first)
    visit(second)
    with connect(DEVICE) as transport:
        done = Native().rollback(transport, "tiny")
        assert (done.current, done.previous) == (first.artifact.digest, second.artifact.digest)
        with pytest.raises(StableDeviceError, match="no such earlier release"):
            Native().rollback(transport, "tiny")
        with pytest.raises(ConfigError, match="cannot name a folder"):
            Native().rollback(transport, "../tiny")
    assert current(home) == first.artifact.digest


@pytest.mark.parametrize("what", ["program", "library", "model", "inputs"])
def test_what_was_damaged_on_the_device_is_noticed_and_sent_anew(what, make_job, visit, home):
    job = make_job("one", LATENCY, release=False, health=None)
    visit(job)
    known = {
        sha256_file(build.program(ARCH, "box")): "program",
        sha256_file(LIBRARY): "library",
        job.artifact.manifest.files[0].sha256: "model",
    }
    store = home / ".edgekit" / "store"
    (damaged,) = [path for path in store.iterdir() if known.get(path.name, "inputs") == what]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(TransientDeviceError, match="another hash"):
        visit(job)
    assert visit(job).bytes_sent == damaged.stat().st_size


def test_a_device_that_takes_signed_releases_only_is_refused(make_job, visit, home):
    (home / ".edgekit").mkdir(parents=True)
    (home / ".edgekit" / "trusted-key").write_text("ab" * 32)
    with pytest.raises(StableDeviceError, match="signed by abababababababa… only.*nothing was sent"):
        visit(make_job())
    assert not list((home / ".edgekit" / "store").iterdir())


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_target_that_pins_another_api_is_refused_before_anything_is_sent(make_job, visit, home):
    job = make_job()
    job = replace(job, plan=replace(job.plan, runtime=RuntimeRequirement(("ai-edge-litert==2.1.0",))))
    with pytest.raises(ConfigError, match=r"speaks the C API of ai-edge-litert 2\.3\.\*, and the target pins 2\.1\.0"):
        visit(job)
    assert not home.joinpath(".edgekit").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "openvino"}, "runs LiteRT's files, not those of the backend 'openvino'"),
        ({"workloads": (Workload("intermediates", "inner"),)}, "does not do 'intermediates'"),
        ({"options": {"xnpack": False}}, "no option 'xnpack'"),
        ({"runtime": RuntimeRequirement(("onnxruntime==1.32.0",))}, "pins no version of ai-edge-litert"),
    ],
)
def test_what_it_cannot_do_is_said_at_once(change, words, make_job, visit):
    job = make_job()
    with pytest.raises(ConfigError, match=words):
        visit(replace(job, plan=replace(job.plan, **change)))


def test_an_option_of_the_runner_is_refused(make_job, visit):
    with pytest.raises(ConfigError, match="runner_options.*delegate"):
        visit(make_job(), replace(DEVICE, runner_options={"delegate": "gpu"}))


def test_a_processor_that_litert_has_no_library_for_is_named(cache):
    with pytest.raises(StableDeviceError, match="'box' is riscv64; the native runner is made for aarch64 and x86_64"):
        build.program("riscv64", "box")


def test_a_run_that_takes_too_long_is_ended_by_the_program_itself(make_job, visit):
    slow = replace(LATENCY, max_runs=10_000_000, min_seconds=60.0, max_seconds=60.0, timeout_seconds=1.0)
    with pytest.raises(TransientDeviceError, match="took longer than it may"):
        visit(make_job("one", slow, release=False, health=None))


def test_a_device_that_floods_its_answer_is_refused(make_job, visit, tmp_path, monkeypatch):
    flood = tmp_path / "flood"
    flood.write_text("#!/bin/sh\nexec yes\n")
    flood.chmod(0o755)
    monkeypatch.setattr(build, "program", lambda arch, device: flood)
    with pytest.raises(StableDeviceError, match="printed more than 64 MiB"):
        visit(make_job())


# --- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def program(cache, tmp_path):
    """Runs the program: its status and its answer."""
    path = build.program(ARCH, "box")
    folder = tmp_path / "by-hand"
    folder.mkdir()
    tflite_model(folder, 1)
    np.ones((1, 4), np.float32).tofile(folder / "data")

    def run(mode, *arguments, lib=LIBRARY, release="2.3.0"):
        argv = [path, mode, "--library", lib, "--release", release, *arguments]
        done = subprocess.run(argv, capture_output=True, cwd=folder, timeout=60, check=False)
        return done.returncode, json.loads(done.stdout)

    return run


PLAIN = (
    "--model",
    "model.tflite",
    "--data",
    "data",
    "--input",
    "float32:1x4:args_0",
    "--output",
    "float32:1x3:output_0",
)


def test_the_program_checks_the_library_it_is_given(program):
    status, answer = program("check")
    assert (status, answer["ok"], answer["abi"]) == (0, True, build.abi())


def test_the_program_refuses_another_release(program):
    status, answer = program("check", release="2.30.1")
    assert (status, answer["error"]["kind"]) == (3, "runtime")
    assert "speaks the C API of LiteRT 2.3.*, not that of 2.30.1" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("int nothing;", "it has no kLiteRtRuntimeBuiltin"),
        ("void *kLiteRtRuntimeBuiltin[170];", "its table of functions has 1360 bytes, not 1352"),
        ("void *kLiteRtRuntimeBuiltin[169];", "it has no LiteRtCreateEnvironment"),
        (
            "void *kLiteRtRuntimeBuiltin[169]; int LiteRtCreateEnvironment(void) { return 0; }",
            "LiteRtCreateEnvironment does not stand where it should",
        ),
    ],
)
def test_the_program_refuses_a_library_of_another_layout(source, words, program, tmp_path):
    code, other = tmp_path / "other.c", tmp_path / "libother.so"
    code.write_text(source)
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-shared", "-o", other, code], check=True)
    status, answer = program("check", lib=other)
    assert (status, answer["error"]["kind"]) == (3, "runtime")
    assert words in answer["error"]["message"]


def test_the_program_refuses_a_file_that_is_no_library(program, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    assert program("check", lib=tmp_path / "text.so")[1]["error"]["kind"] == "runtime"
    assert "No such file" in program("check", lib="/nowhere/lib.so")[1]["error"]["message"]


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        (
            {"--input": "float32:1x5:args_0"},
            "model",
            "input 'args_0' is float32 [1, 4], which is not what was announced",
        ),
        ({"--input": "int8:1x4:args_0"}, "model", "input 'args_0' is float32 [1, 4]"),
        ({"--input": "float32:1x4:image"}, "model", "the model has the input 'args_0', which was not announced"),
        ({"--output": "float32:1x4:output_0"}, "model", "output 'output_0' is float32 [1, 3]"),
        ({"--model": "nothing.tflite"}, "model", "cannot read the model"),
        ({"--data": "nothing"}, "request", "nothing: No such file"),
        ({"--data": "/dev/null"}, "request", "ends too early"),
        ({"--threads": "many"}, "request", "--threads takes a whole number from 1 to 1024, not 'many'"),
        ({"--input": "float99:1:x"}, "request", "there is no element type 'float99'"),
        ({"--input": "float32:999999999x999999999x999999999:x"}, "request", "more values than memory has room for"),
        ({"--sizes": "1"}, "request", "there is no option '--sizes'"),
        ({"--signature": "other"}, "model", "the model has no signature 'other'"),
    ],
)
def test_the_program_says_what_is_wrong(changed, kind, words, program):
    pairs = {**dict(zip(PLAIN[::2], PLAIN[1::2], strict=True)), **changed}
    status, answer = program("latency", *[word for pair in pairs.items() for word in pair])
    assert answer["error"]["kind"] == kind
    assert words in answer["error"]["message"]
    assert status == {"request": 2, "model": 4}[kind]


def test_the_program_says_that_the_disk_is_full(program):
    status, answer = program("outputs", *PLAIN, "--out", "/dev/full")
    assert (status, answer["error"]["kind"]) == (6, "disk-full")


def test_an_input_is_found_by_its_tensors_name_too(program):
    assert program("latency", *PLAIN[:4], "--input", "float32:1x4:serving_x", *PLAIN[6:])[1]["ok"] is True


def test_the_program_ends_with_its_parent(program, cache):
    argv = [build.program(ARCH, "box"), "latency", "--library", LIBRARY, "--release", "2.3.0", *PLAIN]
    argv += ["--max-runs", "10000000", "--min-seconds", "60", "--max-seconds", "60"]
    folder = cache.parent / "by-hand"
    script = 'cd "$1"; shift; "$@" > /dev/null 2>&1 & echo $!; sleep 0.3; kill -9 $$'
    done = subprocess.run(["sh", "-c", script, "sh", folder, *argv], capture_output=True, text=True, check=False)
    child = Path(f"/proc/{int(done.stdout)}/cmdline")
    assert eventually(lambda: not child.exists() or not child.read_text())


# --- compiling ------------------------------------------------------------------------------------------------------


def test_a_program_is_compiled_once(cache, monkeypatch):
    first = build.program(ARCH, "box")
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert build.program(ARCH, "box") == first


def test_what_goes_into_a_compilation_is_its_identity(tmp_path, monkeypatch):
    was = build.key(ARCH)
    assert len({build.key(arch) for arch in build.TARGETS}) == len(build.TARGETS)
    monkeypatch.setattr(build, "version_of", lambda name: "0.0.1")
    assert build.key(ARCH) != was
    monkeypatch.undo()
    copy = shutil.copytree(build.folder(), tmp_path / "sources")
    monkeypatch.setattr(build, "folder", lambda: copy)
    assert build.key(ARCH) == was
    (copy / "main.c").write_text((copy / "main.c").read_text() + "\n")
    assert build.key(ARCH) != was


@pytest.mark.parametrize(("arch", "machine"), [("aarch64", 183), ("x86_64", 62)])
def test_a_program_is_for_the_processor_it_was_asked_for(arch, machine, cache):
    head = build.program(arch, "box").read_bytes()[:20]
    assert (head[:5], int.from_bytes(head[18:20], "little")) == (b"\x7fELF\x02", machine)


def test_without_the_compiler_the_extra_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(MissingExtraError, match="the native runner needs") as caught:
        build.program(ARCH, "box")
    assert "edgekit[native]" in caught.value.hint


def test_a_source_that_does_not_compile_is_an_error_of_this_host(cache, tmp_path, monkeypatch):
    copy = shutil.copytree(build.folder(), tmp_path / "sources")
    (copy / "main.c").write_text("int main(void) { return wrong; }\n")
    monkeypatch.setattr(build, "folder", lambda: copy)
    with pytest.raises(BackendError, match="could not make the native runner.*wrong"):
        build.program(ARCH, "box")


def test_the_release_in_the_header_is_that_of_the_pinned_runtime():
    assert PINNED.partition("==")[2].startswith(f"{build.abi()}.")
    assert re.fullmatch(r"\d+\.\d+", build.abi())


# --- answers --------------------------------------------------------------------------------------------------------


def answered(returncode, stdout=b"", stderr=b""):
    return answers.parse(answers.Done, CommandResult(returncode, stdout, stderr, 0.1), DEVICE)


@pytest.mark.parametrize(
    ("returncode", "stderr", "kind", "words"),
    [
        (139, b"", StableDeviceError, "died of SIGSEGV in LiteRT"),
        (132, b"", StableDeviceError, "died of SIGILL"),
        (137, b"", StableDeviceError, "lack of memory"),
        (134, b"terminate called after throwing an instance of 'std::bad_alloc'", StableDeviceError, "lack of memory"),
        (134, b"ERROR: assertion", StableDeviceError, "died of SIGABRT in LiteRT: ERROR: assertion"),
        (143, b"", TransientDeviceError, "was ended before it answered"),
        (126, b"sh: ./x: Permission denied", StableDeviceError, "does not let programs run below"),
        (127, b"x: not found", StableDeviceError, "does not start on 'box'.*glibc"),
        (1, b"INFO: hello\nERROR: odd", StableDeviceError, r"gave no answer \(exit status 1\): ERROR: odd"),
    ],
)
def test_how_the_program_ended_is_explained(returncode, stderr, kind, words):
    with pytest.raises(kind, match=words):
        answered(returncode, stderr=stderr)


DONE = {
    "schema_version": 1,
    "ok": True,
    "init_ms": 1.0,
    "load_ms": 2.0,
    "first_inference_ms": 3.0,
    "warmup_ms": [],
    "samples_ms": [1.0],
    "calls": 0,
    "clear_refs": False,
    "delegated": False,
    "memory": {"peak_rss_mib": 7.5},
}


def test_a_greeting_before_the_answer_does_no_harm():
    assert answered(0, b"Welcome!\n" + json.dumps(DONE).encode() + b"\n").load_ms == 2.0


@pytest.mark.parametrize("text", ["{", '{"schema_version": 1, "ok": true}', json.dumps({**DONE, "samples_ms": ["x"]})])
def test_an_answer_that_the_program_never_gives_is_refused(text):
    with pytest.raises(StableDeviceError, match="never answers"):
        answered(0, text.encode())


def test_what_is_not_known_of_the_delegate_is_none():
    done = answered(0, json.dumps(DONE).encode())
    run = answers.process_run(done, LATENCY, 0, "2.3.0", True, DEVICE, 0)
    assert (run.runtime["delegate"], run.runtime["xnnpack_applied"], run.runtime["clear_refs"]) == (None, None, False)


def test_figures_that_cannot_be_are_refused():
    done = answered(0, json.dumps({**DONE, "samples_ms": [-1.0]}).encode())
    with pytest.raises(StableDeviceError, match="negative time"):
        answers.process_run(done, LATENCY, 0, "2.3.0", True, DEVICE, 0)
