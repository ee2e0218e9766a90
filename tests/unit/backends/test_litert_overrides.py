"""Overrides by layer, trained grids and blocks in the LiteRT backend, with real conversions and the real runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import outputs
from edgekit.backends._litert.conversion import to_flatbuffer
from edgekit.backends._litert.layers import linear_layers
from edgekit.backends._litert.quantization import quantized
from edgekit.backends.litert import LiteRt
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.grid import Grid, Trained, structure_of
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import PassRecord, TensorSpec
from edgekit.flow.verify import compare
from tests.unit.backends import litert_kit as kit

pytestmark = pytest.mark.filterwarnings("ignore")

LEVELS = {bits: tuple(map(float, range(1 - 2 ** (bits - 1), 2 ** (bits - 1)))) for bits in (4, 8)}


class Net(torch.nn.Module):
    """Layers of every kind that has weights, one behind a batch norm, at paths two levels deep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 3, padding=1), torch.nn.BatchNorm2d(24))
        self.body = torch.nn.ModuleDict(
            {
                "depthwise": torch.nn.Conv2d(24, 24, 3, padding=1, groups=24),
                "point": torch.nn.Conv2d(24, 32, 1),
            }
        )
        self.head = torch.nn.Linear(32 * 64, 40)
        torch.nn.init.normal_(self.stem[1].weight)
        torch.nn.init.uniform_(self.stem[1].running_var, 0.5, 2.0)

    def forward(self, x):
        hidden = torch.relu(self.stem(x))
        hidden = torch.relu(self.body["point"](torch.relu(self.body["depthwise"](hidden))))
        return self.head(hidden.flatten(1))


PATHS = ("stem.0", "body.depthwise", "body.point", "head")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


class Made:
    def __init__(self, folder, module) -> None:
        self.module = module.eval()
        self.request = kit.request_for(folder, module, {"x": images(1)}, calibration={"x": images(32, seed=1)})
        self.content = to_flatbuffer(self.request)

    def quantized(self, scheme: str | None, overrides=(), history=(), **more):
        quantize = Quantize(scheme, **more) if scheme else None
        request = replace(self.request, lowering=Lowering(quantize, dict(overrides)), history=tuple(history))
        return quantized(self.content, request, quantize)

    def snr_db(self, content: bytes) -> float:
        x = images(24, seed=2)
        found = outputs(content, "serving_default", [{"x": one[None]} for one in x])["y0"][:, 0]
        return compare("y0", kit.reference(self.module, {"x": x})[0], found.astype(np.float32)).snr_db


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("net"), Net())


def stored(content: bytes) -> list[str]:
    """The type that each linear operator's weights have in the file, in computed order, and of its data."""
    model = flatbuffer.read(content)
    kinds = {number: name for name, number in vars(flatbuffer.schema().TensorType).items() if not name.startswith("_")}
    found = []
    for _, layer in linear_layers(model, model.subgraphs[0]):
        weights = kinds[layer._weights.type] if layer.has_weights else "PACKED"
        found.append(weights + ("" if layer.is_float else " on int8" if layer.is_8_bit else " mixed"))
    return found


@pytest.mark.slow
class TestOverrides:
    @pytest.mark.parametrize(
        ("scheme", "kind"),
        [
            ("float32", "FLOAT32"),
            ("float16", "FLOAT16"),
            ("weight_only_wi8_afp32", "INT8"),
            ("dynamic_wi8_afp32", "INT8"),
            ("weight_only_wi4_afp32", "INT4"),
            ("palette_2", "PACKED"),
        ],
    )
    def test_a_layer_of_a_static_file_computes_in_float_with_weights_of_its_own(self, net, scheme, kind):
        content, _ = net.quantized("static_wi8_ai8", {"body.point": scheme})
        assert stored(content) == ["INT8 on int8", "INT8 on int8", kind, "INT8 on int8"]
        assert net.snr_db(content) > (3 if scheme == "palette_2" else 12)

    @pytest.mark.parametrize("main", ["float16", "weight_only_wi8_afp32", "dynamic_wi8_afp32", "palette_4", None])
    def test_every_scheme_leaves_layers_in_float32(self, net, main):
        content, _ = net.quantized(main, {"stem.*": "float32", "head": "weight_only_wi4_afp32"})
        kinds = stored(content)
        assert (kinds[0], kinds[3]) == ("FLOAT32", "INT4")

    def test_the_last_that_fits_counts(self, net):
        content, _ = net.quantized("weight_only_wi8_afp32", {"body": "float16", "body.depthwise": "float32"})
        assert stored(content) == ["INT8", "FLOAT32", "FLOAT16", "INT8"]

    def test_a_sensitive_layer_in_float_brings_static_int8_closer(self, net):
        plain, _ = net.quantized("static_wi8_ai8")
        kept, _ = net.quantized("static_wi8_ai8", {"head": "float32", "body.*": "float32"})
        assert net.snr_db(kept) > net.snr_db(plain) + 2

    def test_of_no_layer_is_refused_with_the_nearest(self, net):
        with pytest.raises(ConfigError, match="'body.poit' fits no layer .* 'body.point'"):
            net.quantized("float16", {"body.poit": "float32"})

    def test_of_what_is_no_operator_of_its_own_is_refused(self, tmp_path):
        class Words(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.words, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 4)

            def forward(self, x):
                return self.head(self.words(x).mean(1))

        request = kit.request_for(tmp_path, Words(), {"x": np.zeros((1, 5), np.int64)})
        quantize = Quantize("weight_only_wi8_afp32")
        request = replace(request, lowering=Lowering(quantize, {"words": "float32"}))
        with pytest.raises(UnsupportedModelError, match="override for words cannot be done for LiteRT"):
            quantized(to_flatbuffer(request), request, quantize)


def trained(module: torch.nn.Module, bits: dict[str, int], ranges=None) -> PassRecord:
    """Put weights on a grid whose largest level no weight needs to have, as a pass does."""
    grids = {}
    for path, count in bits.items():
        weight = module.get_submodule(path).weight
        levels = torch.tensor(LEVELS[count])
        axes = tuple(range(1, weight.dim()))
        scale = weight.detach().abs().amax(axes, keepdim=True) / levels.max() * 1.3
        with torch.no_grad():
            weight.copy_((weight / scale).round().clamp(levels.min(), levels.max()) * scale)
        grids[path] = Grid(count, LEVELS[count], tuple(map(float, scale.flatten())))
    return PassRecord("quantize_aware", structure=structure_of(Trained(grids, ranges or {})))


def levels_in(content: bytes) -> list[np.ndarray]:
    model = flatbuffer.read(content)
    return [
        np.round(np.abs(layer.weights()) / np.reshape(layer.steps(), _along(layer))).astype(int)
        for _, layer in linear_layers(model, model.subgraphs[0])
    ]


def _along(layer):
    shape = [1] * layer.weights().ndim
    shape[layer.channel_axis] = -1
    return shape


@pytest.fixture(scope="module")
def on_grids(tmp_path_factory):
    module = Net()
    record = trained(module, {"stem.0": 8, "body.point": 4, "head": 4})
    return Made(tmp_path_factory.mktemp("grids"), module), record


@pytest.mark.slow
class TestTrainedGrids:
    @pytest.mark.parametrize("scheme", ["weight_only_wi8_afp32", "weight_only_wi4_afp32", "static_wi8_ai8"])
    def test_weights_are_stored_as_their_levels(self, on_grids, scheme):
        made, record = on_grids
        content, notes = made.quantized(scheme, history=[record])
        assert not [note for note in notes if "grid" in note]
        model = flatbuffer.read(content)
        layers = [layer for _, layer in linear_layers(model, model.subgraphs[0])]
        for place, path, largest in ((0, "stem.0", 127), (2, "body.point", 7), (3, "head", 7)):
            weight = made.module.get_submodule(path).weight.detach().numpy()
            scale = np.asarray(record.structure["grids"][path]["scale"])
            want = np.round(np.abs(weight.reshape(len(weight), -1)) / scale[:, None])
            steps = np.asarray(layers[place]._weights.quantization.scale)
            found = np.abs(layers[place].weights().reshape(len(weight), -1)) / steps[:, None]
            assert want.max() < largest
            assert np.array_equal(np.sort(np.round(found), axis=1), np.sort(want, axis=1))

    def test_weight_only_computes_what_was_trained(self, on_grids):
        made, record = on_grids
        rest = {"body.depthwise": "float32"}
        assert made.snr_db(made.quantized("weight_only_wi4_afp32", rest, [record])[0]) > 100
        assert made.snr_db(made.quantized("weight_only_wi4_afp32", rest)[0]) < 60

    def test_4_bit_grids_have_4_bits_and_8_bit_ones_keep_8(self, on_grids):
        made, record = on_grids
        content, _ = made.quantized("weight_only_wi4_afp32", history=[record])
        assert stored(content) == ["INT8", "INT8", "INT4", "INT4"]

    def test_a_pass_that_trained_after_it_undoes_the_grid(self, on_grids):
        made, record = on_grids
        later = [record, PassRecord("finetune")]
        assert made.quantized("weight_only_wi4_afp32", history=later) == made.quantized("weight_only_wi4_afp32")

    @pytest.mark.parametrize("io", ["float32", "int8"])
    def test_trained_ranges_are_those_of_the_file(self, tmp_path, io):
        module = Net()
        ranges = {
            "stem.0": {"input": (-3.0, 3.5)},
            "body.point": {"input": (0.0, 1.7), "output": (-2.0, 2.25)},
            "head": {"output": (-4.0, 4.5)},
        }
        record = trained(module, {"stem.0": 8, "body.point": 8, "head": 8}, ranges)
        made = Made(tmp_path, module)
        content, (said,) = made.quantized("static_wi8_ai8", history=[record], io=io)
        assert "has trained ranges" in said
        model = flatbuffer.read(content)
        layers = [layer for _, layer in linear_layers(model, model.subgraphs[0])]
        tensors = model.subgraphs[0].tensors
        spans = [
            255 * float(tensors[tensor].quantization.scale[0])
            for tensor in (layers[0].data, layers[2].data, layers[2].result, layers[3].result)
        ]
        # A ReLU is part of the pointwise convolution: what is below zero is not in its result.
        assert spans == pytest.approx([6.5, 1.7, 2.25, 8.5], rel=0.01)
        assert made.snr_db(content) > 15


@pytest.mark.slow
class TestBlocks:
    def test_are_closer_than_one_scale_a_channel(self, tmp_path):
        module = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(192, 256), torch.nn.ReLU(), torch.nn.Linear(256, 40)
        )
        with torch.no_grad():
            torch.manual_seed(0)
            for place in (1, 3):
                weight = module[place].weight
                weight.normal_().mul_(torch.exp(2 * torch.randn(weight.shape[1] // 32)).repeat_interleave(32))
        made = Made(tmp_path, module)
        plain, _ = made.quantized("weight_only_wi4_afp32", bias_correction=False)
        blocks, _ = made.quantized("weight_only_wi4_afp32", bias_correction=False, block_size=32)
        assert made.snr_db(blocks) > made.snr_db(plain) + 2
        assert len(blocks) < len(made.content) / 5
        assert (
            made.quantized("weight_only_wi4_afp32", block_size=64)[0]
            == made.quantized("weight_only_wi4_afp32", block_size=64)[0]
        )

    def test_that_fit_no_layer_are_refused(self, tmp_path):
        made = Made(tmp_path, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 40)))
        with pytest.raises(UnsupportedModelError, match="`block_size` 128 changes nothing"):
            made.quantized("weight_only_wi4_afp32", block_size=128)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["weight_only_wi4_afp32", "palette_4"])
def test_signatures_share_the_weights_of_every_precision(tmp_path, scheme):
    def size(folder, sizes):
        folder.mkdir()
        quantize = Quantize(scheme)
        lowering = Lowering(quantize, {"stem.0": "float16"}, batch_sizes=sizes)
        data = {"x": images(32, seed=1)}
        request = kit.request_for(folder, Net().eval(), {"x": images(1)}, lowering=lowering, calibration=data)
        plain = to_flatbuffer(request)
        content, _ = quantized(plain, request, quantize)
        x = images(4, seed=2)
        one = outputs(content, "serving_default", [{"x": each[None]} for each in x])["y0"][:, 0]
        if len(sizes) > 1:
            four = outputs(content, "batch_4", [{"x": x}])["y0"][0]
            assert compare("y0", one.astype(np.float32), four.astype(np.float32)).snr_db > 15
        return len(content)

    assert size(tmp_path / "two", (1, 4)) < size(tmp_path / "one", (1,)) + 12_000


class TestRefused:
    def issues(self, lowering: Lowering):
        return LiteRt().unsupported("pt2", (TensorSpec("y", (1, 4)),), lowering, kit.HERE)

    @pytest.mark.parametrize(
        ("lowering", "what", "hint"),
        [
            (
                Lowering(Quantize("float16"), {"a": "static_wi8_ai8"}),
                "overrides: static_wi8_ai8",
                "Make static_wi8_ai8",
            ),
            (Lowering(Quantize("float16"), {"a": "int7"}), "overrides: int7", "A layer can have: float32, float16"),
            (Lowering(Quantize("float16", block_size=32)), "block_size 32", "use the scheme weight_only_wi4_afp32"),
            (Lowering(Quantize("weight_only_wi4_afp32", block_size=48)), "block_size 48", "32, 64, 128, 256"),
            (Lowering(Quantize("float16", ranges="minmax")), "ranges minmax", "use the scheme static_wi8_ai8"),
            (Lowering(Quantize("palette_2", io="int8")), "io int8", "use the scheme static_wi8_ai8"),
        ],
    )
    def test_what_cannot_be_with_what_can(self, lowering, what, hint):
        (issue,) = self.issues(lowering)
        assert issue.what == what
        assert hint in issue.hint

    def test_nothing_where_it_can_be(self):
        for scheme in LiteRt.schemes:
            assert self.issues(Lowering(Quantize(scheme), {"a": "float32", "b.*": "palette_2"})) == []

    def test_outputs_are_judged_by_the_coarsest_layer(self):
        backend = LiteRt()
        assert backend.computed_precision(Lowering(None, {"a": "float16"}), kit.HERE) == "float16"
        mixed = Lowering(Quantize("static_wi8_ai8"), {"a": "float32", "b": "palette_1"})
        assert backend.computed_precision(mixed, kit.HERE) == "palette_1"
        assert backend.computed_precision(Lowering(), kit.HERE) == "float32"
