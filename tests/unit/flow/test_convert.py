from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.backends.base import CompileRequest
from edgekit.core.errors import BackendError, ConfigError, UnsupportedModelError
from edgekit.core.lowering import Lowering
from edgekit.core.model import PassRecord, TensorSpec
from edgekit.flow import child as module
from edgekit.flow.convert import convert
from tests.unit.flow import kit

# A third party's backend, found by its entry point as any other: what it does is asked for in the model's name.
PROBE = """
    import os, signal, socket, sys, time
    from pathlib import Path

    from edgekit.backends.openvino import OpenVino
    from edgekit.backends.base import Backend, Converted
    from edgekit.core.errors import UnsupportedModelError


    class Probe(Backend):
        summary = "tests"
        extra = runtime_extra = "openvino"
        reads = ("pt2", "onnx")
        schemes = ()
        converter_modules = ()
        toolchain = ()
        runtime_package = runtime_module = "openvino"
        driver = "device_openvino.py"

        @property
        def name(self):
            return "probe"

        def convert(self, request, out):
            (out / "main.bin").write_bytes(b"half")
            getattr(self, request.name)(request, out)
            return Converted("main.bin", request.inputs, request.outputs)

        def works(self, request, out):
            print("said by the vendor")

        def aborts(self, request, out):
            print("last words", flush=True)
            os.abort()

        def exits(self, request, out):
            os._exit(7)

        def is_killed(self, request, out):
            os.kill(os.getpid(), signal.SIGKILL)

        def raises(self, request, out):
            raise RuntimeError("shape mismatch")

        def refuses(self, request, out):
            raise UnsupportedModelError("operator Foo", "use Bar")

        def fills_memory(self, request, out):
            raise MemoryError

        def sleeps(self, request, out):
            Path(request.source).write_text(str(os.getpid()))
            time.sleep(600)

        def swells(self, request, out):
            block = bytearray(300 << 20)
            for index in range(0, len(block), 4096):
                block[index] = 1

        def calls_home(self, request, out):
            found = []
            for call in (
                lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
                lambda: socket.socket().connect(("127.0.0.1", 9)),
                lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
                lambda: socket.getaddrinfo("localhost", 80),
                lambda: __import__("urllib.request").request.urlopen("http://127.0.0.1:9/"),
            ):
                try:
                    call()
                    found.append("reached")
                except Exception as error:
                    found.append(str(error))
            here, there = socket.socketpair()
            here.sendall(b"x")
            Path(request.source).write_text("|".join(found))
    """


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """The third party's backend, installed where only this test's processes look."""
    site = tmp_path / "site"
    files = {
        "probe_backend.py": PROBE,
        "probe-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n",
        "probe-1.0.dist-info/entry_points.txt": "[edgekit.backends]\nprobe = probe_backend:Probe\n",
    }
    kit.write(site, files)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return tmp_path


def request(doing, source="here"):
    spec = TensorSpec("x", (1, 2), value_range=(0.0, 1.5))
    history = (PassRecord("fold_batch_norm", structure={"pairs": [["a", "b"]]}),)
    return CompileRequest(
        Path("net.pt2"), doing, (spec,), (spec,), Lowering(), kit.intel(), str(source), "digest", history
    )


def test_a_conversion_gives_an_artifact_and_says_what_it_took(probe, tmp_path, heard, caplog):
    caplog.set_level("DEBUG", logger="edgekit")
    artifact = convert("probe", request("works"), tmp_path / "out", heard)
    assert artifact.manifest.inputs == request("works").inputs
    assert artifact.manifest.history == request("works").history
    assert artifact.build.seconds >= 0
    assert 10 < artifact.build.peak_rss_mib < 200
    assert heard.steps == ["converting with probe"]
    assert "said by the vendor" in caplog.text


@pytest.mark.slow
def test_the_peak_is_the_childs_own(probe, tmp_path, heard):
    ballast = np.ones(400 << 17)
    small = convert("probe", request("works"), tmp_path / "small", heard).build.peak_rss_mib
    large = convert("probe", request("swells"), tmp_path / "large", heard).build.peak_rss_mib
    assert ballast.nbytes == 400 << 20
    assert small < 200
    assert 250 < large - small < 400


@pytest.mark.parametrize(
    "doing, kind, said",
    [
        ("aborts", BackendError, "died of signal SIGABRT: last words"),
        ("exits", BackendError, "ended with exit code 7"),
        ("is_killed", BackendError, "most often the machine ran out of memory"),
        ("raises", BackendError, "RuntimeError: shape mismatch"),
        ("refuses", UnsupportedModelError, "operator Foo"),
        ("fills_memory", BackendError, "ran out of memory"),
    ],
)
def test_a_failure_of_the_child_is_told(probe, tmp_path, heard, doing, kind, said):
    with pytest.raises(kind) as caught:
        convert("probe", request(doing), tmp_path / "out", heard)
    assert said in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_an_unknown_backend_is_named(probe, tmp_path, heard):
    with pytest.raises(ConfigError, match="no backend 'prob'.*Did you mean 'probe'"):
        convert("prob", request("works"), tmp_path / "out", heard)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_conversion_that_takes_too_long_is_stopped(probe, tmp_path, heard):
    with pytest.raises(BackendError, match="longer than 3 s") as caught:
        convert("probe", request("sleeps", tmp_path / "pid"), tmp_path / "out", heard, timeout_seconds=3)
    assert "--timeout" in caught.value.hint
    # On a busy machine the child may not have come as far as telling its number.
    assert not (tmp_path / "pid").exists() or not alive(int((tmp_path / "pid").read_text()))


def test_an_interrupt_stops_the_child(probe, tmp_path, heard):
    def interrupt():
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        convert("probe", request("sleeps", tmp_path / "pid"), tmp_path / "out", heard)
    thread.join()
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_conversion_cannot_use_the_network(probe, tmp_path, heard):
    convert("probe", request("calls_home", tmp_path / "said"), tmp_path / "out", heard)
    said = (tmp_path / "said").read_text().split("|")
    assert len(said) == 5
    assert all("may not use the network" in one for one in said)


def test_a_child_is_told_to_be_quiet_and_finds_edgekit(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "mine")
    environment = module.environment()
    assert environment["CI"] == "true"
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(kit.ROOT), "mine"]
