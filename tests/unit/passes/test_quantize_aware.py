from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core import schema
from edgekit.core.errors import ConfigError, PassError, UnsupportedModelError
from edgekit.core.grid import trained_in
from edgekit.core.model import PassRecord
from edgekit.core.schema import parse_yaml
from edgekit.flow.recipe import parse_recipe
from edgekit.passes._training.levels import BITS, levels_of
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.finetune import Finetune
from edgekit.passes.quantize_aware import QuantizeAware, QuantizeAwareOptions
from tests.unit.flow import kit
from tests.unit.passes.training_kit import Corners, Heard, accuracy, assert_same_bits, cnn, model_of, state_of


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model that has learned the task."""
    training = Training(epochs=10, learning_rate=0.02)
    result = Finetune(training).apply(model_of(), Corners(), PassContext(tmp_path_factory.mktemp("learned")))
    assert accuracy(result.model) > 0.9
    return result.model


def quantized(model, folder, *, task=None, seed=0, progress=None, epochs=2, learning_rate=3e-3, loop=None, **options):
    training = Training(epochs=epochs, learning_rate=learning_rate, loop=loop)
    step = QuantizeAware(QuantizeAwareOptions(**options, finetune=training))
    context = PassContext(folder, seed=seed, progress=progress or Heard())
    result = step.apply(model, task or Corners(), context)
    step.ensures(model, result.model)
    return result


def fixed_in(result):
    # As a checkpoint keeps it: through JSON.
    structure = schema.parse_json(schema.canonical_json(schema.to_plain(result.structure)), "record").value
    return trained_in([PassRecord("quantize_aware", structure=structure)])


def weight_of(model, key):
    owner = model.program.module
    name = key if key in dict(owner.named_parameters()) else f"{key}.weight"
    return owner.get_parameter(name).detach().numpy()


def assert_on_grid(model, fixed):
    for key, grid in fixed.grids.items():
        weight = np.moveaxis(weight_of(model, key), grid.axis, 0)
        assert weight.dtype == np.float32
        assert len(grid.scale) == len(weight)
        assert grid.levels == levels_of(grid.bits)
        for channel, scale in zip(weight, grid.scale, strict=True):
            values = np.float32(scale) * np.array(grid.levels, np.float32)
            assert np.isin(channel, values).all(), f"{key} is off its grid"
            assert len(np.unique(channel)) <= 2**grid.bits


def test_what_is_kept_scores_what_it_scored_while_it_trained(learned, tmp_path):
    heard = Heard()
    result = quantized(learned, tmp_path, bits=1, keep_first_last=False, epochs=4, progress=heard)
    assert f"(best {accuracy(result.model):.4g})" in heard.said[-1]


def test_with_rounded_activations_the_metric_of_training_is_told(learned, tmp_path):
    heard = Heard()
    result = quantized(learned, tmp_path, bits=4, activation_bits=8, progress=heard)
    told = result.notes[0].removeprefix("3 layers at 4 bits, top1 ").removesuffix(" with rounded activations")
    assert f"(best {float(told):.4g})" in heard.said[-1]


@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("bits", BITS)
def test_weights_lie_exactly_on_their_grid_and_the_metric_survives(learned, tmp_path, bits, activation_bits):
    before = copy.deepcopy(state_of(learned))
    options = {"bits": bits, "activation_bits": activation_bits, "keep_first_last": False, "epochs": 4}
    result = quantized(learned, tmp_path, **options)
    fixed = fixed_in(result)
    assert list(fixed.grids) == ["0", "3", "7"]
    assert_on_grid(result.model, fixed)
    assert accuracy(result.model) > accuracy(learned) - (0.12 if bits < 3 else 0.05)
    assert_same_bits(state_of(learned), before)
    assert result.notes[0].startswith(f"3 layers at {bits} bit{'s' if bits > 1 else ''}")
    assert all(parameter.is_contiguous() for parameter in result.model.program.module.parameters())
    assert bool(fixed.ranges) == (activation_bits is not None)


def test_one_bit_without_training_ruins_what_training_saves(learned, tmp_path):
    class Unscored(Corners):
        """So that the last weights are kept, however bad."""

        def __init__(self):
            super().__init__()
            self.splits = {"train", "calibration"}

    rounded = quantized(
        learned, tmp_path / "a", task=Unscored(), bits=1, keep_first_last=False, epochs=1, learning_rate=1e-9
    )
    trained = quantized(learned, tmp_path / "b", task=Unscored(), bits=1, keep_first_last=False, epochs=6)
    assert_on_grid(rounded.model, fixed_in(rounded))
    assert accuracy(trained.model) > accuracy(rounded.model) + 0.05


def test_the_structure_is_that_of_the_original_and_replays_to_the_same_model(learned, tmp_path):
    result = quantized(learned, tmp_path, bits=2, activation_bits=8)
    fresh = QuantizeAware(QuantizeAwareOptions(2)).replay(cnn(), result.structure)
    assert list(fresh.state_dict()) == list(result.model.program.module.state_dict())
    assert [type(m) for m in fresh.modules()] == [type(m) for m in result.model.program.module.modules()]
    fresh.load_state_dict(result.model.program.module.state_dict())
    assert learned.program.with_module(fresh.eval()).digest() == result.model.digest
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.model.program.module.modules())


def test_the_first_and_the_last_layer_get_8_bits_below_4_unless_told_otherwise(learned, tmp_path):
    bits = {key: grid.bits for key, grid in fixed_in(quantized(learned, tmp_path / "a", bits=2)).grids.items()}
    assert bits == {"0": 8, "3": 2, "7": 8}
    result = quantized(learned, tmp_path / "b", bits=1, keep=("0",), overrides={"7": 4})
    fixed = fixed_in(result)
    assert {key: grid.bits for key, grid in fixed.grids.items()} == {"3": 1, "7": 4}
    assert_on_grid(result.model, fixed)
    assert result.notes[0] == "1 layer at 1 bit, 1 layer at 4 bits, 1 kept float"
    assert {grid.bits for grid in fixed_in(quantized(learned, tmp_path / "c", bits=4)).grids.values()} == {4}


def test_ranges_are_of_inputs_and_of_results_that_runtimes_keep(learned, tmp_path):
    ranges = fixed_in(quantized(learned, tmp_path, bits=8, activation_bits=8)).ranges
    # What a batch norm or a ReLU follows is never a tensor of its own.
    assert {key: sorted(sides) for key, sides in ranges.items()} == {
        "0": ["input"],
        "3": ["input"],
        "7": ["input", "output"],
    }
    assert ranges["3"]["input"][0] == 0.0, "a ReLU's result starts at zero"
    low, high = ranges["0"]["input"]
    assert low < -1 < 1 < high
    for sides in ranges.values():
        for low, high in sides.values():
            assert low / ((high - low) / 255) == pytest.approx(round(low / ((high - low) / 255)), abs=1e-3)


def test_the_same_seed_gives_the_same_bits(learned, tmp_path):
    options = {"bits": 2, "activation_bits": 8}
    first, again = quantized(learned, tmp_path / "a", **options), quantized(learned, tmp_path / "b", **options)
    assert_same_bits(state_of(first.model), state_of(again.model))
    assert first.structure == again.structure


class Interrupted(Corners):
    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def set_epoch(self, epoch):
        if epoch == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(learned, tmp_path, epoch):
    options = {"bits": 1, "activation_bits": 8, "progressive": (4,), "epochs": 4}
    whole = quantized(learned, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        quantized(learned, tmp_path / "killed", task=Interrupted(epoch), **options)
    heard = Heard()
    resumed = quantized(learned, tmp_path / "killed", progress=heard, **options)
    assert heard.notes == [f"quantize_aware goes on after epoch {epoch - 1} of 4"]
    assert_same_bits(state_of(resumed.model), state_of(whole.model))
    assert resumed.structure == whole.structure


def test_bits_reached_in_stages_end_on_the_last_grid_and_earlier_ones_are_never_kept(learned, tmp_path):
    class Falling(Corners):
        """Every epoch scores worse than the one before."""

        value = 1.0

        def score(self, outputs, split):
            self.value /= 2
            return {"top1": self.value}

    options = {"bits": 2, "keep_first_last": False, "progressive": (8, 4), "epochs": 8}
    result = quantized(learned, tmp_path, task=Falling(), **options)
    assert "the weights of epoch 5 are kept" in result.notes
    fixed = fixed_in(result)
    assert {grid.bits for grid in fixed.grids.values()} == {2}
    assert_on_grid(result.model, fixed)


def test_the_projects_own_loop_trains_on_the_grid(learned, tmp_path):
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "def loop(module, task, options):\n"
        "    optimizer = torch.optim.Adam(module.parameters(), lr=options['learning_rate'])\n"
        "    for _ in range(options['epochs']):\n"
        "        for inputs, labels in task.batches('train'):\n"
        "            loss = task.loss({'logits': module(torch.from_numpy(inputs['image']))}, (inputs, labels))\n"
        "            optimizer.zero_grad(); loss.backward(); optimizer.step()\n"
    )
    result = quantized(learned, tmp_path, bits=2, keep_first_last=False, loop=f"{tmp_path}/train.py:loop", epochs=3)
    assert_on_grid(result.model, fixed_in(result))
    assert accuracy(result.model) > 0.8


class Attentive(nn.Module):
    """A projection, an attention, a transposed convolution and a head of a 6 × 6 image."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(6, 5, 3)
        self.head = nn.Linear(50, 4)

    def forward(self, image):
        rows = self.embed(image.squeeze(1))
        rows = rows + self.attention(rows, rows, rows, need_weights=False)[0]
        return self.head(self.up(rows).flatten(1))


def test_attentions_and_transposed_convolutions_are_put_on_grids_too(tmp_path):
    model = model_of(Attentive())
    fixed = fixed_in(result := quantized(model, tmp_path, bits=3, activation_bits=8, keep_first_last=False))
    assert set(fixed.grids) == {"embed", "attention.in_proj_weight", "attention.out_proj", "up", "head"}
    assert fixed.grids["up"].axis == 1
    assert_on_grid(result.model, fixed)
    assert set(fixed.ranges) == {"embed", "up", "head"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 4)
        self.two.weight = self.one.weight

    def forward(self, image):
        return self.head(self.two(self.one(image.flatten(1)).relu()))


def test_a_shared_weight_stays_and_is_told(tmp_path):
    result = quantized(model_of(Tied()), tmp_path, bits=4)
    assert list(fixed_in(result).grids) == ["head"]
    assert result.notes[1].endswith("stays: its weight is shared with 'one'"), result.notes
    module = result.model.program.module
    assert module.one.weight is module.two.weight


class NoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, image):
        return image.flatten(1)[:, :4] * self.scale


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(36, 4))

    def forward(self, image):
        return self.head(image.flatten(1))


@pytest.mark.parametrize(
    ("kind", "why"), [(NoLayers, "no convolution or linear layer"), (Computed, "computes its weight")]
)
def test_a_model_without_a_layer_to_quantize_fails_by_name(tmp_path, kind, why):
    with pytest.raises(PassError, match=f"'quantize_aware' finds no layer of model.py:build to quantize: .*{why}"):
        quantized(model_of(kind()), tmp_path, bits=4)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"keep": ("8",)}, ConfigError, "'8' in `keep` of quantize_aware fits no layer with weights"),
        ({"overrides": {"00": 4}}, ConfigError, "Did you mean '0'"),
        ({"keep": ("*",)}, PassError, "`keep` names all of them"),
        ({"keep": ("3",)}, PassError, "no layer left for 2 bits: of 3 layers with weights, the first and the last"),
    ],
)
def test_layers_that_are_named_wrongly_or_all_taken_are_told(learned, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message.replace("*", r"\*")):
        quantized(learned, tmp_path, bits=2, **options)


def test_a_task_that_cannot_be_trained_with_is_told(learned, tmp_path):
    class Untrainable:
        metric, direction = "top1", "larger"
        examples, score = Corners.examples, Corners.score

    with pytest.raises(
        ConfigError, match="'quantize_aware' trains the model, but the task 'Untrainable' lacks: batches, loss"
    ):
        quantized(learned, tmp_path, task=Untrainable(), bits=4)
    with pytest.raises(ConfigError, match="there is no task"):
        QuantizeAware(QuantizeAwareOptions(4)).apply(learned, None, PassContext(tmp_path))


def test_a_program_that_cannot_be_trained_is_refused_before_any_work(learned):
    from dataclasses import replace

    from edgekit.core.program import ExportedProgramOnly

    dead = replace(learned, program=ExportedProgramOnly(learned.program.exported, ("image",), ("logits",)))
    with pytest.raises(UnsupportedModelError, match="'quantize_aware' needs a live torch module"):
        QuantizeAware(QuantizeAwareOptions(4)).requires(dead)


PROJECT = {
    "edgekit.yaml": "schema_version: 1\nname: digits\nsource: model.py:build\ntargets: [intel-cpu]\ntask: task.py:Corners\n",
    "model.py": "import torch\nfrom tests.unit.passes.training_kit import cnn\n"
    "def build():\n    torch.manual_seed(0)\n    return cnn(), {'input': torch.zeros(1, 1, 6, 6)}\n",
    "task.py": "from tests.unit.passes.training_kit import Corners as Kit\n"
    "class Corners(Kit):\n"
    "    def examples(self, split):\n"
    "        yield from ({'input': batch['image']} for batch in super().examples(split))\n"
    "    def batches(self, split):\n"
    "        yield from (({'input': batch['image']}, labels) for batch, labels in super().batches(split))\n"
    "    def score(self, outputs, split):\n"
    "        if split == 'calibration':\n            return {'top1': 0.0}\n"
    "        return super().score([{'logits': batch['output']} for batch in outputs], split)\n"
    "    def loss(self, outputs, batch):\n"
    "        return super().loss({'logits': outputs['output']}, batch)\n",
}


def test_a_recipe_folds_trains_and_quantizes_and_what_is_kept_on_disk_is_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [*sys.path])
    project = kit.write(tmp_path / "project", PROJECT)
    text = (
        "schema_version: 1\npasses:\n  - fold_batch_norm: {}\n  - finetune: {epochs: 3, learning_rate: 0.02}\n"
        "  - quantize_aware: {bits: 2, activation_bits: 8, finetune: {epochs: 2}}\n"
    )
    made = kit.builder_in(project).compressed(parse_recipe(parse_yaml(text, "recipe.yaml")))
    again = kit.builder_in(project).compressed(parse_recipe(parse_yaml(text, "recipe.yaml")))
    assert schema.canonical_json(again.info.history) == schema.canonical_json(made.info.history)
    live = again.live()
    assert live.digest == made.live().digest
    assert_same_bits(state_of(live), state_of(made.live()))
    fixed = trained_in(live.history)
    assert {key: grid.bits for key, grid in fixed.grids.items()} == {"0": 8, "3": 2, "7": 8}
    assert_on_grid(live, fixed)
    assert made.info.history[-1].metrics_after["top1"] > 0.8


def recipe(options):
    text = f"schema_version: 1\npasses:\n  - fold_batch_norm: {{}}\n  - quantize_aware: {options}\n"
    return parse_recipe(parse_yaml(text, "recipe.yaml"))


def test_a_recipe_says_bits_and_how_to_train():
    step = recipe("{bits: 1, finetune: {epochs: 3, learning_rate: 0.01}, keep: [stem], overrides: {head: 4}}").passes[1]
    assert step.options == QuantizeAwareOptions(
        1, keep=("stem",), overrides={"head": 4}, finetune=Training(epochs=3, learning_rate=0.01)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{bits: 5}", "recipe.yaml:4: bits cannot be 5; choices: 8, 4, 3, 2, 1"),
        ("{bits: 4, overrides: {head: 16}}", "overrides of 'head' cannot be 16"),
        ("{bit: 4}", "unknown key 'bit'. Did you mean 'bits'"),
        ("{}", "bits"),
        ("{bits: 4, finetune: {epoch: 3}}", "recipe.yaml:4: unknown key 'epoch'. Did you mean 'epochs'"),
        ("{bits: 4, finetune: {epochs: -3}}", "recipe.yaml:4: `finetune`: epochs has to be at least 1"),
        ("{bits: 4, activation_bits: 4}", "`activation_bits`"),
        ("{bits: 4, progressive: [2]}", "progressive has to fall to more than 4 bits"),
        ("{bits: 1, progressive: [4, 2], finetune: {epochs: 3}}", "progressive has 2 stages, which takes"),
    ],
)
def test_a_wrong_option_is_named_with_its_line(options, message):
    with pytest.raises(ConfigError) as caught:
        recipe(options)
    assert message in caught.value.message
