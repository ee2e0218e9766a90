from __future__ import annotations

import os

import numpy as np
import pytest

from edgekit.backends.openvino import OpenVino
from edgekit.core.errors import BackendError, UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.progress import Silent
from edgekit.core.target import load_target
from edgekit.core.workload import Workload
from edgekit.flow.convert import convert
from tests.unit.backends.convert_kit import contents, converted, model_of, request_for, run

FLOAT16 = Lowering(Quantize("float16"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return converted("words", tmp_path_factory.mktemp("words"), "openvino", "intel-cpu")


def test_names_types_and_shapes_survive(words):
    model, artifact = words
    assert artifact.manifest.inputs == model.inputs
    assert artifact.manifest.outputs == model.outputs
    assert artifact.manifest.changed == ()
    assert sorted(entry.path for entry in artifact.manifest.files) == ["model.bin", "model.xml"]


def test_several_inputs_and_outputs_compute_what_the_model_computes(words, tmp_path):
    host = run(*words, tmp_path)
    assert [parity.output for parity in host.verification.parity["golden"]] == ["ids_out", "scores"]
    assert host.verification.failures() == []
    assert np.load(host.outputs["golden"]["ids_out"]).dtype == np.int64


@pytest.mark.slow
def test_equal_input_gives_equal_bytes_and_the_home_folder_stays_empty(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "CI"):
        monkeypatch.delenv(variable, raising=False)
    artifacts = [converted("conv", tmp_path / name, "openvino", "intel-cpu")[1] for name in ("one", "another/deeper")]
    assert contents(artifacts[0].path) == contents(artifacts[1].path)
    assert artifacts[0].digest == artifacts[1].digest
    assert [path for path, _, files in os.walk(home) if files] == []


def test_nothing_of_this_host_is_in_the_file(words, tmp_path_factory):
    text = words[1].main.read_text()
    assert str(tmp_path_factory.getbasetemp()) not in text


@pytest.mark.slow
def test_half_precision_halves_the_weights_and_stays_close(tmp_path):
    model, single = converted("conv", tmp_path / "single", "openvino", "intel-cpu")
    _, half = converted("conv", tmp_path / "half", "openvino", "intel-cpu", FLOAT16)
    sizes = [(artifact.path / "model.bin").stat().st_size for artifact in (single, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.1)
    host = run(model, half, tmp_path / "cache")
    assert host.verification.precision == "float16"
    assert host.verification.failures() == []
    assert half.manifest.inputs == model.inputs


def test_what_it_cannot_do_is_said_before_any_work():
    target = load_target("intel-cpu")
    for lowering, said in [
        (Lowering(Quantize("auto")), "scheme auto"),
        (Lowering(Quantize("float16", io="int8")), "io: int8"),
        (Lowering(overrides={"layer1": "dynamic_wi8_afp32"}), "layer1"),
    ]:
        with pytest.raises(UnsupportedModelError, match=said):
            OpenVino().refuse_unsupported("pt2", (), lowering, target)
    OpenVino().refuse_unsupported("onnx", (), Lowering(), target)


@pytest.mark.slow
def test_a_damaged_program_is_told_in_a_sentence(tmp_path):
    model = model_of(tmp_path / "source", "add")
    request = request_for(model, tmp_path / "work", "intel-cpu", Lowering())
    request.program.write_bytes(request.program.read_bytes()[:100])
    with pytest.raises((BackendError, UnsupportedModelError)) as caught:
        convert("openvino", request, tmp_path / "out", Silent())
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out").exists()


def test_the_plan_computes_in_float32(words):
    plan = OpenVino().run_plan(words[1].manifest, load_target("intel-cpu"), [Workload("outputs", "golden")])
    assert (plan.driver, plan.model_file) == ("device_openvino.py", "model.xml")
    assert plan.options.get("precision", "f32") == "f32"
    assert plan.runtime.packages[0].startswith("openvino==")
    assert "openvino-telemetry" in plan.runtime.exclude
