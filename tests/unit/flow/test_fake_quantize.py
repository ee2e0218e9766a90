from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import ExportedProgramOnly, TorchProgram
from edgekit.flow.fake_quantize import BITS, STATIC, Layer, Subject, rounded_weight, stored_bytes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.place = nn.Parameter(torch.randn(1, 4, 6, 6))
        self.tied = nn.Linear(144, 8)
        self.again = nn.Linear(144, 8)
        self.again.weight = self.tied.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        flat = (self.norm(self.conv(x)).relu() + self.place).flatten(1)
        both = torch.stack([self.tied(flat), self.again(flat)], dim=1)
        return self.head(self.attention(both, both, both)[0].mean(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8).numpy()
    program = TorchProgram(Net().eval(), ("x",), ("output",), False, {"x": x})
    specs = (TensorSpec("x", (1, 1, 8, 8)),), (TensorSpec("output", (1, 3)),)
    return Model("net", program, *specs, {"x": x}, "digest", "net.py:build")


@pytest.fixture(scope="module")
def examples():
    return {"x": np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)}


def outputs(subject, examples, batch=8):
    return np.concatenate([part["output"] for part in subject.outputs(examples, batch)])


def test_layers_have_the_paths_that_overrides_name_and_others_are_named_with_the_reason(model):
    subject = Subject(model)
    assert [layer.path for layer in subject.layers] == [
        "place", "conv", "tied", "attention.in_proj_weight", "attention.out_proj", "head",
    ]  # fmt: skip
    assert [layer.path for layer in subject.layers if not layer.module] == ["place", "attention.in_proj_weight"]
    assert subject.skipped == {"again": "shares its weights with tied", "norm": "has vectors only, which stay in float"}


def test_activations_are_seen_of_every_layer_however_it_is_called(model, examples):
    subject = Subject(model)
    with subject.observed() as found:
        outputs(subject, examples)
    assert {place[0] for place in found} == {layer.path for layer in subject.layers}
    # Two layers with one weight have ranges of their own; so has every call of a layer.
    assert {place[1] for place in found if place[0] == "tied"} == {0, 1}
    low, high = found["conv", 0, 0].range("minmax")
    assert (low, high) == (examples["x"].min(), examples["x"].max())


@pytest.mark.parametrize("precision", BITS)
def test_a_layer_is_quantized_while_asked_for_and_then_is_what_it_was(model, examples, precision):
    subject = Subject(model)
    reference = outputs(subject, examples)
    with subject.observed() as histograms:
        outputs(subject, examples)
    ranges = {place: found.range("mse") for place, found in histograms.items()}
    for layer in subject.layers:
        with subject.quantized(layer, precision, ranges):
            changed = outputs(subject, examples)
        noise = np.square(changed - reference).sum() / np.square(reference).sum()
        assert 0 < noise < (1e-2 if BITS[precision] >= 8 else 2), (layer, noise)
    assert np.array_equal(outputs(subject, examples), reference)


def test_a_static_precision_rounds_activations_beside_the_weights(model, examples):
    subject = Subject(model)
    conv = next(layer for layer in subject.layers if layer.path == "conv")
    with subject.quantized(conv, "weight_only_wi8_afp32", {}):
        weights = outputs(subject, examples)
    with subject.quantized(conv, STATIC, {}):
        unknown = outputs(subject, examples)
    with subject.quantized(conv, STATIC, {("conv", 0, 0): (-0.1, 0.1)}):
        clipped = outputs(subject, examples)
    assert np.array_equal(weights, unknown)
    assert np.abs(clipped - weights).max() > 0.01


def test_a_program_of_a_file_gives_what_the_module_gives(model, examples, tmp_path):
    model.program.save(tmp_path / "net.pt2")
    program = ExportedProgramOnly(torch.export.load(tmp_path / "net.pt2"), ("x",), ("output",))
    few = {"x": examples["x"][:3]}
    of_file = Subject(Model("net", program, model.inputs, model.outputs, {}, "digest", "net.pt2"))
    of_module = Subject(model)
    assert of_file.batches(few) == 1
    for one, other in zip(of_file.layers, of_module.layers, strict=True):
        assert one == other
        with of_file.quantized(one, "palette_2", {}), of_module.quantized(other, "palette_2", {}):
            assert np.allclose(outputs(of_file, few, 1), outputs(of_module, few, 1), atol=1e-5)


class Whole(nn.Module):
    def forward(self, x):
        return x - x.mean()


def test_many_examples_run_at_once_only_where_that_changes_nothing(model, examples):
    assert Subject(model).batches(examples) > 1
    whole = (TensorSpec("output", (1, 1, 8, 8)),)
    program = TorchProgram(Whole().eval(), ("x",), ("output",), False, model.example_inputs)
    assert Subject(Model("whole", program, model.inputs, whole, {}, "d", "s")).batches(examples) == 1


def test_four_bits_are_clipped_where_an_outlier_would_waste_them():
    weight = np.random.default_rng(1).normal(size=(2, 400)).astype(np.float32)
    weight[0, 0] = 12.0
    got = rounded_weight(weight, 0, "weight_only_wi4_afp32")
    step = np.abs(weight).max(axis=1, keepdims=True) / 7
    plain = np.clip(np.round(weight / step), -7, 7) * step
    assert np.square(got - weight).sum() < 0.9 * np.square(plain - weight).sum()
    assert all(len(np.unique(np.round(row, 5))) <= 15 for row in got)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_has_so_many_values_and_keeps_those_that_are_there_already(bits):
    values = np.linspace(-1, 1, 2**bits).astype(np.float32)
    weight = np.random.default_rng(2).choice(values, size=(8, 16))
    assert np.allclose(rounded_weight(weight, 0, f"palette_{bits}"), weight, atol=1e-6)
    noisy = weight + np.random.default_rng(3).normal(0, 0.2, weight.shape).astype(np.float32)
    assert len(np.unique(rounded_weight(noisy, 0, f"palette_{bits}"))) <= 2**bits


def test_channels_are_those_of_the_axis_and_a_channel_of_zeros_stays_zero():
    weight = np.array([[100.0, 0.0, 0.001], [50.0, 0.0, -0.002]], np.float32)
    assert np.allclose(rounded_weight(weight, 1, "weight_only_wi8_afp32"), weight, rtol=0.01)


@pytest.mark.parametrize(
    ("precision", "size"),
    [("float32", 800), ("float16", 400), (STATIC, 240), ("weight_only_wi4_afp32", 140), ("palette_2", 66)],
)
def test_scales_and_palettes_count_in_the_bytes(precision, size):
    assert stored_bytes(Layer("x", 200, 10, 0), precision) == size
