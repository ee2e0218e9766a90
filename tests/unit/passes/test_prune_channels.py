"""Channels taken out of networks that stay ordinary ones."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core import schema
from edgekit.core.cost import macs_of
from edgekit.core.errors import ConfigError, PassError
from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.flow.recipe import parse_recipe
from edgekit.passes._channels.groups import find_groups
from edgekit.passes._channels.importance import scores_of
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.finetune import Finetune
from edgekit.passes.prune_channels import PruneChannels, PruneChannelsOptions
from tests.unit.flow import kit as project_kit
from tests.unit.passes import channel_nets as nets
from tests.unit.passes import training_kit as kit

IMAGE = (1, 3, 8, 8)


def model_of(module, *shape):
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    x = torch.rand(shape, generator=generator).numpy()
    program = TorchProgram(module.eval(), ("x",), ("output",), False, {"x": x})
    out = program.run({"x": x})["output"]
    specs = (TensorSpec("x", shape),), (TensorSpec("output", out.shape),)
    return Model("net", program, *specs, {"x": x}, program.digest(), "model.py:build")


def net(name, seed=0):
    torch.manual_seed(seed)
    return model_of(nets.ALL[name](), *IMAGE)


def apply(model, folder, task=None, **options):
    step = PruneChannels(PruneChannelsOptions(**options))
    result = step.apply(model, task, PassContext(folder))
    step.ensures(model, result.model)
    return result


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", nets.ALL)
def test_a_network_is_smaller_and_can_be_rebuilt(name, scope, tmp_path):
    model = net(name)
    fresh = copy.deepcopy(model.program.module)
    result = apply(model, tmp_path, ratio=0.5, scope=scope, heads=0.5)
    assert result.modified
    assert result.model.program.parameter_count() < 0.65 * model.program.parameter_count()
    assert macs_of(result.model.program) < 0.65 * macs_of(model.program)
    assert model.program.with_module(model.program.module).digest() == model.digest
    structure = json.loads(json.dumps(result.structure))
    rebuilt = PruneChannels(PruneChannelsOptions()).replay(fresh, structure)
    rebuilt.load_state_dict(result.model.program.module.state_dict(), strict=True)
    assert model.program.with_module(rebuilt.eval()).digest() == result.model.digest


def kill(module):
    """Make every other channel of the first two layers one that does nothing."""
    with torch.no_grad():
        for conv, norm, reader, width in ((0, 1, 3, 1), (3, 4, 7, 36)):
            dead = torch.arange(0, module[conv].out_channels, 2)
            module[conv].weight[dead] = 0
            module[norm].weight[dead] = module[norm].bias[dead] = module[norm].running_mean[dead] = 0
            columns = (dead[:, None] * width + torch.arange(width)).flatten()
            module[reader].weight[:, columns] *= 1e-3
    return module


class Labels(kit.Corners):
    """Random images and labels for the plain network."""

    def examples(self, split):
        yield {"x": np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)}

    def batches(self, split):
        for inputs in self.examples(split):
            yield inputs, np.arange(16) % 10

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs["output"], torch.as_tensor(batch[1]))


@pytest.mark.parametrize("importance", ["magnitude", "bn_scale", "taylor", "hessian"])
@pytest.mark.parametrize("steps", [1, 2])
def test_channels_that_do_nothing_are_the_ones_that_go(importance, steps, tmp_path):
    torch.manual_seed(0)
    model = model_of(nets.plain(), *IMAGE)
    kill(model.program.module)
    result = apply(model, tmp_path, Labels(), importance=importance, ratio=0.5, round_to=1, steps=steps)
    assert result.model.program.module[3].weight.shape == (12, 8, 3, 3)
    x = next(iter(Labels().examples("train")))
    was, now = model.program.run(x)["output"], result.model.program.run(x)["output"]
    np.testing.assert_allclose(now, was, atol=1e-4)


def test_second_derivatives_are_those_of_single_examples():
    torch.manual_seed(0)
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 10)), *IMAGE)
    module = copy.deepcopy(model.program.module)
    expected = torch.zeros(6)
    inputs, labels = next(iter(Labels().batches("train")))
    for row in range(16):
        module.zero_grad()
        logits = module(torch.from_numpy(inputs["x"][row : row + 1]))
        nn.functional.cross_entropy(logits, torch.tensor(labels[row : row + 1])).backward()
        expected += (module[3].weight.grad ** 2 * module[3].weight.detach() ** 2).sum(0) / 2 / 16
    (scores,) = scores_of(model.program, find_groups(model.program).groups, "hessian", Labels(), 1)
    torch.testing.assert_close(scores.float(), expected, rtol=1e-4, atol=1e-9)


def test_code_that_counts_on_its_channels_is_named_with_its_line(tmp_path):
    with pytest.raises(PassError, match=r"all channels of 'conv'.*channel_nets\.py:\d+.*\[-1, 512\]") as caught:
        apply(model_of(nets.Fixed(), *IMAGE), tmp_path)
    assert "skip: ['conv']" in caught.value.hint


def test_channels_that_are_mixed_stay(tmp_path):
    torch.manual_seed(0)
    result = apply(model_of(nets.Shuffled(), *IMAGE), tmp_path)
    module = result.model.program.module
    assert (module.mixed.out_channels, module.after.out_channels) == (16, 8)
    assert any("'mixed' stays: its channels are mixed" in note for note in result.notes)


def test_outputs_and_what_is_added_to_inputs_stay(tmp_path):
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.back, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.out(x + self.back(torch.relu(self.inner(x))))

    result = apply(model_of(Adds(), *IMAGE), tmp_path)
    assert set(result.structure["tensors"]) == {"inner.weight", "inner.bias", "back.weight"}
    assert any("'back' stays: its channels meet those of an input" in note for note in result.notes)


def test_tied_weights_stay_with_the_reason(tmp_path):
    result = apply(model_of(nets.Tied(), 1, 12), tmp_path)
    assert not result.modified
    assert "'first' stays: the weight of 'first' is shared" in result.notes[0]


def test_a_single_layer_gives_nothing_to_prune(tmp_path):
    result = apply(model_of(nn.Sequential(nn.Linear(8, 4)), 1, 8), tmp_path)
    assert not result.modified
    assert "its channels are an output of the model" in result.notes[0]


def test_heads_go_whole_and_keep_their_width(tmp_path):
    result = apply(net("vit"), tmp_path, ratio=0.0, heads=0.5)
    attention = result.model.program.module.layers[0].attn
    assert (attention.num_heads, attention.head_dim) == (2, 8)
    assert (attention.qkv.weight.shape, attention.proj.weight.shape) == ((48, 32), (32, 16))
    assert "layers.0.attn: 4 to 2 heads" in result.notes


def test_the_heads_that_nothing_reads_are_the_ones_that_go(tmp_path):
    model = net("vit")
    with torch.no_grad():
        for layer in model.program.module.layers:
            layer.attn.proj.weight[:, 8:24] = 0
            layer.attn.qkv.weight.view(3, 4, 8, 32)[:, 1:3] *= 1e-3
    result = apply(model, tmp_path, ratio=0.0, heads=0.5)
    x = model.example_inputs
    np.testing.assert_allclose(result.model.program.run(x)["output"], model.program.run(x)["output"], atol=1e-5)


def test_torchs_own_attention_stays_and_its_feed_forward_is_pruned(tmp_path):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, batch_first=True)
    result = apply(model_of(nn.Sequential(encoder, nn.Linear(16, 3)), 1, 5, 16), tmp_path, heads=0.5)
    assert result.model.program.module[0].linear1.out_features == 32
    assert any("nn.MultiheadAttention cannot have fewer heads" in note for note in result.notes)


def widths(result):
    return [layer.out_channels for layer in result.model.program.module.modules() if isinstance(layer, nn.Conv2d)]


def test_rounding_does_not_make_a_narrow_layer_keep_more_than_a_milder_ratio(tmp_path):
    model = net("plain")
    assert widths(apply(model, tmp_path, ratio=0.7, round_to=8)) == [8, 8]
    assert widths(apply(model, tmp_path, ratio=0.7)) == [4, 8]
    assert widths(apply(model, tmp_path, ratio=0.5)) == [8, 12]
    assert widths(apply(model, tmp_path, ratio=0.3, round_to=1)) == [11, 17]


def test_a_rounding_that_no_layer_can_lose_by_changes_nothing(tmp_path):
    result = apply(net("plain"), tmp_path, ratio=0.1, round_to=16, layers=("0",))
    assert not result.modified
    assert "a smaller round_to" in result.notes[0]


def test_global_pruning_takes_from_the_weakest_layer_but_not_all_of_it(tmp_path):
    model = net("plain")
    with torch.no_grad():
        model.program.module[4].weight *= 1e-3
    result = apply(model, tmp_path, importance="bn_scale", scope="global", ratio=0.45, max_ratio=0.75, round_to=1)
    assert widths(result) == [16, 6]


def test_layers_are_chosen_by_path(tmp_path):
    model = net("plain")
    assert widths(apply(model, tmp_path, skip=("3",), round_to=1)) == [8, 24]
    assert widths(apply(model, tmp_path, layers=("3",), round_to=1)) == [16, 12]


@pytest.mark.parametrize("option", ["layers", "skip"])
def test_a_path_that_fits_nothing_is_named_with_the_nearest(option, tmp_path):
    with pytest.raises(ConfigError, match=f"{option}: 'blocks.0.conv3' fits no layer. Did you mean 'blocks.0.conv"):
        apply(net("resnet"), tmp_path, **{option: ("blocks.0.conv3",)})


def test_a_ratio_that_would_empty_a_layer_is_refused_before_any_training(tmp_path):
    torch.manual_seed(0)
    model = kit.model_of()
    training = Training(epochs=2, loop="there_is_no_such_file.py:loop")
    with pytest.raises(PassError, match="would leave nothing of '0', which has 6 channels") as caught:
        apply(model, tmp_path, kit.Corners(), ratio=0.85, steps=2, finetune=training)
    assert "at most 0.83" in caught.value.hint


def test_gradients_need_a_task_with_a_loss(tmp_path):
    class Scores:
        metric, direction = "top1", "larger"

    with pytest.raises(ConfigError, match="there is no task"):
        apply(net("plain"), tmp_path, importance="taylor")
    with pytest.raises(ConfigError, match="the task 'Scores' lacks: batches, loss"):
        apply(net("plain"), tmp_path, Scores(), importance="hessian")


def test_a_network_without_batch_norms_has_no_scales_to_go_by(tmp_path):
    result = apply(net("mlp"), tmp_path, importance="bn_scale")
    assert not result.modified
    assert "it has no batch norm" in result.notes[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    context = PassContext(tmp_path_factory.mktemp("trained"))
    return Finetune(Training(epochs=6, learning_rate=1e-2)).apply(kit.model_of(), kit.Corners(), context).model


def test_training_between_the_steps_brings_the_accuracy_back(trained, tmp_path):
    bare = apply(trained, tmp_path / "bare", kit.Corners(), ratio=0.5, round_to=1)
    training = Training(epochs=5, learning_rate=1e-2)
    (tmp_path / "back").mkdir()
    result = apply(
        trained, tmp_path / "back", kit.Corners(), importance="taylor", round_to=1, steps=2, finetune=training
    )
    assert result.model.program.parameter_count() == bare.model.program.parameter_count()
    assert kit.accuracy(result.model) > max(kit.accuracy(bare.model), kit.accuracy(trained))
    assert kit.accuracy(result.model) > 0.9
    assert [note.split(",")[0] for note in result.notes if "epochs" in note] == ["step 1: 2 epochs", "step 2: 3 epochs"]


def test_the_same_seed_gives_the_same_model(trained, tmp_path):
    def once(name):
        (tmp_path / name).mkdir()
        np.random.seed(len(name))  # noqa: NPY002 - whatever came before must not matter
        options = {"importance": "hessian", "ratio": 0.4, "finetune": Training(epochs=1), "examples": 2}
        return apply(trained, tmp_path / name, kit.Corners(), **options).model.digest

    assert once("a") == once("second")


def test_multiplications_are_counted():
    model = model_of(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(1024, 10)), *IMAGE)
    assert macs_of(model.program) == 64 * 16 * 27 + 1024 * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio is a share"),
        ({"ratio": -0.1}, "ratio is a share"),
        ({"ratio": 0.95}, "max_ratio lets no layer lose more"),
        ({"ratio": 0}, "nothing would be pruned"),
        ({"round_to": 0}, "round_to has to be at least 1"),
        ({"steps": 3, "finetune": {"epochs": 2}}, "epochs: 3"),
        ({"importance": "tailor"}, "Did you mean 'taylor'"),
        ({"round_to": "large"}, "round_to"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        schema.convert(PruneChannelsOptions, schema.Document(options, "recipe.yaml"))


def test_options_are_written_down_and_read_again():
    options = PruneChannelsOptions(ratio=0.3, round_to=4, finetune=Training(epochs=2))
    assert schema.convert(PruneChannelsOptions, schema.Document(schema.to_plain(options), "x")) == options


PROJECT = {
    "edgekit.yaml": "schema_version: 1\nname: net\nsource: model.py:build\ntargets: [intel-cpu]\n",
    "model.py": "import torch\nfrom tests.unit.passes.channel_nets import ViT\n"
    "def build():\n    torch.manual_seed(0)\n    return ViT(), {'x': torch.zeros(1, 3, 8, 8)}\n",
}


def test_a_recipe_prunes_twice_and_what_is_kept_on_disk_is_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [*sys.path])
    project = project_kit.write(tmp_path / "project", PROJECT)
    text = "schema_version: 1\npasses:\n  - prune_channels: {ratio: 0.25, heads: 0.25}\n  - prune_channels: {layers: ['*.fc1'], round_to: 2}\n"
    recipe = parse_recipe(schema.parse_yaml(text, "recipe.yaml"))
    made = project_kit.builder_in(project).compressed(recipe)
    again = project_kit.builder_in(project).compressed(recipe)
    assert [record.modified for record in again.info.history] == [True, True]
    assert again.live().digest == made.live().digest
    assert again.live().program.module.layers[0].attn.num_heads == 3
