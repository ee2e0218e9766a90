"""The backend openvino: weights of 4 bits and fewer, palettes, overrides by module, and what training has fixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from edgekit.backends.openvino import OpenVino
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.grid import Grid, Trained, structure_of
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import PassRecord
from tests.unit.backends.conversions import request_for, target

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]
TO = target("openvino")
IMAGE = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


class Net(nn.Module):
    """A stem with a batch norm, a pointwise convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 128, 1)
        self.head = nn.Linear(128, 64)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(-2, 2, 16))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        return self.head(torch.relu(self.point(x)).mean((2, 3)))


@pytest.fixture
def net(tmp_path):
    return request_for(tmp_path / "net", Net(), IMAGE, TO, name="image")


def lowered(request, scheme, calibration=True, overrides=None, **options):
    quantize = Quantize(scheme, **options) if scheme else None
    return replace(
        request,
        lowering=Lowering(quantize, overrides=overrides or {}),
        calibration=request.calibration if calibration else None,
    )


def run(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(inputs)[0]


def stored(path: Path) -> dict[str, int]:
    """How many constants of two dimensions or more there are of each type."""
    found: dict[str, int] = {}
    for op in ov.Core().read_model(str(path)).get_ops():
        if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) > 1:
            kind = op.get_element_type().get_type_name()
            size = int(np.prod(op.get_output_shape(0)))
            found[kind] = found.get(kind, 0) + size
    return found


def signal_to_noise(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


@pytest.mark.parametrize(
    ("scheme", "kind", "least"),
    [("weight_only_wi4_afp32", "i4", 15), ("palette_4", "u4", 15), ("palette_2", "u2", 3), ("palette_1", "u1", 0)],
)
@pytest.mark.parametrize("calibration", [False, True])
def test_large_layers_are_stored_in_few_bits_and_small_ones_in_eight(net, tmp_path, scheme, kind, least, calibration):
    request, inputs, outputs = net
    artifact = OpenVino().compile(lowered(request, scheme, calibration), tmp_path / "artifact")
    assert {one: size for one, size in stored(artifact.main).items() if one[0] in "iu"} == {
        kind: 128 * 16 + 128 * 64,
        "i8": 16 * 27,
    }
    assert signal_to_noise(run(artifact.main, inputs), outputs["out_0"]) > least
    assert any("keep 8 bits" in sentence for sentence in artifact.manifest.changed)
    again = OpenVino().compile(lowered(request, scheme, calibration), tmp_path / "again")
    assert again.digest == artifact.digest


def test_blocks_of_weights_have_scales_of_their_own(tmp_path):
    module = Net()
    with torch.no_grad():
        module.head.weight[:, :64] *= 20
    request, inputs, outputs = request_for(tmp_path / "blocks", module, IMAGE, TO, name="image")
    ratios = []
    for size in (None, 16):
        made = lowered(request, "weight_only_wi4_afp32", False, block_size=size)
        artifact = OpenVino().compile(made, tmp_path / str(size))
        ratios.append(signal_to_noise(run(artifact.main, inputs), outputs["out_0"]))
    assert ratios[1] > ratios[0] + 1


def test_a_layer_has_what_an_override_says(net, tmp_path):
    request, _, _ = net
    overrides = {"head": "float32", "point": "weight_only_wi4_afp32"}
    artifact = OpenVino().compile(lowered(request, "weight_only_wi8_afp32", False, overrides), tmp_path / "artifact")
    found = stored(artifact.main)
    assert (found["i4"], found["i8"]) == (128 * 16, 16 * 27)
    assert found["f32"] >= 128 * 64


def test_an_override_alone_quantizes_one_layer(net, tmp_path):
    request, _, _ = net
    artifact = OpenVino().compile(lowered(request, None, False, {"head": "float16"}), tmp_path / "artifact")
    assert stored(artifact.main)["f16"] == 128 * 64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_layer_is_left_out_of_static_quantization(net, tmp_path):
    request, inputs, outputs = net
    made = lowered(request, "static_wi8_ai8", overrides={"head": "weight_only_wi4_afp32", "stem": "float32"})
    artifact = OpenVino().compile(made, tmp_path / "artifact")
    found = stored(artifact.main)
    assert (found["i4"], found["i8"]) == (128 * 64, 128 * 16)
    assert signal_to_noise(run(artifact.main, inputs), outputs["out_0"]) > 15


def test_an_override_that_fits_nothing_names_the_nearest_layer(net, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'head'"):
        OpenVino().compile(lowered(net[0], "weight_only_wi8_afp32", False, {"haed": "float32"}), tmp_path / "artifact")


def test_what_a_layer_cannot_have_is_refused_before_any_work(net):
    issues = OpenVino().unsupported("pt2", (), Lowering(None, overrides={"head": "dynamic_wi8_afp32"}), TO)
    assert [issue.what for issue in issues] == ["scheme dynamic_wi8_afp32"]
    assert "palette_4" in issues[0].hint


def trained_net(levels: tuple[float, ...], bits: int) -> tuple[Net, Trained]:
    """A network whose layers but the stem lie on a grid, and the grid of the stem, which a batch norm follows."""
    module, grids = Net(), {}
    generator = np.random.default_rng(0)
    for name in ("stem", "point", "head"):
        weight = getattr(module, name).weight
        scale = generator.uniform(0.01, 0.1, len(weight)).astype(np.float32)
        codes = generator.choice(np.array(levels, np.float32), tuple(weight.shape))
        with torch.no_grad():
            weight.copy_(torch.from_numpy(codes * scale.reshape(-1, *[1] * (weight.dim() - 1))))
        grids[name] = Grid(bits, levels, tuple(float(one) for one in scale))
    return module, Trained(grids)


@pytest.mark.parametrize(
    ("scheme", "levels", "kind"),
    [
        ("weight_only_wi8_afp32", tuple(range(-100, 101)), "i8"),
        ("weight_only_wi4_afp32", tuple(range(-7, 8)), "i4"),
        ("palette_4", tuple(range(-8, 8)), "u4"),
        ("palette_2", (-2, -1, 0, 1), "u2"),
        ("palette_1", (-1, 1), "u1"),
    ],
)
def test_trained_weights_are_stored_exactly(tmp_path, scheme, levels, kind):
    module, trained = trained_net(levels, max(1, int(kind[1:])))
    request, inputs, outputs = request_for(tmp_path / "net", module, IMAGE, TO, name="image")
    record = PassRecord("quantize_aware", structure=structure_of(trained))
    made = replace(lowered(request, scheme, False), history=(record,))
    artifact = OpenVino().compile(made, tmp_path / "artifact")
    assert {one for one in stored(artifact.main) if one[0] in "iu"} == {kind}
    assert np.abs(run(artifact.main, inputs) - outputs["out_0"]).max() < 1e-5 * np.abs(outputs["out_0"]).max()


@pytest.mark.filterwarnings("ignore")
def test_the_data_of_matrix_products_are_rounded_by_the_dynamic_scheme_alone(net, tmp_path):
    request, inputs, outputs = net
    differences = {}
    for scheme in ("weight_only_wi8_afp32", "dynamic_wi8_afp32"):
        artifact = OpenVino().compile(lowered(request, scheme, False), tmp_path / scheme)
        model = ov.Core().read_model(str(artifact.main))
        size = model.get_rt_info(["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]).astype(str)
        assert size == ("0" if scheme.startswith("weight") else "32")
        differences[scheme] = np.abs(run(artifact.main, inputs) - outputs["out_0"]).max()
    assert all(0 < one < 0.05 for one in differences.values())


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


def test_the_dynamic_scheme_is_refused_where_there_is_no_matrix_product(tmp_path):
    request, _, _ = request_for(tmp_path / "net", Convolution(), IMAGE, TO, "dynamic_wi8_afp32", name="image")
    with pytest.raises(UnsupportedModelError, match="changes nothing"):
        OpenVino().compile(request, tmp_path / "artifact")


def test_examples_with_a_value_that_is_not_finite_are_refused(net, tmp_path):
    request, _, _ = net
    path = request.calibration / "image.npy"
    examples = np.load(path)
    examples[3, 0, 0, 0] = np.nan
    np.save(path, examples)
    with pytest.raises(UnsupportedModelError, match="'image' of calibration example 3"):
        OpenVino().compile(lowered(request, "weight_only_wi4_afp32"), tmp_path / "artifact")
