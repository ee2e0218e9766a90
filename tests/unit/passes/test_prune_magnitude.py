"""Weights that become exact zeros."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.core.schema import parse_yaml
from edgekit.flow.recipe import parse_recipe
from edgekit.passes._sparsity import parse_pattern, share_at
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.finetune import Finetune
from edgekit.passes.prune_magnitude import PruneMagnitude, PruneMagnitudeOptions
from tests.unit.passes.training_kit import Corners, Heard, accuracy, assert_same_bits, model_of, state_of

TRAINING = Training(epochs=4, learning_rate=0.02)


def pruned(folder, model=None, *, task=None, progress=None, **options):
    step = PruneMagnitude(PruneMagnitudeOptions(**options))
    return step.apply(model or model_of(), task, PassContext(folder, progress=progress or Heard()))


def around(module, *shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).numpy()
    if shape[-1] == 1:
        x = np.zeros(shape[:-1], np.int64)
    program = TorchProgram(module.eval(), ("x",), ("output",), False, {"x": x})
    out = program.run({"x": x})["output"]
    specs = (TensorSpec("x", x.shape, str(x.dtype)),), (TensorSpec("output", out.shape),)
    return Model("net", program, *specs, {"x": x}, program.digest(), "model.py:build")


def zeros(model, path):
    return float((model.program.module.get_submodule(path).weight == 0).float().mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Finetune(TRAINING).apply(model_of(), Corners(), PassContext(tmp_path_factory.mktemp("t"))).model


def test_the_smallest_weights_of_each_layer_become_zero_and_the_others_stay_as_they_are(tmp_path):
    model = model_of()
    before = copy.deepcopy(state_of(model))
    result = pruned(tmp_path, model, sparsity=0.5)
    assert_same_bits(state_of(model), before)
    for name, after in state_of(result.model).items():
        if name in {"0.weight", "3.weight", "7.weight"}:
            gone = after == 0
            assert gone.mean() == pytest.approx(0.5, abs=0.02)
            np.testing.assert_array_equal(after[~gone], before[name][~gone])
            assert np.abs(before[name][gone]).max() <= np.abs(after[~gone]).min()
        else:
            np.testing.assert_array_equal(after, before[name])
    assert result.structure == {"sparsity": {"0": 0.5, "3": 0.5, "7": 0.5}, "pattern": "none"}
    assert result.notes[0] == "50.0% of 614 weights in 3 layers are zero"
    assert "'3' 50.0%" in result.notes


def test_global_scope_takes_the_least_of_all_layers(tmp_path):
    model = model_of()
    with torch.no_grad():
        model.program.module[3].weight.mul_(0.01)
    result = pruned(tmp_path, model, sparsity=0.7, scope="global")
    every = torch.cat([model.program.module[at].weight.flatten().abs() for at in (0, 3, 7)])
    kept = torch.cat([result.model.program.module[at].weight.flatten() for at in (0, 3, 7)]) != 0
    assert int((~kept).sum()) == round(0.7 * every.numel())
    assert every[~kept].max() <= every[kept].min()
    assert zeros(result.model, "3") > 0.9 > zeros(result.model, "7")


def test_pruning_while_training_keeps_what_one_shot_loses(tmp_path, trained):
    options = {"sparsity": 0.9, "frequency": 2}
    once = pruned(tmp_path / "a", trained, sparsity=0.9)
    slow = pruned(tmp_path / "b", trained, task=Corners(), finetune=Training(epochs=8, learning_rate=0.02), **options)
    for path in ("0", "3", "7"):
        assert zeros(slow.model, path) == pytest.approx(0.9, abs=0.01)
    assert accuracy(slow.model) > accuracy(once.model) + 0.1
    assert accuracy(slow.model) > accuracy(trained) - 0.1
    assert not any(parameter._backward_hooks for parameter in slow.model.program.module.parameters())


def test_the_share_of_zeros_rises_by_the_cubic_schedule(tmp_path, trained):
    seen = []

    class Seen(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, image):
            if self.training:
                seen.append(float((self.inner[3].weight == 0).float().mean()))
            return self.inner(image)

    model = model_of(Seen(copy.deepcopy(trained.program.module)))
    options = {"initial_sparsity": 0.5, "sparsity": 0.9, "begin": 0.25, "end": 0.75, "frequency": 1}
    pruned(tmp_path, model, task=Corners(), finetune=TRAINING, **options)
    assert len(seen) == 24
    # What the forward of a step sees was laid after the step before it.
    for step, share in enumerate(seen):
        done = step / 24
        wanted = 0.0 if done < 0.25 else 0.9 - 0.4 * (1 - min((done - 0.25) / 0.5, 1)) ** 3
        assert share == pytest.approx(wanted, abs=0.002), step


def test_a_schedule_is_flat_at_its_end_and_steep_at_its_start():
    at = [share_at(p, "polynomial", initial=0.0, final=0.8, begin=0.2, end=0.6) for p in (0.1, 0.2, 0.4, 0.6, 1.0)]
    assert at == pytest.approx([0.0, 0.0, 0.7, 0.8, 0.8])
    assert [share_at(p, "constant", initial=0.0, final=0.8, begin=0.2, end=0.6) for p in (0.1, 0.2)] == [0.0, 0.8]


def test_of_each_four_input_channels_two_stay_and_they_are_the_largest(tmp_path):
    layers = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 4))
    model = around(layers, 1, 8, 6, 6)
    result = pruned(tmp_path, model, pattern="2:4")
    for path, axis in (("0", 1), ("2", 1)):
        was = model.program.module.get_submodule(path).weight.detach().movedim(axis, -1).reshape(-1, 4)
        now = result.model.program.module.get_submodule(path).weight.detach().movedim(axis, -1).reshape(-1, 4)
        assert ((now != 0).sum(1) == 2).all()
        assert torch.allclose(now.abs().sum(1), was.abs().topk(2, dim=1).values.sum(1))
    assert result.structure == {"sparsity": {"0": 0.5, "2": 0.5}, "pattern": "2:4"}


def test_zeros_come_in_whole_blocks_and_a_layer_that_they_do_not_divide_is_named(tmp_path):
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 4))
    result = pruned(tmp_path, around(layers, 1, 3, 6, 6), pattern="1x4", sparsity=0.75)
    assert result.structure["sparsity"].keys() == {"1", "3"}
    assert "'0' stays: 4 does not divide its 3 input channels" in result.notes
    for path in ("1", "3"):
        weight = result.model.program.module.get_submodule(path).weight
        blocks = (weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1)
        assert set(blocks.tolist()) == {0, 4}
        assert zeros(result.model, path) == pytest.approx(0.75, abs=0.01)


def test_a_transposed_convolution_has_its_input_channels_first(tmp_path):
    result = pruned(tmp_path, around(nn.Sequential(nn.ConvTranspose2d(8, 5, 2)), 1, 8, 4, 4), pattern="1:4")
    groups = result.model.program.module[0].weight.movedim(0, -1).reshape(-1, 4)
    assert ((groups != 0).sum(1) == 1).all()


def test_a_pattern_while_training_ends_in_that_pattern(tmp_path, trained):
    result = pruned(tmp_path, trained, task=Corners(), pattern="1:2", skip=("0",), frequency=3, finetune=TRAINING)
    for path in ("3", "7"):
        groups = result.model.program.module.get_submodule(path).weight.movedim(1, -1).reshape(-1, 2)
        assert ((groups != 0).sum(1) == 1).all()
    assert zeros(result.model, "0") == 0


class Slope(Corners):
    """A loss that the second input does not move: a large weight on it is not missed."""

    def batches(self, split):
        x = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
        yield {"x": x * np.array([1.0, 1e-3], np.float32)}, None

    def loss(self, outputs, batch):
        return outputs["output"].square().mean()


def test_what_the_loss_does_not_miss_goes_first_by_obd_though_it_is_large(tmp_path):
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 2.0]]))
    model = around(nn.Sequential(layer), 1, 2)
    by_size = pruned(tmp_path, model, sparsity=0.5).model.program.module[0].weight
    by_loss = pruned(tmp_path, model, task=Slope(), sparsity=0.5, saliency="obd").model.program.module[0].weight
    assert by_size.tolist() == [[0.0, 2.0]]
    assert by_loss.tolist() == [[0.5, 0.0]]


def test_obd_while_training_reaches_the_share_and_learns(tmp_path, trained):
    result = pruned(tmp_path, trained, task=Corners(), sparsity=0.8, saliency="obd", frequency=2, finetune=TRAINING)
    for path in ("0", "3", "7"):
        assert zeros(result.model, path) == pytest.approx(0.8, abs=0.01)
    assert accuracy(result.model) > 0.8


class Tied(nn.Module):
    def __init__(self, *, embedding):
        super().__init__()
        self.first = nn.Embedding(6, 8) if embedding else nn.Linear(8, 8, bias=False)
        self.between = nn.Linear(8, 8)
        self.last = nn.Linear(8, 6 if embedding else 8, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def test_layers_that_share_a_weight_are_pruned_once_and_together(tmp_path):
    model = around(Tied(embedding=False), 1, 8)
    result = pruned(tmp_path, model, sparsity=0.5)
    module = result.model.program.module
    assert module.first.weight is module.last.weight
    assert zeros(result.model, "first") == 0.5
    assert result.structure["sparsity"] == {"first": 0.5, "last": 0.5, "between": 0.5}
    assert "'first' and 'last' share a weight: pruned once" in result.notes
    assert result.notes[0].startswith("50.0% of 128 weights in 3 layers")


def test_a_weight_that_an_embedding_reads_too_stays(tmp_path):
    result = pruned(tmp_path, around(Tied(embedding=True), 1, 3, 1), sparsity=0.5)
    assert result.structure["sparsity"] == {"between": 0.5}
    assert any("something that is no layer reads its weight too" in note for note in result.notes)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(tmp_path, trained):
    class Killed(Corners):
        def set_epoch(self, epoch):
            if epoch == 3:
                raise KeyboardInterrupt

    for saliency in ("magnitude", "obd"):
        options = {"sparsity": 0.85, "frequency": 4, "saliency": saliency, "finetune": TRAINING}
        whole = pruned(tmp_path / saliency / "a", trained, task=Corners(), **options)
        with pytest.raises(KeyboardInterrupt):
            pruned(tmp_path / saliency / "b", trained, task=Killed(), **options)
        heard = Heard()
        resumed = pruned(tmp_path / saliency / "b", trained, task=Corners(), progress=heard, **options)
        assert heard.notes == ["prune_magnitude goes on after epoch 2 of 4"]
        assert_same_bits(state_of(resumed.model), state_of(whole.model))


LOOP = """
import torch

def loop(module, task, options):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, weight_decay=0.01)
    for _ in range(options["epochs"]):
        for inputs, labels in task.batches("train"):
            loss = task.loss({"logits": module(torch.from_numpy(inputs["image"]))}, (inputs, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert float((module[3].weight == 0).float().mean()) > 0.84
"""


def test_the_projects_own_loop_trains_around_the_zeros(tmp_path, trained):
    (tmp_path / "train.py").write_text(LOOP)
    training = Training(epochs=15, loop=f"{tmp_path}/train.py:loop")
    result = pruned(tmp_path, trained, task=Corners(), sparsity=0.85, finetune=training)
    assert zeros(result.model, "3") == pytest.approx(0.85, abs=0.01)
    assert accuracy(result.model) > accuracy(pruned(tmp_path, trained, sparsity=0.85).model)
    assert "pruned at once: the project's own loop knows no schedule" in result.notes


def test_a_share_that_would_empty_a_layer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="would empty the layer '0': none of its 54 weights") as caught:
        pruned(tmp_path, sparsity=0.995)
    assert "skip: ['0']" in caught.value.hint
    model = model_of()
    with torch.no_grad():
        model.program.module[0].weight.mul_(1e-4)
    with pytest.raises(ConfigError, match="would empty the layer '0'") as caught:
        pruned(tmp_path, model, sparsity=0.5, scope="global")
    assert "scope: layer" in caught.value.hint


def test_a_layer_that_is_none_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="skip: 'betwen' fits no layer. Did you mean 'between'"):
        pruned(tmp_path, around(Tied(embedding=False), 1, 8), sparsity=0.5, skip=("betwen",))


def test_a_model_without_layers_is_left_as_it_is_and_said_so(tmp_path):
    result = pruned(tmp_path, around(nn.Sequential(nn.ReLU()), 1, 3), sparsity=0.5)
    assert (result.modified, result.notes) == (False, ("there is no layer to prune",))


def test_what_has_its_zeros_already_is_not_called_changed(tmp_path):
    first = pruned(tmp_path, sparsity=0.5)
    again = pruned(tmp_path, first.model, sparsity=0.5)
    assert (first.modified, again.modified) == (True, False)


def test_a_loss_that_is_no_number_is_told(tmp_path):
    class Nan(Corners):
        def loss(self, outputs, batch):
            return super().loss(outputs, batch) * float("nan")

    with pytest.raises(PassError, match="the loss is nan in epoch 1"):
        pruned(tmp_path, task=Nan(), sparsity=0.5, finetune=TRAINING)
    with pytest.raises(PassError, match="the loss is nan: no saliency"):
        pruned(tmp_path, task=Nan(), sparsity=0.5, saliency="obd")


def test_obd_without_a_task_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there is no task"):
        pruned(tmp_path, sparsity=0.5, saliency="obd")


def recipe(text):
    return parse_recipe(parse_yaml(f"schema_version: 1\npasses:\n{text}", "recipe.yaml"))


def test_a_recipe_may_write_the_pattern_with_or_without_quotes():
    for text in ("2:4", "'2:4'"):
        (step,) = recipe(f"  - prune_magnitude: {{pattern: {text}, finetune: {{epochs: 2}}}}\n").passes
        assert parse_pattern(step.options.pattern) == parse_pattern("2:4")
        assert (step.options.final, step.options.finetune.epochs) == (0.5, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{}", "recipe.yaml:3: sparsity is missing"),
        ("{sparsity: 1.0}", "1 would empty every layer"),
        ("{sparsity: 0.9, initial_sparsity: 0.95}", "initial_sparsity has to be between 0 and 0.9"),
        ("{sparsity: 0.9, begin: 0.8, end: 0.2}", "begin and end are shares"),
        ("{sparsity: 0.9, frequency: 0}", "frequency has to be at least 1"),
        ("{sparsity: 0.9, pattern: 4x}", "choices: none, N:M as 2:4, blocks as 1x4"),
        ("{sparsity: 0.9, pattern: 1x1}", "no more than one weight"),
        ("{pattern: '4:4'}", "keeps at least one and not all"),
        ("{sparsity: 0.9, pattern: '2:4'}", "leave sparsity out"),
        ("{pattern: '2:4', scope: global}", "exclude each other"),
        ("{sparsity: 0.5, saliency: obs}", "`saliency` cannot be 'obs'. Did you mean 'obd'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError) as caught:
        recipe(f"  - prune_magnitude: {options}\n")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("prune_magnitude: {sparsity: 0.5}", "low_rank: {energy: 0.6}"),
        ("quantize_aware: {bits: 4}", "prune_magnitude: {sparsity: 0.5}"),
        ("prune_magnitude: {sparsity: 0.5}", "distill: {student: 's.py:build'}"),
    ],
)
def test_an_order_in_which_zeros_would_be_filled_is_refused(first, then):
    with pytest.raises(ConfigError, match="has to come before"):
        recipe(f"  - {first}\n  - {then}\n")
