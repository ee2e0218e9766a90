"""Whole networks: exported by torch, or made by hand with the forms that exporters of other frameworks write."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.frontends._onnx_import import import_onnx, inputs_needed_constant, load_checked

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  # only where onnx is there
from torch import nn  # noqa: E402  # only where torch is there
from torch.nn import functional as F  # noqa: E402, N812  # its usual name

TOLERANCE = 1e-5
FLOAT = TensorProto.FLOAT


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        x = self.act(self.norm(self.stem(image)))
        x = F.hardswish(F.max_pool2d(F.pad(self.depthwise(x), (1, 1, 1, 1), mode="reflect"), 3, 2, 1))
        return F.softmax(self.head(x.amax((2, 3))), -1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.feed(self.norm(x))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(6, 7, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


class UNetBits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Any) -> Any:
        low = self.down(x)
        up = self.norm(self.up(low))
        nearest = F.interpolate(low, scale_factor=2.0, mode="nearest")
        linear = F.interpolate(low, size=x.shape[2:], mode="bilinear", align_corners=False)
        cubic = F.interpolate(low, size=x.shape[2:], mode="bicubic", align_corners=True)
        return torch.cat([up, nearest, linear, cubic, x], 1)


class Audio(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv1d(1, 4, 9, stride=4), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 8, 3))

    def forward(self, samples: Any) -> tuple[Any, Any]:
        x = self.convs(samples)
        return F.avg_pool1d(x, 3), x.mean(-1)


def settled(module: Any) -> Any:
    """With statistics that are not the initial ones, or a wrong batch normalization would pass."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module.eval()


def exported_onnx(module: Any, args: tuple[Any, ...]) -> Any:
    with warnings.catch_warnings():
        # torch's exporter warns of its own deprecations.
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, args, dynamo=True, external_data=False, verbose=False).model_proto


@functools.cache
def conv_net() -> Any:
    return exported_onnx(settled(ConvNet()), (torch.zeros(2, 3, 32, 32),))


def reference(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def flat(result: Any) -> list[np.ndarray]:
    return [t.detach().numpy() for t in (result if isinstance(result, tuple) else (result,))]


def check(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    """Import, compare with ONNX Runtime, export, compare again; the import."""
    imported = import_onnx(model)
    assert imported.input_names == tuple(inputs)
    expected = reference(model, inputs)
    args = tuple(torch.from_numpy(inputs[name]) for name in imported.input_names)
    with warnings.catch_warnings():
        # torch warns of any nn.LSTM or nn.GRU that it keeps a list of its own weights.
        warnings.filterwarnings("ignore", message="The tensor attributes .*_flat_weights")
        exported = torch.export.export(imported.module, args, strict=False)
    for module in (imported.module, exported.module()):
        with torch.no_grad():
            results = flat(module(*args))
        assert len(results) == len(expected) == len(imported.output_names)
        for result, wanted in zip(results, expected, strict=True):
            assert result.dtype == wanted.dtype
            np.testing.assert_allclose(result, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    return imported


def made(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], weights: dict[str, Any], opset: int = 13) -> Any:
    """A model of `nodes`; inputs are arrays or shapes of float32."""
    foreign = sorted({node.domain for node in nodes} - {""})
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            if isinstance(a, np.ndarray)
            else helper.make_tensor_value_info(n, FLOAT, a)
            for n, a in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 2) for domain in foreign)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model if foreign else onnx.shape_inference.infer_shapes(model)


def constant(name: str, value: Any) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (ConvNet(), {"image": noise(2, 3, 32, 32)}),
        (Block(), {"tokens": np.arange(14).reshape(2, 7) % 30}),
        (Recurrent("LSTM"), {"x": noise(3, 5, 6)}),
        (Recurrent("GRU"), {"x": noise(3, 5, 6)}),
        (UNetBits(), {"x": noise(1, 2, 16, 16)}),
        (Audio(), {"samples": noise(2, 1, 200)}),
    ],
    ids=["conv-net", "transformer-block", "lstm", "gru", "u-net", "audio"],
)
def test_a_network_that_torch_exported_comes_back_equal(module: Any, inputs: dict[str, np.ndarray]) -> None:
    module = settled(module)
    args = tuple(torch.from_numpy(value) for value in inputs.values())
    model = exported_onnx(module, args)
    imported = check(model, inputs)
    with torch.no_grad():
        for result, wanted in zip(flat(imported.module(*args)), flat(module(*args)), strict=True):
            np.testing.assert_allclose(result, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_layers_come_back_as_modules_that_passes_can_find() -> None:
    imported = import_onnx(conv_net())
    kinds = [type(layer).__name__ for layer in imported.module.children()]
    assert {"Conv2d", "PReLU", "Linear"} <= set(kinds)
    depthwise = [layer for layer in imported.module.children() if isinstance(layer, nn.Conv2d) and layer.groups == 8]
    assert depthwise[0].weight.shape == (8, 1, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_recurrent_layer_comes_back_as_one_module_not_unrolled(kind: str) -> None:
    imported = import_onnx(exported_onnx(settled(Recurrent(kind)), (torch.zeros(3, 12, 6),)))
    layers = [layer for layer in imported.module.children() if isinstance(layer, getattr(nn, kind))]
    assert len(layers) == 2
    assert len(imported.module.graph.nodes) < 40


def test_tokens_come_back_as_an_embedding() -> None:
    imported = import_onnx(exported_onnx(Block().eval(), (torch.zeros(2, 7, dtype=torch.int64),)))
    tables = [layer for layer in imported.module.children() if isinstance(layer, nn.Embedding)]
    assert [table.weight.shape for table in tables] == [(30, 16)]


def test_the_imported_network_can_be_trained() -> None:
    imported = import_onnx(conv_net())
    module = imported.module.train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    images, labels = torch.from_numpy(noise(2, 3, 32, 32)), torch.tensor([0, 1])
    losses = []
    for _ in range(5):
        loss = F.nll_loss(torch.log(module(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_imported_network_takes_another_batch_than_it_was_written_for() -> None:
    weight = noise(4, 12)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w"], ["y"], name="fc", transB=1),
    ]
    imported = import_onnx(made(nodes, {"x": (1, 3, 4)}, ["y"], {"w": weight, "shape": np.array([1, 12])}))
    assert imported.module(torch.zeros(5, 3, 4)).shape == (5, 4)


def test_weights_kept_as_constant_nodes_become_modules() -> None:
    nodes = [
        constant("w", noise(4, 3, 3, 3)),
        constant("b", noise(4, seed=1)),
        helper.make_node(
            "Conv", ["x", "w", "b"], ["c"], name="/features/0/Conv", auto_pad="SAME_UPPER", strides=[2, 2]
        ),
        constant("w2", noise(4, 6)),
        helper.make_node("GlobalMaxPool", ["c"], ["g"]),
        constant("axes", np.array([2, 3])),
        helper.make_node("Squeeze", ["g", "axes"], ["s"]),
        helper.make_node("MatMul", ["s", "w2"], ["m"], name="/classifier/MatMul"),
        constant("b2", noise(6, seed=2)),
        helper.make_node("Add", ["m", "b2"], ["y"]),
    ]
    x = noise(1, 3, 9, 9)
    imported = check(made(nodes, {"x": x}, ["y"], {}), {"x": x})
    assert isinstance(imported.module.features_0_Conv, nn.Conv2d)
    assert imported.module.classifier_MatMul.bias.shape == (6,)


def test_shape_arithmetic_folds_away() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Slice", ["flat", "starts", "ends", "axes", "steps"], ["y"]),
    ]
    weights = {
        "zero": np.array(0),
        "first": np.array([0]),
        "minus": np.array([-1]),
        "starts": np.array([-1]),
        "ends": np.array([-(2**62)]),
        "axes": np.array([1]),
        "steps": np.array([-2]),
    }
    x = noise(2, 3, 5)
    imported = check(made(nodes, {"x": x}, ["y"], weights), {"x": x})
    assert {node.op for node in imported.module.graph.nodes} <= {"placeholder", "get_attr", "call_function", "output"}
    assert len([node for node in imported.module.graph.nodes if node.op == "call_function"]) == 2


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("before_reset", [0, 1])
def test_recurrent_nodes_of_every_direction(kind: str, direction: str, before_reset: int) -> None:
    gates, count = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if direction == "bidirectional" else 1
    extra = {"linear_before_reset": before_reset} if kind == "GRU" else {}
    if kind != "GRU" and before_reset:
        extra = {"clip": 0.3}
    states = ["h"] if kind != "LSTM" else ["h", "c"]
    outputs = ["y", "yh"] if kind != "LSTM" else ["y", "yh", "yc"]
    node = helper.make_node(
        kind, ["x", "w", "r", "b", "", *states], outputs, hidden_size=5, direction=direction, **extra
    )
    weights = {
        "w": noise(count, gates * 5, 4),
        "r": noise(count, gates * 5, 5, seed=1),
        "b": noise(count, gates * 10, seed=2),
        **{state: noise(count, 2, 5, seed=3 + i) for i, state in enumerate(states)},
    }
    x = noise(6, 2, 4, seed=9)
    check(made([node], {"x": x}, outputs, weights, opset=14), {"x": x})


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("scale", [2.0, 0.6])
def test_resize_in_every_coordinate_system(mode: str, coordinates: str, scale: float) -> None:
    node = helper.make_node(
        "Resize",
        ["x", "", "scales"],
        ["y"],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode="floor",
    )
    x = noise(1, 2, 7, 5)
    check(made([node], {"x": x}, ["y"], {"scales": np.array([1, 1, scale, scale], np.float32)}), {"x": x})


@pytest.mark.parametrize(
    ("op", "attributes", "weights", "opset"),
    [
        ("ReduceMean", {"axes": [1, 2], "keepdims": 0}, {}, 13),
        ("ReduceMean", {"keepdims": 0}, {"axes": np.array([1, 2])}, 18),
        ("Pad", {"mode": "reflect"}, {"pads": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, 13),
        ("Pad", {"mode": "edge"}, {"pads": np.array([0, 1, 2, 1, 0, 0, 1, 3])}, 13),
        ("Pad", {"mode": "wrap"}, {"pads": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, 19),
        ("Pad", {}, {"pads": np.array([0, 0, 2, -1, 0, 0, 1, 3]), "value": np.array(1.5, np.float32)}, 13),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 0, 0, 2], "ceil_mode": 1, "strides": [2, 2]}, {}, 13),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, {}, 13),
        ("MaxPool", {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, {}, 13),
        ("ConvTranspose", {"strides": [2, 2], "output_shape": [16, 15]}, {"w": noise(4, 3, 3, 3)}, 13),
        ("ConvTranspose", {"strides": [3, 2], "auto_pad": "SAME_UPPER"}, {"w": noise(4, 3, 4, 3)}, 13),
        ("ConvTranspose", {"strides": [2, 2], "pads": [0, 1, 2, 0]}, {"w": noise(4, 3, 4, 3)}, 13),
        ("Clip", {}, {"low": np.array(-0.5, np.float32), "high": np.array(0.5, np.float32)}, 13),
        ("LRN", {"size": 3}, {}, 13),
        ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, {}, 13),
        ("InstanceNormalization", {}, {"s": noise(4), "b": noise(4, seed=1)}, 13),
        ("Split", {"axis": 2, "num_outputs": 2}, {}, 18),
        ("Softmax", {"axis": 1}, {}, 13),
    ],
)
def test_one_operator_as_onnx_runtime_computes_it(op: str, attributes: Any, weights: Any, opset: int) -> None:
    x = noise(2, 4, 8, 7)
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, ["x", *weights], outputs, **attributes)
    check(made([node], {"x": x}, outputs, weights, opset), {"x": x})


def test_quantized_weights_fold_into_float_ones() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("Conv", ["xf", "wf"], ["y"], name="conv"),
    ]
    weights = {
        "xs": np.array(0.02, np.float32),
        "xz": np.array(128, np.uint8),
        "w": np.random.default_rng(0).integers(-127, 127, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.abs(noise(4)) * 0.01 + 0.01,
        "wz": np.zeros(4, np.int8),
    }
    x = noise(1, 3, 6, 6)
    imported = check(made(nodes, {"x": x}, ["y"], weights), {"x": x})
    assert imported.module.conv.weight.dtype == torch.float32


def test_four_bit_weights_in_blocks_are_read() -> None:
    values = np.random.default_rng(0).integers(-8, 8, (8, 6))
    weight = helper.make_tensor("w", TensorProto.INT4, values.shape, values.reshape(-1))
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=0, block_size=4),
        helper.make_node("MatMul", ["x", "f"], ["y"], name="fc"),
    ]
    x = noise(3, 8)
    model = made(nodes, {"x": x}, ["y"], {"s": np.abs(noise(2, 6)) + 0.1}, opset=21)
    model.ir_version = 10
    model.graph.initializer.append(weight)
    imported = check(model, {"x": x})
    assert isinstance(imported.module.fc, nn.Linear)


def test_eight_bit_floats_as_weights_are_read() -> None:
    values = noise(4)
    weight = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, values.shape, values)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    model = made(nodes, {"x": (4,)}, ["y"], {"s": np.array(2, np.float32)}, opset=19)
    model.graph.initializer.append(weight)
    result = import_onnx(model).module(torch.ones(4))
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": np.ones(4, np.float32)})[0]
    np.testing.assert_array_equal(result.numpy(), expected)


def test_output_padding_as_wide_as_the_stride_holds_the_bias() -> None:
    x, w, b = noise(1, 4, 5, 5), noise(4, 3, 3, 3), noise(3)
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2], output_padding=[2, 3])
    result = import_onnx(made([node], {"x": x}, ["y"], {"w": w, "b": b})).module(torch.from_numpy(x))
    inner = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(b), stride=2)
    assert result.shape == (1, 3, 13, 14)
    torch.testing.assert_close(result[..., :11, :11], inner)
    torch.testing.assert_close(result[0, :, 11:, :], torch.from_numpy(b).reshape(3, 1, 1).expand(3, 2, 14))


def test_neighbouring_channels_of_an_even_count() -> None:
    # As many items as channels: the evaluator takes one for the other.
    x = noise(5, 5, 3, 3)
    model = made([helper.make_node("LRN", ["x"], ["y"], size=4, alpha=0.5)], {"x": x}, ["y"], {})
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(import_onnx(model).module(torch.from_numpy(x)).numpy(), expected, rtol=1e-5)


def test_names_that_python_or_torch_use_themselves_do_no_harm() -> None:
    nodes = [
        helper.make_node("Conv", ["self", "class"], ["torch"], name="forward"),
        helper.make_node("Conv", ["torch", "2/w"], ["train"], name="lambda"),
        helper.make_node("Add", ["train", "operator"], ["out"], name="graph"),
    ]
    x = noise(1, 2, 3, 3)
    weights = {"class": noise(2, 2, 1, 1), "2/w": noise(2, 2, 1, 1, seed=1)}
    check(made(nodes, {"self": x, "operator": x}, ["out"], weights), {"self": x, "operator": x})


def test_the_module_can_be_copied_pickled_and_traced_again() -> None:
    module = import_onnx(conv_net()).module
    x = torch.from_numpy(noise(2, 3, 32, 32))
    with torch.no_grad():
        wanted = module(x)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.fx.symbolic_trace(module)):
            torch.testing.assert_close(again(x), wanted)


def test_a_constant_added_behind_a_convolution_is_its_bias() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Add", ["bias", "c"], ["y"]),
    ]
    x = noise(1, 2, 5, 5)
    weights = {"w": noise(3, 2, 3, 3), "bias": noise(3, 1, 1, seed=1)}
    imported = check(made(nodes, {"x": x}, ["y"], weights), {"x": x})
    assert imported.module.conv.bias.shape == (3,)


def test_a_constant_added_to_a_value_read_twice_stays_apart() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Mul", ["a", "m"], ["y"]),
    ]
    x = noise(2, 3)
    imported = check(made(nodes, {"x": x}, ["y"], {"w": noise(3, 4), "b": noise(4)}), {"x": x})
    assert imported.module.fc.bias is None


def test_a_constant_added_behind_an_alias_of_a_value_read_twice_stays_apart() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Identity", ["m"], ["one"]),
        helper.make_node("Identity", ["m"], ["two"]),
        helper.make_node("Add", ["one", "b"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["y"]),
    ]
    x = noise(2, 3)
    check(made(nodes, {"x": x}, ["y"], {"w": noise(3, 4), "b": noise(4)}), {"x": x})


def test_normalizations_with_stored_weights_are_modules() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["a"], name="bn", epsilon=0.01),
        helper.make_node("InstanceNormalization", ["a", "s", "b"], ["i"], name="inorm"),
        helper.make_node("LayerNormalization", ["i", "ls"], ["l"], name="ln", axis=-2),
        helper.make_node("GroupNormalization", ["l", "s", "b"], ["y"], name="gn", num_groups=2),
    ]
    x = noise(2, 4, 3, 5)
    weights = {
        "s": noise(4), "b": noise(4, seed=1), "m": noise(4, seed=2), "v": np.abs(noise(4, seed=3)), "ls": noise(3, 5)
    }  # fmt: skip
    imported = check(made(nodes, {"x": x}, ["y"], weights, opset=21), {"x": x})
    kinds = {name: type(layer).__name__ for name, layer in imported.module.named_children()}
    assert kinds == {"bn": "BatchNorm2d", "inorm": "InstanceNorm2d", "ln": "LayerNorm", "gn": "GroupNorm"}


def test_a_branch_with_a_known_condition_is_taken() -> None:
    def branch(op: str) -> Any:
        out = helper.make_empty_tensor_value_info(f"{op}_out")
        return helper.make_graph([helper.make_node(op, ["x"], [f"{op}_out"])], op, [], [out])

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Size", ["shape"], ["rank"]),
        helper.make_node("Equal", ["rank", "two"], ["flat"]),
        helper.make_node("If", ["flat"], ["y"], then_branch=branch("Exp"), else_branch=branch("Neg")),
    ]
    x = noise(2, 3)
    check(made(nodes, {"x": x}, ["y"], {"two": np.array(2)}), {"x": x})


def test_a_function_of_the_model_itself_is_read() -> None:
    body = helper.make_function(
        "mine",
        "Scaled",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"], value_float=3.0),
            helper.make_node("LeakyRelu", ["a"], ["r"]),
            helper.make_node("Mul", ["r", "k"], ["b"]),
        ],
        [helper.make_opsetid("", 18)],
        ["alpha"],
    )
    body.node[1].attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    )
    model = made([helper.make_node("Scaled", ["x"], ["y"], domain="mine", alpha=0.3)], {"x": (2, 3)}, ["y"], {}, 18)
    model.functions.append(body)
    check(model, {"x": noise(2, 3)})


def test_an_older_opset_is_converted() -> None:
    nodes = [helper.make_node("Squeeze", ["x"], ["s"], axes=[1]), helper.make_node("Softmax", ["s"], ["y"], axis=1)]
    x = noise(2, 1, 5)
    model = made(nodes, {"x": x}, ["y"], {}, opset=11)
    imported = import_onnx(model)
    np.testing.assert_allclose(flat(imported.module(torch.from_numpy(x)))[0], reference(model, {"x": x})[0], rtol=1e-5)


def test_a_symbolic_size_wants_a_number_and_takes_it() -> None:
    model = made([helper.make_node("Relu", ["x"], ["y"])], {"x": ("batch", 3)}, ["y"], {})
    with pytest.raises(UnsupportedModelError, match=r"input 'x' .* \[batch, 3\]"):
        import_onnx(model)
    assert import_onnx(model, shapes={"x": (4, 3)}).input_shapes == {"x": (4, 3)}
    with pytest.raises(ConfigError, match="does not fit"):
        import_onnx(model, shapes={"x": (4, 5)})
    with pytest.raises(ConfigError, match="no input 'z'"):
        import_onnx(model, shapes={"z": (4, 3)})


def test_an_input_that_decides_a_shape_can_be_given_as_a_constant() -> None:
    shape = np.array([3, 2])
    model = made([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": (2, 3), "s": shape}, ["y"], {})
    with pytest.raises(UnsupportedModelError, match="operand 's' must be a constant"):
        import_onnx(model)
    assert inputs_needed_constant(model) == {"s"}
    imported = import_onnx(model, constants={"s": shape})
    assert imported.input_names == ("x",)
    assert imported.module(torch.zeros(2, 3)).shape == (3, 2)


def test_every_operator_that_cannot_be_imported_is_named_at_once() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"], name="find"),
        helper.make_node("Cast", ["where"], ["f"], to=FLOAT),
        helper.make_node("Fancy", ["f"], ["g"], name="special", domain="acme.ops"),
        helper.make_node("RandomNormalLike", ["x"], ["h"], name="noise"),
        helper.make_node("Relu", ["g"], ["y"], name="fine"),
        helper.make_node("Add", ["h", "x"], ["z"], name="fine_too"),
    ]
    model = made(nodes, {"x": (2, 3)}, ["y", "z"], {})
    with pytest.raises(UnsupportedModelError) as caught:
        import_onnx(model)
    text = caught.value.message
    assert "3 operators" in text
    assert "ai.onnx.NonZero (opset 13), node 'find'" in text
    assert "acme.ops.Fancy (opset 2), node 'special'" in text
    assert "ai.onnx.RandomNormalLike (opset 13), node 'noise'" in text
    assert "fine" not in text


def test_a_loop_is_refused_by_name() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Neg", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), helper.make_tensor_value_info("v2", FLOAT, [2])],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], name="repeat", body=body)
    with pytest.raises(UnsupportedModelError, match=r"Loop \(opset 13\), node 'repeat'"):
        import_onnx(made([node], {"x": (2,)}, ["y"], {"n": np.array(3)}))


def saved(folder: Path, *, external: bool = False) -> Path:
    model = made([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, 64)}, ["y"], {"w": noise(64, 32)}, opset=18)
    path = folder / "net.onnx"
    onnx.save_model(model, str(path), save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def test_a_file_and_its_weights_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, external=True)
    model, files = load_checked(path)
    assert files == (tmp_path / "weights.bin",)
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), noise(64, 32))
    assert import_onnx(model).module(torch.zeros(1, 64)).shape == (1, 32)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, external=True)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConfigError, match=r"weight 'w' in the file 'weights\.bin', which is not there"):
        load_checked(path)


def test_weights_cut_off_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, external=True)
    os.truncate(tmp_path / "weights.bin", 1000)
    with pytest.raises(ConfigError, match=r"weights\.bin is cut off: the weight 'w'"):
        load_checked(path)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "..\\secret.bin", ""])
def test_weights_outside_the_folder_are_not_followed(tmp_path: Path, location: str) -> None:
    path = saved(tmp_path, external=True)
    (tmp_path.parent / "secret.bin").write_bytes(bytes(8192))
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="not inside the model's own folder"):
        load_checked(path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = saved(folder, external=True)
    (folder / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ConfigError, match="not inside the model's own folder"):
        load_checked(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_file_cut_off_is_called_so(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ConfigError, match="cut off"):
        load_checked(path)


@pytest.mark.parametrize(
    "content", [b"just some text, not a model", b"PK\x03\x04" + bytes(200), b"\x89PNG\r\n" + bytes(50)]
)
def test_a_file_that_is_no_onnx_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not an ONNX file"):
        load_checked(path)


def test_a_missing_and_an_empty_file_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ConfigError, match="There is no file"):
        load_checked(path)
    path.touch()
    with pytest.raises(ConfigError, match="is empty"):
        load_checked(path)


def test_an_opset_too_new_is_named_with_what_is_known(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = onnx.load(str(path))
    model.opset_import[0].version = 999
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModelError, match=rf"opset 999; .* knows up to {onnx.defs.onnx_opset_version()}"):
        load_checked(path)


def test_a_malformed_graph_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = onnx.load(str(path))
    model.graph.node[0].input[1] = "nowhere"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="not a valid ONNX model"):
        load_checked(path)
