"""Palettes of 4, 2 and 1 bit in a `.tflite`: what is stored, that the stock runtime unpacks it, and how small it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.backends._litert import flatbuffer, packing
from edgekit.backends._litert.calibration import outputs
from edgekit.backends._litert.conversion import SIGNATURE, to_flatbuffer
from edgekit.backends._litert.grids import StoredGrid
from edgekit.backends._litert.packing import packed_codes
from edgekit.backends._litert.palettes import k_means
from edgekit.backends._litert.quantization import quantized
from edgekit.backends._litert.sharing import write
from edgekit.core.grid import Grid, Trained, structure_of
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import PassRecord
from edgekit.flow.verify import compare
from tests.unit.backends import litert_kit as kit

pytestmark = pytest.mark.filterwarnings("ignore")

LEVELS = {
    1: (-1.0, 1.0),
    2: (-3.0, -1.0, 1.0, 3.0),
    4: tuple(map(float, range(-7, 8))),
    8: tuple(map(float, range(-127, 128))),
}
HALF_DB = 55
"""What scales, biases and the like of float16 leave: each is off by 2**-11 of itself at most, a -66 dB for one layer."""


def trained(module: torch.nn.Module, bits: int, keep: tuple[str, ...] = ()) -> PassRecord:
    grids = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            continue
        own = LEVELS[8 if path in keep else bits]
        levels = torch.tensor(own)
        scale = layer.weight.detach().abs().mean(tuple(range(1, layer.weight.dim())), keepdim=True) * 2 / levels.max()
        places = ((layer.weight.detach() / scale).unsqueeze(-1) - levels).abs().argmin(-1)
        with torch.no_grad():
            layer.weight.copy_(levels[places] * scale)
        grids[path] = Grid(8 if path in keep else bits, own, tuple(map(float, scale.flatten())))
    return PassRecord("quantize_aware", structure=structure_of(Trained(grids)))


def mlp() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn
    return layers.Sequential(
        layers.Flatten(),
        layers.Linear(784, 256),
        layers.ReLU(),
        layers.Linear(256, 128),
        layers.ReLU(),
        layers.Linear(128, 10),
    ).eval()


def cnn() -> torch.nn.Module:
    """With a batch norm whose factors have both signs, a depthwise convolution, and a size that fills no byte."""
    torch.manual_seed(0)
    layers = torch.nn
    module = layers.Sequential(
        layers.Conv2d(1, 24, 3, padding=1),
        layers.BatchNorm2d(24),
        layers.ReLU(),
        layers.Conv2d(24, 24, 3, padding=1, groups=24),
        layers.ReLU(),
        layers.MaxPool2d(4),
        layers.Conv2d(24, 61, 3),
        layers.ReLU(),
        layers.Flatten(),
        layers.Linear(61 * 25, 103),
    ).eval()
    layers.init.normal_(module[1].weight)
    layers.init.uniform_(module[1].running_var, 0.5, 2.0)
    return module


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1, 28, 28)).astype(np.float32)


def packed(folder, module, bits: int, history=(), calibration=None, **lowering):
    folder.mkdir(exist_ok=True)
    data = None if calibration is None else {"x": calibration}
    quantize = Quantize(f"palette_{bits}")
    request = kit.request_for(
        folder, module, {"x": images(1)}, calibration=data, lowering=Lowering(quantize, **lowering)
    )
    request = replace(request, history=tuple(history))
    content = to_flatbuffer(request)
    return content, *quantized(content, request, quantize)


def snr_db(module, content: bytes, x: np.ndarray) -> float:
    found = outputs(content, SIGNATURE, [{"x": one[None]} for one in x])["y0"][:, 0]
    return compare("y0", kit.reference(module, {"x": x})[0], found.astype(np.float32)).snr_db


@pytest.mark.slow
class TestTrained:
    @pytest.mark.parametrize("bits", [4, 2, 1])
    @pytest.mark.parametrize("make", [mlp, cnn])
    def test_computes_what_was_trained(self, tmp_path, bits, make):
        module = make()
        record = trained(module, bits)
        plain, content, notes = packed(tmp_path, module, bits, [record])
        assert notes == ()
        assert snr_db(module, content, images(6, seed=2)) > HALF_DB
        assert len(plain) / len(content) > {4: 6.5, 2: 12, 1: 20}[bits]

    def test_a_last_layer_of_8_bits_keeps_them(self, tmp_path):
        module = mlp()
        record = trained(module, 2, keep=("5",))
        plain, content, notes = packed(tmp_path, module, 2, [record])
        assert notes == ("2 of 3 layers have 2-bit palettes, 1 keep 8 bits",)
        assert snr_db(module, content, images(6, seed=2)) > HALF_DB
        assert len(plain) / len(content) > 12

    def test_several_signatures_share_their_weights(self, tmp_path):
        module = mlp()
        record = trained(module, 1)
        one = packed(tmp_path / "one", module, 1, [record])[1]
        _, content, _ = packed(tmp_path / "two", module, 1, [record], batch_sizes=(1, 4))
        assert len(content) < len(one) + 6_000
        x = images(4, seed=3)
        want = kit.reference(module, {"x": x})[0]
        found = outputs(content, "batch_4", [{"x": x}])["y0"][0]
        assert compare("y0", want, found.astype(np.float32)).snr_db > HALF_DB
        assert snr_db(module, content, x) > HALF_DB


class TestByKMeans:
    @pytest.mark.slow
    def test_keeps_its_tolerance_at_4_bits(self, tmp_path):
        module = cnn()
        plain, content, (said, *_) = packed(tmp_path, module, 4, calibration=images(24, seed=1))
        assert "layers have 4-bit palettes" in said
        assert snr_db(module, content, images(12, seed=2)) > 15
        assert len(plain) / len(content) > 6

    @pytest.mark.slow
    def test_corrected_biases_do_not_make_it_worse(self, tmp_path):
        module = cnn()
        x = images(24, seed=1) + 1.0
        bare = packed(tmp_path / "bare", module, 2)[1]
        corrected = packed(tmp_path / "corrected", module, 2, calibration=x)[1]
        judged = images(24, seed=2) + 1.0
        assert snr_db(module, corrected, judged) >= snr_db(module, bare, judged)

    def test_finds_levels_that_the_weights_are_on(self):
        generator = np.random.default_rng(0)
        levels, scale = np.array([-2.0, -0.3, 0.1, 1.5]), generator.uniform(0.5, 2.0, (12, 1))
        weights = levels[generator.integers(0, 4, (12, 400))] * scale
        found = k_means(weights, 0, 2)
        assert np.abs(found.values() - weights).max() < 0.02

    def test_is_closer_than_evenly_spaced_levels(self):
        weights = np.random.default_rng(0).laplace(size=(16, 500))
        steps = np.abs(weights).max(axis=1, keepdims=True) / 7
        even = ((np.clip(np.round(weights / steps), -7, 7) * steps - weights) ** 2).mean()
        assert ((k_means(weights, 0, 4).values() - weights) ** 2).mean() < 0.5 * even

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_channels_of_zeros_and_of_one_value_stay(self, bits):
        weights = np.zeros((3, 9))
        weights[1] = 0.25
        assert np.allclose(k_means(weights, 0, bits).values(), weights, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packed_codes_are_read_back_lowest_bits_first(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, 37).astype(np.uint8)
    stored = packed_codes(codes, bits)
    assert len(stored) == -(-37 * bits // 8)
    every = (stored[:, None] >> (np.arange(8 // bits) * bits)) & (2**bits - 1)
    assert np.array_equal(every.ravel()[:37], codes)


def test_a_grid_of_halves_is_stored_as_integers_of_half_the_scale():
    codes = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
    grid = StoredGrid(2, (-1.5, -0.5, 0.5, 1.5), codes, np.array([0.5, -2.0]), 0)
    stored, scale = grid.integers(4)
    assert stored.tolist() == [[-3, -1, 1, 3], [-3, -1, 1, 3]]
    assert np.array_equal(stored * scale[:, None], grid.values())


@pytest.mark.slow
def test_the_driver_runs_it_and_shows_its_layers(tmp_path):
    module = cnn()
    record = trained(module, 2)
    lowering = Lowering(Quantize("palette_2"))
    request = replace(kit.request_for(tmp_path, module, {"x": images(1)}, lowering=lowering), history=(record,))
    artifact = kit.LiteRt().compile(request, tmp_path / "artifact")
    made = kit.driver(artifact)
    x = {"x": images(1, seed=4)}
    want = kit.reference(module, x)[0]
    for _ in range(2):
        assert np.allclose(kit.run(made, x)["y0"], want, atol=1e-3 * np.abs(want).max())
    inner = made.intermediates(x)
    hidden = module[:3](torch.from_numpy(x["x"])).detach().numpy()
    sizes = [value for value in inner.values() if value.size == hidden.size]
    assert any(
        np.allclose(np.sort(value.ravel()), np.sort(hidden.ravel()), atol=1e-3 * np.abs(hidden).max())
        for value in sizes
    )
    # The first convolution, of one channel, is a depthwise one of the same shape as the second: they share a variable.
    assert kit.operators(artifact)["READ_VARIABLE"] == 3


class Vit(torch.nn.Module):
    """Two layers of attention, with layer norms whose factors the converter multiplies into the weights."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        nn = torch.nn
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.products = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value", "project")})
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for norm, layer in zip(self.norms, self.products, strict=True):
            normal = norm(tokens)
            scores = layer["query"](normal) @ layer["key"](normal).transpose(1, 2)
            tokens = tokens + layer["project"]((scores / 8).softmax(-1) @ layer["value"](normal))
        return self.head(tokens.mean(1))


@pytest.mark.slow
class TestSmallFiles:
    @pytest.mark.parametrize("bits", [2, 1])
    def test_weights_with_the_factors_of_a_layer_norm_keep_their_grid(self, tmp_path, bits):
        torch.manual_seed(0)
        module = Vit().eval()
        record = trained(module, bits, keep=("patches", "head"))
        _, content, notes = packed(tmp_path, module, bits, [record])
        assert notes == (f"8 of 10 layers have {bits}-bit palettes, 2 keep 8 bits",)
        assert snr_db(module, content, images(6, seed=2)) > HALF_DB
        model, names = flatbuffer.read(content), flatbuffer.builtin_names()
        kinds = [flatbuffer.operator_name(model, one, names) for one in model.subgraphs[0].operators]
        # Eight layers of one shape stand in one variable.
        assert kinds.count("READ_VARIABLE") == 1

    def test_sharing_equal_parts_changes_nothing_that_is_read(self, tmp_path):
        module = mlp()
        content = packed(tmp_path, module, 2, [trained(module, 2)])[1]
        again = flatbuffer.write(flatbuffer.read(content))
        assert len(again) > len(content)
        x = {"x": images(1, seed=5)}
        found = [outputs(one, SIGNATURE, [x])["y0"] for one in (content, again)]
        assert np.array_equal(*found)
        assert write(flatbuffer.read(again)) == write(flatbuffer.read(content))

    def test_a_layer_that_stays_float_keeps_its_bias_to_the_last_bit(self, tmp_path):
        module = mlp()
        content = packed(tmp_path, module, 4, overrides={"1": "float32"})[1]
        floats = {buffer.data.tobytes() for buffer in flatbuffer.read(content).buffers if buffer.data is not None}
        assert module[1].bias.detach().numpy().tobytes() in floats
        assert module[3].bias.detach().numpy().tobytes() not in floats


def test_scales_that_float16_cannot_hold_stay_float32():
    assert packing._fits_half(np.array([0.01, 3.0, 0.0], np.float32))
    assert not packing._fits_half(np.array([1e-6, 1.0], np.float32))
    assert not packing._fits_half(np.array([1e6], np.float32))
