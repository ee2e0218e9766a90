from __future__ import annotations

import os

import numpy as np
import pytest

from edgekit.backends.litert import LiteRt
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.target import load_target
from tests.unit.backends.convert_kit import contents, converted, run

INT8 = Lowering(Quantize("static_wi8_ai8"))
INT8_IO = Lowering(Quantize("static_wi8_ai8", io="int8"))


def test_what_it_cannot_do_is_said_before_any_work():
    target = load_target("linux-x86")
    for lowering, said in [
        (Lowering(Quantize("palette_2", io="int8")), "io int8"),
        (Lowering(overrides={"layer1": "static_wi8_ai8"}), "layer1"),
    ]:
        with pytest.raises(UnsupportedModelError, match=said):
            LiteRt().refuse_unsupported("pt2", (), lowering, target)
    with pytest.raises(UnsupportedModelError, match="programs of the format onnx"):
        LiteRt().refuse_unsupported("onnx", (), Lowering(), target)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return converted("words", tmp_path_factory.mktemp("words"), "litert", "linux-x86")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return converted("conv", tmp_path_factory.mktemp("int8"), "litert", "linux-x86", INT8)


@pytest.mark.slow
class TestFloat:
    def test_names_and_shapes_survive(self, words):
        model, artifact = words
        for kind in ("inputs", "outputs"):
            was, now = getattr(model, kind), getattr(artifact.manifest, kind)
            assert sorted((s.name, s.shape) for s in now) == sorted((s.name, s.shape) for s in was)

    def test_narrowed_integers_are_said(self, words):
        _, artifact = words
        types = {spec.name: spec.dtype for spec in artifact.manifest.inputs + artifact.manifest.outputs}
        for name, kind in (("ids", "input"), ("ids_out", "output")):
            said = any(kind in change and f"'{name}'" in change for change in artifact.manifest.changed)
            assert said is (types[name] == "int32")
        assert not any("mask" in change for change in artifact.manifest.changed)

    def test_several_inputs_and_outputs_compute_what_the_model_computes(self, words, tmp_path):
        host = run(*words, tmp_path)
        assert sorted(parity.output for parity in host.verification.parity["golden"]) == ["ids_out", "scores"]
        assert host.verification.failures() == []

    def test_equal_input_gives_equal_bytes_and_the_home_folder_stays_empty(self, tmp_path, monkeypatch):
        home = tmp_path / "home"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "CI"):
            monkeypatch.delenv(variable, raising=False)
        found = [converted("conv", tmp_path / name, "litert", "linux-x86", INT8)[1] for name in ("one", "other/deeper")]
        assert contents(found[0].path) == contents(found[1].path)
        assert [path for path, _, files in os.walk(home) if files] == []


@pytest.mark.slow
class TestStaticInt8:
    def test_inputs_and_outputs_stay_float(self, quantized, tmp_path):
        model, artifact = quantized
        assert [spec.dtype for spec in artifact.manifest.inputs + artifact.manifest.outputs] == ["float32", "float32"]
        host = run(model, artifact, tmp_path)
        assert host.verification.precision == "static_wi8_ai8"
        assert host.verification.failures() == []
        assert np.load(host.outputs["golden"]["output"]).dtype == np.float32

    def test_the_weights_are_a_quarter(self, quantized, tmp_path):
        _, artifact = quantized
        _, single = converted("conv", tmp_path, "litert", "linux-x86")
        assert artifact.bytes < single.bytes

    def test_inputs_and_outputs_are_integers_on_request_and_still_verified(self, tmp_path):
        model, artifact = converted("conv", tmp_path, "litert", "linux-x86", INT8_IO)
        assert [spec.dtype for spec in artifact.manifest.inputs + artifact.manifest.outputs] == ["int8", "int8"]
        assert run(model, artifact, tmp_path / "cache").verification.failures() == []

    def test_too_few_calibration_examples_are_told(self, tmp_path):
        with pytest.raises(UnsupportedModelError, match="calibration examples"):
            converted("conv", tmp_path, "litert", "linux-x86", INT8, examples=0)

    def test_a_net_without_a_layer_to_quantize_is_refused_by_name(self, tmp_path):
        with pytest.raises(UnsupportedModelError, match="static_wi8_ai8 changes nothing in nets.py:add"):
            converted("add", tmp_path, "litert", "linux-x86", INT8)
