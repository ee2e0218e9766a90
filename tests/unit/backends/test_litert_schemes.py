"""The LiteRT backend's quantization schemes on small networks, with real conversions and the real runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import outputs
from edgekit.backends._litert.choice import closest
from edgekit.backends._litert.conversion import to_flatbuffer
from edgekit.backends._litert.layers import linear_layers
from edgekit.backends._litert.quantization import SCHEMES, quantized
from edgekit.backends.litert import LiteRt
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import TensorSpec
from edgekit.flow.verify import TOLERANCES, compare
from tests.unit.backends import litert_kit as kit

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS_ONLY = tuple(scheme for scheme in SCHEMES if not scheme.startswith("static"))
BITS = {"float16": 16, "weight_only_wi4_afp32": 4, "palette_4": 4, "palette_2": 2, "palette_1": 1}
STORED = {"float16": "FLOAT16", "weight_only_wi4_afp32": "INT4"} | dict.fromkeys(
    ("palette_4", "palette_2", "palette_1"), "UINT8"
)


class Net(torch.nn.Module):
    """Convolutions, one of them depthwise, a residual, and a large last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 24, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.point = torch.nn.Conv2d(24, 24, 1, bias=False)
        self.last = torch.nn.Linear(24 * 64, 40)

    def forward(self, x):
        first = torch.nn.functional.relu6(self.stem(x))
        hidden = first + self.point(torch.relu(self.depthwise(first)))
        return self.last(hidden.flatten(1))


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


class Prepared:
    """A network's float file, and the request that it was made for."""

    def __init__(self, folder, module, calibration: np.ndarray | None, count: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        example = images(count) if calibration is None else calibration[:1]
        data = None if calibration is None else {"x": calibration}
        self.module = module.eval()
        self.request = kit.request_for(folder, module, {"x": example}, calibration=data)
        self.content = to_flatbuffer(self.request)

    def quantized(self, scheme: str, **more):
        quantize = Quantize(scheme, **more)
        request = replace(self.request, lowering=Lowering(quantize))
        return quantized(self.content, request, quantize)

    def output(self, content: bytes, x: np.ndarray) -> np.ndarray:
        return outputs(content, "serving_default", [{"x": one[None]} for one in x])["y0"][:, 0]

    def parity(self, content: bytes, x: np.ndarray):
        want = kit.reference(self.module, {"x": x})[0]
        return compare("y0", want, self.output(content, x).astype(np.float32))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return Prepared(tmp_path_factory.mktemp("net"), Net(), images(40, seed=1))


@pytest.fixture(scope="module")
def without_examples(tmp_path_factory):
    return Prepared(tmp_path_factory.mktemp("bare"), Net(), None)


def kinds(content: bytes) -> set[int]:
    model = flatbuffer.read(content)
    return {
        tensor.type
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
        if model.buffers[tensor.buffer].data is not None
    }


@pytest.mark.slow
class TestEachScheme:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_is_smaller_by_its_bits_and_keeps_its_tolerance(self, net, scheme):
        content, _ = net.quantized(scheme)
        assert len(content) < len(net.content) * (BITS.get(scheme, 8) / 32) + 12_000
        assert getattr(flatbuffer.schema().TensorType, STORED.get(scheme, "INT8")) in kinds(content)
        found, tolerance = net.parity(content, images(20, seed=2)), TOLERANCES[scheme]
        assert found.cosine >= tolerance.min_cosine
        assert found.snr_db >= tolerance.min_snr_db

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_inputs_and_outputs_stay_float(self, net, scheme):
        content, _ = net.quantized(scheme)
        types = flatbuffer.signature_types(flatbuffer.read(content), "serving_default")
        assert types == {"input": {"x": "float32"}, "output": {"y0": "float32"}}

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_equal_input_gives_equal_bytes(self, net, scheme):
        assert net.quantized(scheme) == net.quantized(scheme)

    @pytest.mark.parametrize("scheme", WEIGHTS_ONLY)
    def test_weights_need_no_examples(self, without_examples, scheme):
        content, _ = without_examples.quantized(scheme)
        assert len(content) < 0.7 * len(without_examples.content)
        assert without_examples.parity(content, images(20, seed=2)).cosine >= TOLERANCES[scheme].min_cosine

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_that_changes_nothing_is_refused_by_name(self, tmp_path, scheme):
        class Twice(torch.nn.Module):
            def forward(self, x):
                return x + x

        bare = Prepared(tmp_path, Twice(), images(8))
        with pytest.raises(UnsupportedModelError, match=f"{scheme} changes nothing in net.py:build"):
            bare.quantized(scheme)

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_runs_a_recurrence(self, tmp_path, scheme):
        class Recurrent(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(2)
                self.layer = torch.nn.LSTM(32, 48, batch_first=True)
                self.last = torch.nn.Linear(48, 40)

            def forward(self, x):
                return self.last(self.layer(x)[0][:, -1])

        x = np.random.default_rng(0).standard_normal((20, 21, 32)).astype(np.float32)
        made = Prepared(tmp_path, Recurrent(), x)
        content, _ = made.quantized(scheme)
        assert len(content) < 0.8 * len(made.content)
        assert made.parity(content, x[:8]).cosine >= TOLERANCES[scheme].min_cosine


@pytest.mark.slow
class TestFourBits:
    def test_small_layers_and_depthwise_ones_keep_eight(self, net):
        content, notes = net.quantized("weight_only_wi4_afp32")
        assert notes[0] == "1 of 4 layers have 4-bit weights, 3 keep 8 bits"
        tflite = flatbuffer.schema().TensorType
        assert {tflite.INT4, tflite.INT8} <= kinds(content)

    def test_calibration_examples_bring_the_outputs_closer(self, net):
        x = images(40, seed=3)
        plain, _ = net.quantized("weight_only_wi4_afp32", bias_correction=False)
        corrected, (_, said) = net.quantized("weight_only_wi4_afp32")
        assert "has rounding by GPTQ and corrected biases" in said
        assert net.parity(corrected, x).snr_db > net.parity(plain, x).snr_db


def biased() -> torch.nn.Module:
    """A net whose rounded weights shift every mean: its inputs are far from zero, and its weights all just miss a step."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.Flatten()
    )
    with torch.no_grad():
        for layer in (net[0], net[2]):
            step = 1.0 / 127
            layer.weight.copy_(torch.where(torch.rand_like(layer.weight) < 0.5, 3.4 * step, -3.4 * step))
            layer.weight[:, 0, 0, 0] = 1.0
    return net


@pytest.mark.slow
class TestStaticInt8:
    def test_correcting_biases_mends_a_net_with_a_biased_error(self, tmp_path):
        data = 2.0 + 0.05 * images(40)
        made = Prepared(tmp_path, biased(), data)
        x = 2.0 + 0.05 * images(30, seed=5)
        plain, _ = made.quantized("static_wi8_ai8", bias_correction=False)
        corrected, notes = made.quantized("static_wi8_ai8")
        assert "has mse ranges, rounding by GPTQ and corrected biases" in notes[0]
        assert made.parity(corrected, x).snr_db > made.parity(plain, x).snr_db + 3

    def test_ranges_by_least_error_are_better_than_all_values_where_few_are_far_out(self, tmp_path):
        data = images(40)
        data[::9, :, 0, 0] = 80.0
        made = Prepared(tmp_path, Net(), data)
        x = images(30, seed=5)
        ratios = {
            ranges: made.parity(made.quantized("static_wi8_ai8", ranges=ranges, bias_correction=False)[0], x).snr_db
            for ranges in ("mse", "minmax")
        }
        assert ratios["mse"] > ratios["minmax"]

    def test_the_best_on_held_out_examples_is_kept_and_said(self, net, monkeypatch):
        _, (said,) = net.quantized("static_wi8_ai8")
        assert "on 10 held-out examples" in said

        def spoiled(*_):
            return 0.0, 1e-3

        monkeypatch.setattr("edgekit.backends._quantize.ranges.Histogram.range", spoiled)
        _, (said,) = net.quantized("static_wi8_ai8")
        assert "static_wi8_ai8 has the library's default ranges" in said

    def test_a_file_that_gives_no_numbers_is_never_the_closest(self, net):
        good = flatbuffer.read(net.content)
        bad = flatbuffer.read(net.content)
        layer = next(layer for _, layer in linear_layers(bad, bad.subgraphs[0]))
        layer.set_bias(np.full_like(layer.bias(), np.nan))
        samples = {"serving_default": [{"x": images(1)}]}
        model, said = closest({"bad": bad, "good": good}, net.content, samples, "float16")
        assert model is good
        assert "float16 has good" in said

    def test_one_example_is_enough(self, net):
        content, (said,) = net.quantized("static_wi8_ai8", calibration=1)
        assert "on 1 held-out examples" in said
        assert net.parity(content, images(20, seed=2)).cosine > 0.9

    def test_a_value_that_is_not_finite_is_refused_by_its_input(self, tmp_path):
        data = images(8)
        data[5, 1, 2, 3] = np.nan
        made = Prepared(tmp_path, Net(), data)
        with pytest.raises(UnsupportedModelError, match="input 'x' of the calibration examples from 5 on"):
            made.quantized("static_wi8_ai8")

    def test_constant_activations_are_kept(self, tmp_path):
        class Constant(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.zero, self.last = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 40, 1)
                torch.nn.init.zeros_(self.zero.weight)
                self.zero.bias.data = torch.tensor([0.0, 1.0, -2.0, 0.5])

            def forward(self, x):
                return self.last(torch.relu(self.zero(x))).flatten(1)

        made = Prepared(tmp_path, Constant(), images(8))
        content, _ = made.quantized("static_wi8_ai8")
        assert made.parity(content, images(4, seed=3)).snr_db > 30

    def test_a_channel_that_training_switched_off_keeps_its_constant(self, tmp_path):
        net = Net()
        with torch.no_grad():
            net.stem.weight[:4] *= 1e-12
            net.stem.bias[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        made = Prepared(tmp_path, net, images(24))
        content, _ = made.quantized("static_wi8_ai8")
        assert made.parity(content, images(20, seed=2)).snr_db > 25

    def test_several_outputs_and_branches(self, tmp_path):
        class Two(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = Net()
                self.up = torch.nn.ConvTranspose2d(24, 8, 2, stride=2)

            def forward(self, x):
                first = torch.relu(self.net.stem(x))
                return self.net(x), self.up(first), first.mean((2, 3))

        made = Prepared(tmp_path, Two(), images(16))
        content, _ = made.quantized("static_wi8_ai8")
        want = kit.reference(made.module, {"x": images(6, seed=2)})
        found = outputs(content, "serving_default", [{"x": one[None]} for one in images(6, seed=2)])
        for place, reference in enumerate(want):
            assert compare("y", reference, found[f"y{place}"][:, 0].astype(np.float32)).snr_db > 15


def test_integer_inputs_and_outputs_are_refused_for_schemes_that_compute_in_float():
    issues = LiteRt().unsupported("pt2", (TensorSpec("y", (1, 4)),), Lowering(Quantize("float16", io="int8")), kit.HERE)
    assert [(issue.what, "computes in float" in issue.reason) for issue in issues] == [("io int8", True)]


@pytest.mark.slow
def test_what_was_decided_stands_in_the_manifest(tmp_path):
    lowering = Lowering(Quantize("static_wi8_ai8", calibration=16))
    artifact = kit.compiled(tmp_path, Net(), {"x": images(1)}, lowering=lowering, calibration={"x": images(16)})
    assert [change for change in artifact.manifest.changed if change.startswith("static_wi8_ai8 has")]
    folder = tmp_path / "weights"
    folder.mkdir()
    weights = kit.compiled(folder, Net(), {"x": images(1)}, lowering=Lowering(Quantize("float16")))
    assert weights.manifest.changed == ()
