"""Convolutions that lose their neighbourhood."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.errors import ConfigError
from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.core.schema import parse_yaml
from edgekit.flow.recipe import parse_recipe
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.squeeze import Squeeze, SqueezeOptions
from tests.unit.passes.training_kit import Corners, Heard, accuracy, assert_same_bits, model_of, state_of


def net_of(module, *shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).numpy()
    program = TorchProgram(module.eval(), ("x",), ("output",), False, {"x": x})
    out = program.run({"x": x})["output"]
    specs = (TensorSpec("x", shape),), (TensorSpec("output", out.shape),)
    return Model("net", program, *specs, {"x": x}, program.digest(), "model.py:build")


class Images:
    """Unlabelled inputs to fit to."""

    metric = "none"
    direction = "larger"

    def __init__(self, *shape, split="calibration"):
        self.shape, self.split = shape, split

    def examples(self, split):
        if split == self.split:
            generator = np.random.default_rng(3)
            for _ in range(4):
                yield {"x": generator.normal(0.5, 1, self.shape).astype(np.float32)}


def squeezed(model, folder, task=None, **options):
    step = Squeeze(SqueezeOptions(**{"layers": ("*",), **options}))
    result = step.apply(model, task, PassContext(folder, progress=Heard()))
    step.ensures(model, result.model)
    return result


def outputs(model):
    return model.program.run(model.example_inputs)["output"]


SHAPES = [
    (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 8, 9)),
    (nn.Conv2d(4, 6, 5, padding=2, stride=3), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=3, stride=2), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 1), padding=(1, 0), stride=(1, 2)), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"), (2, 4, 9, 8)),
    (nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 9, 8)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 9, 8)),
    (nn.Conv1d(4, 6, 3, padding=1, stride=2), (2, 4, 9)),
    (nn.Conv3d(2, 3, 3, padding=1), (2, 2, 4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), SHAPES)
@pytest.mark.parametrize("fitted", [False, True])
def test_the_output_keeps_its_shape_and_the_weights_are_as_many_times_fewer_as_the_kernel_has_places(
    layer, shape, fitted, tmp_path
):
    model = net_of(nn.Sequential(copy.deepcopy(layer)), *shape)
    result = squeezed(model, tmp_path, Images(*shape) if fitted else None)
    made = result.model.program.module[0]
    assert outputs(result.model).shape == outputs(model).shape
    assert type(made) is type(layer)
    assert made.weight.numel() * layer.weight[0, 0].numel() == layer.weight.numel()
    assert made.groups == layer.groups
    assert (made.bias is None) == (layer.bias is None)
    assert made.weight.is_contiguous()


@pytest.mark.parametrize(("layer", "shape"), SHAPES)
def test_a_kernel_that_only_looks_at_its_middle_is_kept_exactly(layer, shape, tmp_path):
    torch.manual_seed(2)
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        middle = tuple(size // 2 for size in layer.kernel_size)
        kept = torch.randn(layer.weight.shape[:2])
        layer.weight.zero_()
        layer.weight[(slice(None), slice(None), *middle)] = kept
    model = net_of(nn.Sequential(layer, nn.ReLU(inplace=True)), *shape)
    for task in (None, Images(*shape)):
        result = squeezed(model, tmp_path, task)
        np.testing.assert_allclose(outputs(result.model), outputs(model), atol=1e-4)


def test_fitted_weights_are_closer_than_summed_ones_and_an_activation_in_place_does_not_spoil_them(tmp_path):
    torch.manual_seed(0)
    shape = (8, 3, 12, 12)
    model = net_of(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True)), *shape)
    plain = nn.Sequential(model.program.module[0])
    x = next(Images(*shape).examples("calibration"))
    wanted = plain(torch.from_numpy(x["x"])).detach()

    def apart(result):
        with torch.no_grad():
            return float(((result.model.program.module[0](torch.from_numpy(x["x"])) - wanted) ** 2).mean())

    fitted, summed = squeezed(model, tmp_path, Images(*shape)), squeezed(model, tmp_path)
    assert apart(fitted) < 0.5 * apart(summed)
    # numpy's own least squares on the same examples says the same.
    batches = [batch["x"] for batch in Images(*shape).examples("calibration")]
    given = np.concatenate([one.transpose(1, 0, 2, 3).reshape(3, -1) for one in batches], 1)
    target = torch.cat([plain(torch.from_numpy(one)).transpose(0, 1).flatten(1) for one in batches], 1).detach().numpy()
    best = np.linalg.lstsq(np.vstack([given, np.ones(given.shape[1])]).T, target.T, rcond=None)[0]
    made = fitted.model.program.module[0]
    np.testing.assert_allclose(made.weight.detach().flatten(1).numpy(), best[:-1].T, atol=1e-4)
    np.testing.assert_allclose(made.bias.detach().numpy(), best[-1], atol=1e-4)
    rest = target - np.vstack([given, np.ones(given.shape[1])]).T.dot(best).T
    lost = float((rest**2).sum() / ((target - target.mean(1, keepdims=True)) ** 2).sum())
    assert fitted.notes[1] == f"fitted to examples; at worst, in '0', {lost:.0%} of the variance is lost"


def test_the_second_layer_makes_up_for_what_the_first_one_lost(tmp_path):
    torch.manual_seed(0)
    shape = (8, 3, 12, 12)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    model = net_of(module, *shape)
    both = squeezed(model, tmp_path, Images(*shape))
    alone = squeezed(model, tmp_path, Images(*shape), layers=("0",))
    mended = copy.deepcopy(both.model.program.module)
    mended[2].load_state_dict(
        squeezed(model, tmp_path, Images(*shape), layers=("2",)).model.program.module[2].state_dict()
    )
    x = next(Images(*shape).examples("calibration"))

    def apart(program):
        return float(np.mean((program.run(x)["output"] - model.program.run(x)["output"]) ** 2))

    assert alone.structure == {"layers": ["0"]}
    assert apart(both.model.program) < apart(model.program.with_module(mended))


def test_a_layer_that_is_called_twice_is_fitted_to_both(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    result = squeezed(net_of(Twice(), 2, 4, 6, 6), tmp_path, Images(2, 4, 6, 6))
    assert result.modified


def test_the_source_stays_and_the_structure_is_replayed_on_a_fresh_module(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1))
    model = net_of(module, 1, 3, 8, 8)
    fresh, before = copy.deepcopy(module), copy.deepcopy(state_of(model))
    result = squeezed(model, tmp_path, Images(2, 3, 8, 8), layers=("0",))
    assert_same_bits(state_of(model), before)
    assert not module[0]._forward_hooks
    rebuilt = Squeeze(SqueezeOptions(layers=("0",))).replay(fresh, result.structure)
    rebuilt.load_state_dict(result.model.program.module.state_dict(), strict=True)
    assert model.program.with_module(rebuilt.eval()).digest() == result.model.digest


def test_training_afterwards_wins_back_what_was_lost(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 4),
    )
    training = Training(epochs=3, learning_rate=0.01)
    model = model_of(module)
    result = squeezed(model, tmp_path, Corners(), layers=("2",), finetune=training)
    assert accuracy(result.model) > accuracy(model) + 0.3
    assert any("epochs, training loss" in note for note in result.notes)
    with pytest.raises(ConfigError, match="no task to train it for"):
        squeezed(model, tmp_path, None, layers=("2",), finetune=training)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(4, 4, 3), "of another size"),
        (nn.Conv2d(4, 4, 2, padding=1), "of another size"),
        (nn.Conv2d(4, 4, 1), "has one place already"),
    ],
)
def test_a_convolution_that_cannot_be_replaced_stays_with_the_reason(layer, said, tmp_path):
    result = squeezed(net_of(nn.Sequential(layer), 1, 4, 6, 6), tmp_path)
    assert not result.modified
    assert said in result.notes[0]


def test_a_shared_weight_stays(tmp_path):
    module = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    module[1].weight = module[0].weight
    result = squeezed(net_of(module, 1, 4, 6, 6), tmp_path)
    assert result.structure == {"layers": ["2"]}
    assert "'0' stays: its weight is shared with another layer" in result.notes


def test_an_unknown_layer_is_told_with_the_nearest(tmp_path):
    module = nn.Sequential()
    module.add_module("stem", nn.Conv2d(4, 4, 3, padding=1))
    module.add_module("head", nn.Flatten())
    model = net_of(module, 1, 4, 6, 6)
    with pytest.raises(ConfigError, match="'stam' fits no convolution. Did you mean 'stem'"):
        squeezed(model, tmp_path, layers=("stam",))
    with pytest.raises(ConfigError, match="layers: 'head' fits no convolution"):
        squeezed(model, tmp_path, layers=("head",))
    with pytest.raises(ConfigError, match="`skip` names all of them"):
        squeezed(model, tmp_path, skip=("stem",))


def test_examples_that_lack_an_input_are_told(tmp_path):
    class Wrong(Images):
        def examples(self, split):
            yield {"picture": np.zeros((1, 4, 6, 6), np.float32)}

    with pytest.raises(ConfigError, match="lacks the input 'x'"):
        squeezed(net_of(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), 1, 4, 6, 6), tmp_path, Wrong())


@pytest.mark.parametrize(("options", "said"), [("{layers: []}", "layers has to name"), ("{layers: [a], batches: 0}", "batches"), ("{}", "layers")])  # fmt: skip
def test_a_recipe_with_options_that_cannot_be_names_the_line(options, said):
    with pytest.raises(ConfigError, match=said) as error:
        parse_recipe(parse_yaml(f"schema_version: 1\npasses:\n  - squeeze: {options}\n", "recipe.yaml"))
    assert "recipe.yaml:3" in str(error.value)
