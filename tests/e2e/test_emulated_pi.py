"""`edgekit deploy` to an emulated Raspberry Pi: real Debian, real aarch64 runtimes, a real sshd, all under QEMU.

Its speed and memory are the emulator's: nothing here judges them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgekit.runners.base import registry
from edgekit.transports.base import connect
from tests.devices import rootfs
from tests.devices.adb_daemon import AdbDaemon
from tests.devices.pi import EmulatedPi
from tests.devices.sshd import eventually
from tests.e2e.kit import PROJECT, QUICK, ROOT, Person, write, write_devices

pytestmark = [pytest.mark.slow, pytest.mark.network]
INT8 = """
    schema_version: 1
    passes: [{fold_batch_norm: {}}]
    lowering: {quantize: {scheme: static_wi8_ai8}}
    """


class Desk:
    """A person with a project for the target rpi4, whose only device is the emulated one."""

    def __init__(self, person, pi):
        self.person, self.pi = person, pi
        write(person.cwd, {**PROJECT, "int8.yaml": INT8})
        write_devices(person.cwd, pi=pi.device())
        self.first = self.deploy()

    def deploy(self, *options):
        """The one result of a deploy, and what it said."""
        done = self.person.run("deploy", "--target", "rpi4", "--json", *QUICK, *options).check()
        (result,) = done.json["results"]
        return result

    @property
    def root(self):
        return self.pi.home / ".edgekit"

    def current(self, model="corners"):
        return (self.root / "models" / model / "current").readlink().name


@pytest.fixture(scope="module")
def desk(tmp_path_factory, wheel_cache, emulated_pi):
    person = Person(tmp_path_factory.mktemp("desk"))
    (person.cache / "wheels").symlink_to(wheel_cache)
    yield Desk(person, emulated_pi)
    person.leave()


def test_the_release_is_switched_to_after_its_health_check_with_litert_for_aarch64(desk):
    assert desk.first["released"] is True
    kept = {path.name for path in (desk.root / "models" / "corners" / "releases").iterdir()}
    assert desk.first["artifact_digest"] in kept
    conditions = desk.first["conditions"]
    assert (conditions["runtime"], conditions["runtime_version"]) == ("ai-edge-litert", "2.3.0")
    assert conditions["cpu_model"] == "Cortex-A72"
    assert conditions["xnnpack_applied"] is True
    libraries = list((desk.root / "runtimes").glob("*/ai_edge_litert/*.so"))
    assert {path.read_bytes()[18] for path in libraries} == {183}  # e_machine: AArch64


def test_the_device_is_probed_as_what_it_emulates(desk):
    facts = desk.person.run("devices", "probe", "pi", "--json").check().json["facts"]
    assert (facts["arch"], facts["cpu_model"], facts["cores"]) == ("aarch64", "Cortex-A72", 4)
    assert (facts["libc"], facts["python"].rpartition(".")[0]) == ("glibc 2.36", "3.11")


def test_its_numbers_are_labelled_as_an_emulators(desk):
    assert desk.first["emulated"] is True
    assert desk.first["conditions"]["emulated"] is True
    assert "emulated" in desk.person.run("report", desk.first["run"]).check().out


def test_accuracy_and_outputs_are_those_of_this_host(desk):
    accuracy = desk.first["accuracy"]
    assert 0.5 < accuracy["source"]["top1"] < 1
    assert accuracy["device"]["top1"] == accuracy["host"]["top1"] == accuracy["source"]["top1"]
    assert accuracy["agreement"] == {"scores": 1.0}


def test_a_second_deploy_without_a_change_sends_nothing(desk):
    again = desk.deploy()
    assert again["bytes_sent"] == 0
    assert again["conversion"]["cached"] is True


def test_int8_is_right_under_the_emulated_cortex_a72_and_is_rolled_back(desk):
    desk.deploy()
    before = desk.current()
    result = desk.deploy("--recipe", "int8.yaml")
    assert (result["precision"], result["released"], result["emulated"]) == ("static_wi8_ai8", True, True)
    assert result["conditions"]["xnnpack_applied"] is True
    assert desk.current() == result["artifact_digest"] != before
    accuracy = result["accuracy"]
    assert abs(accuracy["device"]["top1"] - accuracy["host"]["top1"]) <= 1 / 60
    back = desk.person.run("rollback", "corners", "--device", "pi", "--json").check().json
    assert (back["current"], back["previous"]) == (before, result["artifact_digest"])
    assert desk.current() == before


def test_onnx_runtime_goes_the_same_way(desk):
    result = desk.deploy("--backend", "onnxruntime", "--name", "onnx")
    assert result["conditions"]["runtime"] == "onnxruntime"
    assert result["emulated"] is True
    assert result["accuracy"]["device"] == result["accuracy"]["host"]
    assert desk.current("onnx") == result["artifact_digest"]


@pytest.fixture
def phone(emulated_pi, adb_server):
    """A device behind the real `adb`, whose shell and programs are aarch64's, in the same emulated system."""
    folder = emulated_pi.folder / "android"
    shutil.rmtree(folder, ignore_errors=True)
    shell = emulated_pi.within([str(folder / "system" / "bin" / "sh"), "-c"])
    with AdbDaemon(folder, shell=shell) as daemon:
        yield daemon


def test_over_adb_too_its_programs_are_aarch64s(phone, tmp_path):
    program = rootfs.ensure("arm64") / "usr" / "bin" / "uname"
    assert program.read_bytes()[18] == 183
    with connect(phone.device(emulated=True)) as transport:
        facts = registry.create("benchmark_model").probe(transport)
        transport.push(program, ".edgekit/store/program")
        path = f"{phone.home}/.edgekit/store/program"
        assert transport.run(["chmod", "755", path], timeout=60).returncode == 0
        ran = transport.run([path, "-m"], timeout=60)
        transport.pull(".edgekit/store/program", tmp_path / "back", 1 << 20)
    assert facts["arch"] == "aarch64"
    assert (ran.returncode, ran.stdout) == (0, b"aarch64\n")
    assert (tmp_path / "back").read_bytes() == program.read_bytes()


def test_nothing_of_it_is_left_when_it_ends(emulated_pi, tmp_path, login_key):
    with EmulatedPi(tmp_path / "second", login_key) as second:
        pid = second.pid
        assert b"sshd" in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not Path(f"/proc/{pid}").exists()
    shutil.rmtree(tmp_path / "second")


def test_nothing_of_it_is_left_when_the_tests_are_killed(emulated_pi, tmp_path):
    program = """
        import sys, time
        from pathlib import Path
        from tests.devices.pi import EmulatedPi
        from tests.devices.sshd import make_key
        folder = Path(sys.argv[1])
        with EmulatedPi(folder / "pi", make_key(folder / "key")) as pi:
            print(pi.pid, flush=True)
            time.sleep(600)
        """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        tests.kill()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
