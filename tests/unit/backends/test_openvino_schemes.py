"""The backend openvino: precisions, schemes and recurrent layers, with real conversions and the real runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch

from edgekit.backends.openvino import OpenVino, options_of
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.workload import Workload
from tests.unit.backends.conversions import ConvNet, NoWeights, Recurrent, request_for, target

pytestmark = [
    # torch's own, on its way out of a program's file and through its exporter.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]
TO = target("openvino")
IMAGE = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
STEPS = torch.linspace(-1, 1, 2 * 7 * 8).reshape(2, 7, 8)


def run(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(inputs)
    return {port.get_any_name(): results[port] for port in compiled.outputs}


def kinds(path: Path) -> list[str]:
    return [op.get_type_name() for op in ov.Core().read_model(str(path)).get_ops()]


def largest_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name]).max()) for name in expected)


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    torch.manual_seed(0)
    request, inputs, outputs = request_for(tmp_path_factory.mktemp("net"), ConvNet(), IMAGE, TO, name="image")
    return request, inputs, outputs, OpenVino().compile(request, request.program.parent / "artifact")


def test_an_artifact_computes_what_torch_computes(convnet):
    assert largest_difference(run(convnet[3].main, convnet[1]), convnet[2]) < 1e-5


def test_equal_weights_are_stored_once(convnet):
    weights = sum(p.numel() * 4 for n, p in ConvNet().named_parameters() if not n.startswith(("twin.weight", "norm")))
    assert convnet[3].main.with_suffix(".bin").stat().st_size <= 1.1 * weights


def test_a_second_conversion_in_the_same_process_gives_the_same_bytes(convnet, tmp_path):
    assert OpenVino().compile(convnet[0], tmp_path / "again").digest == convnet[3].digest


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("LSTM", {"bias": False}),
        ("GRU", {}),
        ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("GRU", {"bias": False, "batch_first": True}),
    ],
)
def test_a_recurrent_layer_is_a_sequence_operator_and_no_loop(tmp_path, kind, options):
    torch.manual_seed(0)
    request, inputs, outputs = request_for(tmp_path, Recurrent(kind, **options), STEPS, TO)
    artifact = OpenVino().compile(request, tmp_path / "artifact")
    found = kinds(artifact.main)
    assert found.count(f"{kind}Sequence") == options.get("num_layers", 1)
    assert "Sigmoid" not in found
    assert largest_difference(run(artifact.main, inputs), outputs) < 1e-5


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_layer_with_projections_is_unrolled_and_still_right(tmp_path):
    request, inputs, outputs = request_for(tmp_path, Recurrent("LSTM", proj_size=4), STEPS, TO)
    artifact = OpenVino().compile(request, tmp_path / "artifact")
    assert "LSTMSequence" not in kinds(artifact.main)
    assert largest_difference(run(artifact.main, inputs), outputs) < 1e-5


@pytest.mark.parametrize("option", [False, True])
def test_float16_halves_the_weights(convnet, tmp_path, option):
    half = replace(convnet[0], target=target("openvino", precision="float16"))
    if not option:
        half = replace(convnet[0], lowering=Lowering(Quantize("float16")))
    artifact = OpenVino().compile(half, tmp_path / "artifact")
    sizes = [a.main.with_suffix(".bin").stat().st_size for a in (convnet[3], artifact)]
    assert 1.9 < sizes[0] / sizes[1] < 2.1
    assert 0 < largest_difference(run(artifact.main, convnet[1]), convnet[2]) < 2e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("scheme", "allowed"), [("static_wi8_ai8", 5e-2), ("weight_only_wi8_afp32", 1e-2)])
def test_a_scheme_of_nncf_works_in_the_child_process_without_network_or_home(
    convnet, tmp_path, monkeypatch, scheme, allowed
):
    from edgekit.core.progress import Silent
    from edgekit.flow.convert import convert

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    request = replace(convnet[0], lowering=Lowering(Quantize(scheme)))
    artifact = convert("openvino", request, tmp_path / "artifact", Silent())
    assert not list(home.rglob("*"))
    assert {spec.dtype for spec in artifact.manifest.inputs + artifact.manifest.outputs} == {"float32"}
    assert 0 < largest_difference(run(artifact.main, convnet[1]), convnet[2]) < allowed
    assert artifact.main.with_suffix(".bin").stat().st_size * 2 < convnet[3].main.with_suffix(".bin").stat().st_size
    assert ("FakeQuantize" in kinds(artifact.main)) == scheme.startswith("static")
    again = convert("openvino", request, tmp_path / "again", Silent())
    assert again.digest == artifact.digest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", ["static_wi8_ai8", "weight_only_wi8_afp32"])
def test_a_recurrent_network_can_be_quantized(tmp_path, scheme):
    request, inputs, outputs = request_for(tmp_path, Classifier(), STEPS, TO, scheme)
    artifact = OpenVino().compile(request, tmp_path / "artifact")
    assert "LSTMSequence" in kinds(artifact.main)
    assert largest_difference(run(artifact.main, inputs), outputs) < 5e-2


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LSTM(8, 16, batch_first=True)
        self.head = torch.nn.Linear(16, 32)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(steps)[0][:, -1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", OpenVino.schemes)
def test_a_scheme_that_would_change_nothing_is_refused_by_name(tmp_path, scheme):
    request, _, _ = request_for(tmp_path, NoWeights(), STEPS, TO, scheme)
    with pytest.raises(UnsupportedModelError, match=f"scheme {scheme} changes nothing in nets.py"):
        OpenVino().compile(request, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_static_quantization_without_examples_says_what_is_missing(convnet, tmp_path):
    request = replace(convnet[0], lowering=Lowering(Quantize("static_wi8_ai8")), calibration=None)
    with pytest.raises(UnsupportedModelError, match="needs calibration examples"):
        OpenVino().compile(request, tmp_path / "artifact")


def test_the_driver_is_told_the_device_and_what_it_computes_in(convnet):
    to = target("openvino", device="GPU", precision_hint="f16", precision="float16", properties={"CACHE_DIR": "x"})
    plan = OpenVino().run_plan(convnet[3].manifest, to, [Workload("latency", "latency")])
    assert plan.options == {"device": "GPU", "precision": "f16", "properties": {"CACHE_DIR": "x"}}
    plain = OpenVino().run_plan(convnet[3].manifest, TO, [], {"precision": "auto"})
    assert plain.options == {"device": "CPU", "precision": "auto"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devise": "GPU"}, "unknown option openvino.devise. Did you mean 'device'"),
        ({"device": "TPU"}, "openvino.device of the target 'board' cannot be 'TPU'"),
        ({"precision": "f16"}, "openvino.precision of the target 'board' cannot be 'f16'"),
        ({"properties": "fast"}, "openvino.properties of the target 'board' is a mapping"),
    ],
)
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(ConfigError) as caught:
        options_of(target("openvino", **options))
    assert words in caught.value.message
