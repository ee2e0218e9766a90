"""The browser runner without a browser: its server, the way of the values, refusals before anything is started."""

from __future__ import annotations

import http.client
import sys
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, TransientDeviceError, UnsupportedModelError
from edgekit.core.model import TensorSpec
from edgekit.core.progress import Silent
from edgekit.runners._browser import answers, chromium, packages
from edgekit.runners._browser.server import Server
from edgekit.runners.base import registry
from edgekit.runners.browser import Browser
from edgekit.transports.base import connect


@pytest.fixture
def server(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"model")
    (tmp_path / "package/dist").mkdir(parents=True)
    (tmp_path / "package/dist/index.js").write_text("export {};")
    (tmp_path / "secret").write_text("not for the page")
    (tmp_path / "x.bin").write_bytes(b"12345678")
    inputs = {"golden": {"args 0": tmp_path / "x.bin"}}
    with Server(tmp_path / "model.tflite", {"core": tmp_path / "package"}, inputs, tmp_path / "outputs") as running:
        yield running


def asked(server, path, method="GET", body=None, *, inside=True):
    """Status, headers and body of a request; below the server's secret unless told otherwise."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    whole = f"{address.path.rpartition('/')[0]}/{path}" if inside else path
    connection.request(method, whole, body)
    answer = connection.getresponse()
    found = (answer.status, dict(answer.headers), answer.read())
    connection.close()
    return found


def test_a_page_may_use_threads_and_a_fine_clock(server):
    status, headers, _ = asked(server, "page.html")
    assert status == 200
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("model.tflite", b"model"),
        ("inputs/golden/args%200", b"12345678"),
        ("litertjs/core/dist/index.js", b"export {};"),
    ],
)
def test_it_serves_what_it_was_told_of(server, path, body):
    assert asked(server, path)[::2] == (200, body)


@pytest.mark.parametrize(
    "path",
    [
        "secret",
        "litertjs/core/../secret",
        "litertjs/core/..%2F..%2Fsecret",
        "litertjs/core//etc/passwd",
        "inputs/golden/other",
        "inputs/..%2F/x.bin",
        "",
    ],
)
def test_it_serves_nothing_else(server, path):
    assert asked(server, path)[0] == 404


def test_nobody_without_the_secret_is_served(server):
    assert asked(server, "/page.html", inside=False)[0] == 404
    assert asked(server, "/guess/model.tflite", inside=False)[0] == 404


def test_it_listens_on_this_machine_only(server):
    assert urlsplit(server.url).hostname == "127.0.0.1"


def test_outputs_are_appended_up_to_what_the_model_can_give(server):
    server.allowed = {("test", "logits/0"): 8}
    for part in (b"1234", b"5678"):
        assert asked(server, "outputs/test/logits%2F0", "POST", part)[0] == 204
    assert server.file_of("test", "logits/0").read_bytes() == b"12345678"
    assert asked(server, "outputs/test/logits%2F0", "POST", b"9")[0] == 413
    assert "8 bytes" in server.refused
    assert server.file_of("test", "logits/0").read_bytes() == b"12345678"


def test_an_output_that_nobody_expects_is_refused(server):
    server.allowed = {("test", "logits"): 8}
    assert asked(server, "outputs/test/other", "POST", b"1")[0] == 404
    assert asked(server, "outputs/..%2F/logits", "POST", b"1")[0] == 404


def test_values_go_out_padded_and_come_back_without_the_padding(tmp_path):
    details = [{"name": "args_0", "dtype": "float32", "shape": [2, 3, 4]}]
    axes = {"image": [0, 2, 1]}
    inputs = answers.named(details, "inputs", {"inputs.image": "args_0"}, axes)
    assert (inputs[0]["name"], inputs[0]["native"], inputs[0]["shape"]) == ("image", "args_0", [2, 4, 3])
    examples = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    np.save(tmp_path / "image.npy", examples)
    files = {"image": tmp_path / "image.npy"}
    assert answers.write_inputs(files, inputs, axes, tmp_path / "raw") == (3, 5)
    sent = np.fromfile(tmp_path / "raw/0.bin", np.float32).reshape(6, 3, 4)
    assert np.array_equal(sent[:5], examples.transpose(0, 2, 1))
    outputs = answers.named([{"name": "out", "dtype": "float32", "shape": [2, 3]}], "outputs", {"outputs.y": "out"}, {})
    sent.sum(2).tofile(tmp_path / "y.bin")
    driver = answers.Answers(inputs, outputs, [tmp_path / "y.bin"])
    task = {"inputs": {"image": str(files["image"])}, "out": str(tmp_path / "found")}
    assert answers.worker().outputs(driver, task)["examples"] == 5
    assert np.array_equal(np.load(tmp_path / "found/y.npy"), examples.sum(1))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    with connect(Device("local", "web", "local")) as transport:
        yield transport


def litert(job, **options):
    """The job, as if its artifact were for LiteRT."""
    return replace(job, plan=replace(job.plan, backend="litert", options=options))


def test_the_registry_finds_it():
    assert registry.get("browser") is Browser


def test_an_artifact_of_another_backend_is_refused(job, here):
    with pytest.raises(UnsupportedModelError, match="not onnxruntime's"):
        Browser().execute(job, here, Silent())


def test_a_type_that_litertjs_does_not_take_is_named(job, here):
    manifest = replace(job.artifact.manifest, inputs=(TensorSpec("tokens", (1, 4), "int64"),))
    wrong = replace(litert(job), artifact=replace(job.artifact, manifest=manifest))
    with pytest.raises(UnsupportedModelError, match="'tokens' is int64"):
        Browser().execute(wrong, here, Silent())


@pytest.mark.parametrize(("options", "said"), [({"float_io": True}, "quantized"), ({"xnnpack": False}, "XNNPACK")])
def test_what_the_page_cannot_do_is_refused(job, here, options, said):
    with pytest.raises(UnsupportedModelError, match=said):
        Browser().execute(litert(job, **options), here, Silent())


def test_an_unknown_accelerator_is_refused_with_those_there_are(job, here):
    here.device = replace(here.device, runner_options={"accelerator": "gpu"})
    with pytest.raises(ConfigError, match="runner_options.*accelerator"):
        Browser().execute(litert(job), here, Silent())


def test_no_browser_is_said_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="chromium") as caught:
        chromium.binary()
    assert "apt-get install chromium" in caught.value.hint


def test_a_browser_that_is_no_program_is_named(monkeypatch):
    monkeypatch.setenv(chromium.BINARY_VARIABLE, "no-such-browser")
    with pytest.raises(ConfigError, match="'no-such-browser'"):
        chromium.binary()


def npm(tmp_path, monkeypatch, script):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))


def test_another_package_than_the_pinned_one_is_refused_and_not_kept(tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo other > litertjs-core-2.5.3.tgz")
    with pytest.raises(ConfigError, match="was expected"):
        packages.litertjs()
    assert not list((tmp_path / "cache").rglob("package"))


def test_without_npm_the_pip_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="no `npm` here") as caught:
        packages.litertjs()
    assert "edgekit[browser]" in caught.value.hint


def test_an_npm_that_fails_is_quoted(tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo 'npm error network is down' >&2; exit 1")
    with pytest.raises(TransientDeviceError, match="network is down"):
        packages.litertjs()
