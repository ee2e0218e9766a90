from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.errors import ConfigError
from edgekit.core.grid import trained_in
from edgekit.core.model import Model, PassRecord, TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.passes._graph import layers_in
from edgekit.passes._rounding import grouped, rows_of
from edgekit.passes.base import PassContext
from edgekit.passes.learned_rounding import LearnedRounding, LearnedRoundingOptions

OPTIONS = {"steps": 60, "examples": 16, "small_bits": 4}


class Noise:
    """Examples with data that go together, as a network's do."""

    metric, direction = "none", "larger"

    def __init__(self, *shape, count=16, spoil=None):
        generator = np.random.default_rng(5)
        base = generator.standard_normal((count, 3, *shape)).astype(np.float32)
        self.values = base.cumsum(axis=1)[:, -1] + np.float32(0.5)
        if spoil is not None:
            self.values[spoil].flat[0] = np.nan

    def examples(self, split):
        if split == "calibration":
            for start in range(0, len(self.values), 4):
                yield {"x": self.values[start : start + 4]}

    def score(self, outputs, split):
        return {"none": 0.0}


def model_of(module, *shape):
    torch.manual_seed(1)
    x = torch.rand(shape).numpy()
    program = TorchProgram(module.eval(), ("x",), ("output",), False, {"x": x})
    specs = (TensorSpec("x", shape),), (TensorSpec("output", program.run({"x": x})["output"].shape),)
    return Model("net", program, *specs, {"x": x}, program.digest(), "model.py:build")


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 6),
    )


def rounded(model, task, tmp_path, **options):
    return LearnedRounding(LearnedRoundingOptions(**{**OPTIONS, **options})).apply(model, task, PassContext(tmp_path))


def error(model, other, task):
    inputs = task.values
    size = model.inputs[0].batch_size
    pairs = [
        (
            model.program.run({"x": inputs[n : n + size]})["output"],
            other.program.run({"x": inputs[n : n + size]})["output"],
        )
        for n in range(0, len(inputs), size)
    ]
    return float(np.mean([np.mean((one - two) ** 2) for one, two in pairs]))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_every_weight_lies_exactly_on_its_grid(tmp_path, bits):
    model, task = model_of(net(), 2, 3, 6, 6), Noise(3, 6, 6)
    before = model.program.weights_digest()
    result = rounded(model, task, tmp_path, bits=bits, small_bits=bits, steps=10)
    trained = trained_in([PassRecord("learned_rounding", structure=result.structure)])
    assert set(trained.grids) == {"0", "2", "4", "7"}
    for path, grid in trained.grids.items():
        weight = result.model.program.module.get_submodule(path).weight.detach()
        scale = torch.tensor(grid.scale).reshape(-1, *[1] * (weight.dim() - 1))
        assert grid.bits == bits
        assert len(grid.levels) <= 2**bits
        allowed = scale[..., None] * torch.tensor(grid.levels)
        assert bool((weight[..., None] == allowed).any(dim=-1).all())
    assert model.program.weights_digest() == before, "the model passed in was changed"


def test_learning_moves_the_outputs_less_than_rounding_to_nearest(tmp_path):
    model, task = model_of(net(), 2, 3, 6, 6), Noise(3, 6, 6)
    learned = rounded(model, task, tmp_path, bits=3, small_bits=3, steps=300).model
    nearest = rounded(model, task, tmp_path, bits=3, small_bits=3, steps=1, learning_rate=1e-9).model
    assert error(model, learned, task) < 0.8 * error(model, nearest, task)


def test_a_corrected_bias_keeps_the_mean_of_each_output(tmp_path):
    model, task = model_of(nn.Sequential(nn.Linear(6, 4)), 4, 6), Noise(6)
    result = rounded(model, task, tmp_path, bits=2, small_bits=2, steps=1)
    plain = rounded(model, task, tmp_path, bits=2, small_bits=2, steps=1, correct_bias=False)
    x = torch.from_numpy(task.values)
    with torch.no_grad():
        wanted, found, left = (m.program.module(x).mean(dim=0) for m in (model, result.model, plain.model))
    torch.testing.assert_close(found, wanted)
    assert float((left - wanted).abs().max()) > 1e-3


def test_the_same_seed_gives_the_same_weights(tmp_path):
    model, task = model_of(net(), 1, 3, 6, 6), Noise(3, 6, 6)
    digests = {rounded(model, task, tmp_path, steps=20).model.digest for _ in range(2)}
    assert len(digests) == 1


def test_small_layers_keep_more_bits_unless_an_override_says_otherwise(tmp_path):
    model, task = model_of(nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)), 2, 40), Noise(40)
    result = rounded(model, task, tmp_path, small_bits=8, steps=1)
    assert "1 layer at 4 bits" in result.notes
    assert "1 layer at 8 bits" in result.notes
    changed = rounded(model, task, tmp_path, small_bits=8, steps=1, overrides={"*": 8, "2": 3})
    grids = trained_in([PassRecord("learned_rounding", structure=changed.structure)]).grids
    assert {path: grid.bits for path, grid in grids.items()} == {"0": 8, "2": 3}


def test_kept_layers_stay_float_and_are_named(tmp_path):
    model, task = model_of(net(), 1, 3, 6, 6), Noise(3, 6, 6)
    result = rounded(model, task, tmp_path, keep=("0",), steps=1)
    assert "'0' stays float, as `keep` says" in result.notes
    assert torch.equal(result.model.program.module[0].weight, model.program.module[0].weight)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(self.one(self.one(x)))


def test_a_layer_used_twice_stays_float(tmp_path):
    result = rounded(model_of(Shared(), 1, 4), Noise(4), tmp_path, steps=1)
    assert "'one' stays float: its weights are used more than once" in result.notes
    assert set(result.structure["grids"]) == {"two"}


def test_a_model_without_layers_says_so_and_stays(tmp_path):
    model = model_of(nn.Sequential(nn.ReLU()), 1, 4)
    result = rounded(model, Noise(4), tmp_path)
    assert result.modified is False
    assert result.notes == ("no layer has weights to round",)


def test_a_pattern_that_fits_no_layer_offers_the_nearest(tmp_path):
    model = model_of(nn.Sequential(nn.Linear(4, 4)).append(nn.Linear(4, 2)), 1, 4)
    with pytest.raises(ConfigError, match=r"'head' in the options of learned_rounding fits no layer"):
        rounded(model, Noise(4), tmp_path, keep=("head",))


BAD = {
    "no task": (None, "needs examples of the calibration split, and there is no task"),
    "no examples": (Noise(4, count=0), "the task has none"),
    "another shape": (Noise(5), r"give 'x' the shape \(4, 5\); the model takes \(N, 4\)"),
    "not a number": (Noise(4, spoil=6), "calibration example 6 holds values of 'x' that are not finite"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_calibration_data_that_cannot_be_used_are_refused(tmp_path, name):
    task, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        rounded(model_of(nn.Sequential(nn.Linear(4, 2)), 2, 4), task, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits cannot be 5; choices: 8, 4, 3, 2"),
        ({"overrides": {"a": 1}}, "overrides of 'a' cannot be 1"),
        ({"steps": 0}, "steps is at least 1"),
        ({"examples": 0}, "examples is at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LearnedRoundingOptions(**options)


ROWS = {
    "linear": (nn.Linear(6, 4, bias=False), (2, 3, 6)),
    "strided and dilated": (nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=(1, 2), bias=False), (2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), (2, 4, 5, 5)),
    "padding same": (nn.Conv2d(4, 6, (2, 3), padding="same", bias=False), (1, 4, 5, 5)),
    "padding valid": (nn.Conv2d(4, 6, 3, padding="valid", bias=False), (1, 4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", list(ROWS))
def test_rows_times_weights_are_the_layers_results(name):
    layer, shape = ROWS[name]
    model = model_of(nn.Sequential(layer), *shape)
    (found,) = layers_in(model.program)
    x = torch.rand(shape)
    rows = rows_of(found, x, tuple(layer.weight.shape))
    with torch.no_grad():
        results = torch.bmm(rows, grouped(layer.weight, found.groups).transpose(1, 2))
        wanted = layer(x)
    results = results.permute(1, 0, 2).reshape(rows.shape[1], -1)
    wanted = (
        wanted.reshape(-1, wanted.shape[-1])
        if found.kind == "linear"
        else wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    )
    torch.testing.assert_close(results, wanted)
