"""Quantization for ONNX Runtime: how weights are stored, which layer gets what, and what calibration examples do."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgekit.backends._quantize import levels
from edgekit.backends.onnxruntime import OnnxRuntime
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.grid import Grid, Trained, structure_of
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import PassRecord
from tests.unit.backends.conversions import Transformer, request_for, target

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]
TO = target("onnxruntime")


class Net(nn.Module):
    """A stem with a batch norm, a pointwise convolution with a residual sum, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 16, 1)
        self.wide = nn.Conv2d(16, 30, 3, stride=2)
        self.head = nn.Linear(30, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = x + self.mix(x)
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(3)
    module = Net()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2.0)
    module.norm.weight.data.uniform_(-1.0, 1.0)
    folder = tmp_path_factory.mktemp("net")
    request, _, _ = request_for(folder, module, torch.randn(1, 3, 12, 12), TO, "static_wi8_ai8", "image")
    examples = torch.randn(32, 3, 12, 12)
    np.save(folder / "calibration" / "image.npy", examples.numpy())
    return module, request, torch.randn(24, 3, 12, 12)


def compiled(request, tmp_path, scheme, *, overrides=None, history=(), calibrated=True, **options):
    lowering = Lowering(Quantize(scheme, **options) if scheme else None, overrides=overrides or {})
    changed = replace(request, lowering=lowering, history=history)
    return OnnxRuntime().compile(changed if calibrated else replace(changed, calibration=None), tmp_path / "artifact")


def noise(artifact, module, examples) -> float:
    """The error's energy as a share of the outputs'."""
    with torch.no_grad():
        wanted = module(examples).numpy()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(artifact.main), settings, providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, {"image": one[None].numpy()})[0] for one in examples])
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


def folded(path: Path, tmp_path: Path) -> onnx.ModelProto:
    """The graph as a session with no settings runs it."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return onnx.load(str(tmp_path / "folded.onnx"))


def initializers(artifact) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(artifact.main).graph.initializer}


@pytest.mark.parametrize(
    ("scheme", "allowed"),
    [("float16", 1e-6), ("weight_only_wi8_afp32", 1e-3), ("weight_only_wi4_afp32", 0.05), ("palette_4", 0.05)],
)
def test_a_session_with_no_settings_unpacks_weights_once_while_it_loads(net, tmp_path, scheme, allowed):
    module, request, examples = net
    artifact = compiled(request, tmp_path, scheme)
    assert noise(artifact, module, examples) < allowed
    kinds = {node.op_type for node in folded(artifact.main, tmp_path).graph.node}
    assert not kinds & {"Cast", "Gather", "Mul", "DequantizeLinear", "Slice"}


def test_fewer_bits_make_a_smaller_file(net, tmp_path):
    _, request, _ = net
    schemes = ("float16", "weight_only_wi8_afp32", "palette_4", "palette_2", "palette_1")
    weights = [
        sum(
            value.nbytes
            for name, value in initializers(compiled(request, tmp_path / one, one)).items()
            if "wide" in name
        )
        for one in schemes
    ]
    assert weights == sorted(weights, reverse=True)
    # 30 channels of 144 weights in one bit, 30 scales and two levels of 16 bits, a bias, and three places of a shape.
    assert weights[-1] < 30 * 144 / 8 + 64 + 4 + 120 + 64


def test_static_quantization_is_not_worse_than_the_librarys_default_and_says_what_it_is(net, tmp_path):
    module, request, examples = net
    ours = compiled(request, tmp_path / "ours", "static_wi8_ai8")
    plain = compiled(request, tmp_path / "plain", "static_wi8_ai8", ranges="minmax", bias_correction=False)
    assert noise(ours, module, examples) <= 1.1 * noise(plain, module, examples)
    sentence = next(one for one in ours.manifest.changed if "static_wi8_ai8 has" in one)
    assert "the library's default ranges" in sentence
    assert "held-out examples" in sentence
    assert "GPTQ" not in " ".join(plain.manifest.changed)


def test_x86_gets_unsigned_activations_and_arm_signed_ones(net, tmp_path):
    _, request, _ = net
    for arch, wanted in (("x86_64", "uint8"), ("aarch64", "int8")):
        artifact = compiled(
            replace(request, target=target("onnxruntime", arch=arch)), tmp_path / arch, "static_wi8_ai8"
        )
        zero = [value.dtype.name for name, value in initializers(artifact).items() if name == "image_zero_point"]
        assert zero == [wanted]


def test_examples_make_weights_alone_closer(net, tmp_path):
    module, request, examples = net
    with_them = compiled(request, tmp_path / "a", "palette_2")
    without = compiled(request, tmp_path / "b", "palette_2", calibrated=False)
    assert noise(with_them, module, examples) < noise(without, module, examples)


def test_a_layer_gets_the_scheme_of_its_module_path(net, tmp_path):
    _, request, _ = net
    artifact = compiled(request, tmp_path, "static_wi8_ai8", overrides={"head": "float32", "wi*": "palette_4"})
    kinds = {one.name: (one.data_type, tuple(one.dims)) for one in onnx.load(artifact.main).graph.initializer}
    types = onnx.TensorProto
    shapes = {(kind, dims) for kind, dims in kinds.values()}
    assert (types.INT8, (16, 3, 3, 3)) in shapes
    assert (types.INT8, (16, 16, 1, 1)) in shapes
    assert (types.UINT8, (30 * 144 // 2,)) in shapes
    assert {(types.FLOAT, (10, 30)), (types.FLOAT, (30, 10))} & shapes


def test_single_layers_of_a_float_model_can_be_quantized(net, tmp_path):
    module, request, examples = net
    artifact = compiled(request, tmp_path, None, overrides={"wide": "static_wi8_ai8"})
    assert 0 < noise(artifact, module, examples) < 1e-3
    shapes = {(one.data_type, tuple(one.dims)) for one in onnx.load(artifact.main).graph.initializer}
    assert (onnx.TensorProto.INT8, (30, 16, 3, 3)) in shapes
    assert (onnx.TensorProto.FLOAT, (16, 3, 3, 3)) in shapes


def test_an_override_that_fits_no_layer_offers_the_nearest(net, tmp_path):
    with pytest.raises(ConfigError, match="'heat' fits no layer with weights. Did you mean 'head'"):
        compiled(net[1], tmp_path, "weight_only_wi8_afp32", overrides={"heat": "float32"})


def test_a_scheme_whose_every_layer_is_excepted_changes_nothing_and_is_refused(net, tmp_path):
    with pytest.raises(UnsupportedModelError, match="weight_only_wi8_afp32 changes nothing"):
        compiled(net[1], tmp_path, "weight_only_wi8_afp32", overrides={"*": "float32"})


def trained_history(module: nn.Module, bits: int, layers: tuple[str, ...]) -> tuple[PassRecord, ...]:
    """Put weights on a grid, as a pass that trains does, and the record that it leaves."""
    grids = {}
    largest = 1 if bits == 1 else 2 ** (bits - 1) - 1
    values = (-1.0, 1.0) if bits == 1 else tuple(float(level) for level in range(-largest, largest + 1))
    for path in layers:
        weight = module.get_submodule(path).weight.data
        rows = weight.reshape(len(weight), -1)
        scale = rows.abs().mean(1) if bits == 1 else rows.abs().amax(1) / largest * 0.9
        signs = torch.where(rows >= 0, 1.0, -1.0)
        steps = signs if bits == 1 else torch.clamp(torch.round(rows / scale[:, None]), -largest, largest)
        weight.copy_((steps * scale[:, None]).reshape(weight.shape))
        grids[path] = Grid(bits, values, tuple(scale.tolist()))
    return (PassRecord("quantize_aware", {}, True, (), structure=structure_of(Trained(grids))),)


@pytest.mark.parametrize(
    ("scheme", "bits"), [("palette_1", 1), ("palette_4", 4), ("weight_only_wi4_afp32", 4), ("weight_only_wi8_afp32", 8)]
)
def test_trained_weights_are_stored_exactly_though_a_batch_norm_was_folded_into_them(tmp_path, scheme, bits):
    torch.manual_seed(4)
    module = Net().eval()
    module.norm.running_var.uniform_(0.5, 2.0)
    module.norm.weight.data.uniform_(-1.0, 1.0)
    with torch.no_grad():
        history = trained_history(module, bits, ("stem", "mix", "wide", "head"))
    request, _, _ = request_for(tmp_path / "net", module, torch.randn(1, 3, 12, 12), TO, scheme, "image")
    artifact = compiled(request, tmp_path, scheme, history=history, calibrated=False)
    assert noise(artifact, module, torch.randn(8, 3, 12, 12)) < 1e-10
    assert any("4 layers have exactly the weights" in one for one in artifact.manifest.changed)


def test_static_quantization_keeps_the_trained_levels(tmp_path):
    torch.manual_seed(5)
    module = Net().eval()
    module.norm.weight.data.uniform_(-1.0, 1.0)
    with torch.no_grad():
        history = trained_history(module, 4, ("stem", "mix", "wide"))
    request, _, _ = request_for(tmp_path / "net", module, torch.randn(1, 3, 12, 12), TO, "static_wi8_ai8", "image")
    artifact = compiled(request, tmp_path, "static_wi8_ai8", history=history)
    arrays = initializers(artifact)
    integers = {value.shape: value for value in arrays.values() if value.dtype == np.int8 and value.ndim > 1}
    for shape in ((16, 3, 3, 3), (16, 16, 1, 1), (30, 16, 3, 3)):
        assert np.abs(integers[shape]).max() <= 7, shape
    assert noise(artifact, module, torch.randn(8, 3, 12, 12)) < 1e-2


def test_a_grid_of_more_levels_than_the_scheme_has_is_said_to_be_lost(tmp_path):
    torch.manual_seed(6)
    module = Net().eval()
    with torch.no_grad():
        history = trained_history(module, 4, ("wide",))
    request, _, _ = request_for(tmp_path / "net", module, torch.randn(1, 3, 12, 12), TO, "palette_1", "image")
    artifact = compiled(request, tmp_path, "palette_1", history=history, calibrated=False)
    assert any("too few levels for them: wide" in one for one in artifact.manifest.changed)


def test_blocks_of_weights_have_their_own_scale(net, tmp_path):
    _, request, _ = net
    artifact = compiled(request, tmp_path, "weight_only_wi4_afp32", block_size=32, calibrated=False)
    assert (30, 5, 1) in {value.shape for value in initializers(artifact).values()} or (30, 144) in {
        value.shape for name, value in initializers(artifact).items() if "scale" in name
    }


def test_attention_of_a_transformer_stays_float(tmp_path):
    torch.manual_seed(7)
    tokens = torch.arange(8).reshape(1, 8)
    request, inputs, outputs = request_for(tmp_path, Transformer(), tokens, TO, "static_wi8_ai8")
    artifact = OnnxRuntime().compile(request, tmp_path / "artifact")
    session = onnxruntime.InferenceSession(str(artifact.main), providers=["CPUExecutionProvider"])
    found = session.run(None, inputs)[0]
    wanted = outputs["out_0"]
    assert (found * wanted).sum() / np.sqrt((found**2).sum() * (wanted**2).sum()) > 0.999


def test_names_of_an_onnx_file_stand_for_module_paths(net, tmp_path):
    rng = np.random.default_rng(0)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["data", "first.weight"], ["hidden"], "one"),
            onnx.helper.make_node("MatMul", ["hidden", "onnx::MatMul_7"], ["scores"], "/second/MatMul"),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("data", 1, [1, 32])],
        [onnx.helper.make_tensor_value_info("scores", 1, [1, 32])],
        [
            onnx.numpy_helper.from_array(rng.standard_normal((32, 32)).astype(np.float32), name)
            for name in ("first.weight", "onnx::MatMul_7")
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "net.onnx"))
    spec = replace(net[1].inputs[0], name="data", shape=(1, 32))
    request = replace(
        net[1],
        program=tmp_path / "net.onnx",
        inputs=(spec,),
        outputs=(replace(spec, name="scores"),),
        source="net.onnx",
    )
    overrides = {"first": "float32", "second": "weight_only_wi8_afp32"}
    artifact = compiled(request, tmp_path, "palette_4", overrides=overrides, calibrated=False)
    kinds = {(value.dtype.name, value.shape) for value in initializers(artifact).values()}
    assert {("float32", (32, 32)), ("int8", (32, 32))} <= kinds


def test_palettes_hold_the_values_that_weights_have():
    rng = np.random.default_rng(1)
    values = np.array([-1.5, -0.25, 0.5, 2.0])
    rows = values[rng.integers(0, 4, (8, 500))]
    book = levels.palette(rows, 2)
    assert np.abs(book.values(book.codes(rows)) - rows).max() < 5e-3


def test_rounding_for_data_moves_the_results_less_than_the_nearest_codes():
    rng = np.random.default_rng(2)
    data = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 40)) + 0.1 * rng.standard_normal((400, 40))
    rows = rng.standard_normal((12, 40))
    book = levels.even(rows, 7, block=8, clip=True)
    found = levels.rounded_codes(rows, book, data.T @ data / len(data))
    error = [((data @ (book.values(codes) - rows).T) ** 2).mean() for codes in (found, book.codes(rows))]
    assert error[0] < error[1]


def test_the_mobile_format_refuses_weights_that_it_would_unpack_at_each_run():
    to = target("onnxruntime", format="ort")
    lowering = Lowering(Quantize("weight_only_wi8_afp32"), overrides={"head": "palette_4"})
    found = OnnxRuntime().unsupported("pt2", (), lowering, to)
    assert [issue.what for issue in found] == ["scheme palette_4"]
    assert "format: onnx" in found[0].hint


def test_the_mobile_format_of_this_processor_has_integer_kernels(net, tmp_path):
    _, request, _ = net
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    to = target("onnxruntime", arch=arch, format="ort")
    artifact = compiled(replace(request, target=to), tmp_path, "static_wi8_ai8")
    assert b"QLinearConv" in artifact.main.read_bytes()
