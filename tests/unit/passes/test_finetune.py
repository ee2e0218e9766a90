from __future__ import annotations

import copy
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.schema import parse_yaml
from edgekit.flow.recipe import parse_recipe
from edgekit.passes._training.loop import train
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.finetune import Finetune
from tests.unit.passes.training_kit import Corners, Heard, accuracy, assert_same_bits, model_of, state_of

ROOT = Path(__file__).resolve().parents[3]


def tuned(folder, *, task=None, model=None, seed=0, progress=None, **options):
    training = Training(**{"epochs": 4, "learning_rate": 0.02, **options})
    context = PassContext(folder, seed=seed, progress=progress or Heard())
    return Finetune(training).apply(model or model_of(), task or Corners(), context)


def test_a_model_learns_and_the_one_passed_in_is_untouched(tmp_path):
    model = model_of()
    before = copy.deepcopy(state_of(model))
    result = tuned(tmp_path, model=model)
    assert accuracy(result.model) > accuracy(model) + 0.3
    assert_same_bits(state_of(model), before)
    assert result.modified is True
    assert result.model.digest != model.digest
    assert not any(m.training for m in result.model.program.module.modules())


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before_and_another_gives_others(tmp_path):
    first = tuned(tmp_path / "a")
    np.random.random(7)  # noqa: NPY002 - the global generator is what is meant
    torch.rand(3)
    model = model_of()
    again = tuned(tmp_path / "b", model=model)
    assert_same_bits(state_of(first.model), state_of(again.model))
    assert first.model.digest == again.model.digest
    other = tuned(tmp_path / "c", seed=1)
    assert state_of(other.model)["7.weight"].tobytes() != state_of(first.model)["7.weight"].tobytes()


def test_the_random_numbers_of_the_program_around_it_go_on_as_if_nothing_had_been(tmp_path):
    model = model_of()
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - as above
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    tuned(tmp_path, model=model, epochs=1)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected  # noqa: NPY002


class Interrupted(Corners):
    """Fails in the middle of an epoch."""

    def __init__(self, epoch, error=KeyboardInterrupt):
        super().__init__()
        self.at, self.epoch, self.error = epoch, 0, error

    def set_epoch(self, epoch):
        self.epoch = epoch

    def loss(self, outputs, batch):
        if self.epoch == self.at and outputs["logits"].requires_grad and np.random.random() < 0.5:  # noqa: NPY002
            raise self.error
        return super().loss(outputs, batch)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_run_goes_on_after_the_last_whole_epoch_and_ends_with_the_same_bits(tmp_path, optimizer):
    whole = tuned(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "killed", task=Interrupted(3), optimizer=optimizer)
    heard = Heard()
    resumed = tuned(tmp_path / "killed", optimizer=optimizer, progress=heard)
    assert heard.notes == ["finetune goes on after epoch 2 of 4"]
    assert heard.done == heard.total
    assert "went on after epoch 2 of an earlier run" in resumed.notes
    assert_same_bits(state_of(resumed.model), state_of(whole.model))
    assert resumed.model.digest == whole.model.digest


class Watched(Corners):
    """Remembers the type of what it was given to judge, and the strides of a weight meanwhile."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.types, self.strides = weight, set(), set()

    def loss(self, outputs, batch):
        self.types.add(outputs["logits"].dtype)
        self.strides.add(self.weight.stride())
        return super().loss(outputs, batch)


def test_bfloat16_trains_as_well_and_leaves_a_module_in_float32_that_lies_as_it_did(tmp_path):
    model = model_of()
    result = tuned(tmp_path, model=model, precision="bfloat16")
    assert accuracy(result.model) > accuracy(model) + 0.3
    before, after = (one.program.module.state_dict() for one in (model, result.model))
    assert {name: (t.dtype, t.stride()) for name, t in after.items()} == {
        name: (t.dtype, t.stride()) for name, t in before.items()
    }
    plain = tuned(tmp_path, precision="float32")
    assert state_of(plain.model)["3.weight"].tobytes() != state_of(result.model)["3.weight"].tobytes()


def test_in_bfloat16_the_loss_gets_float32_and_images_weights_lie_channels_last(tmp_path):
    model = model_of()
    task = Watched(model.program.module[3].weight)
    train(model.program, task, Training(epochs=1, precision="bfloat16"), PassContext(tmp_path, progress=Heard()))
    assert task.types == {torch.float32}
    assert task.strides == {(54, 1, 18, 6)}
    assert model.program.module[3].weight.is_contiguous()


def test_an_interrupted_run_in_bfloat16_ends_with_the_same_bits(tmp_path):
    whole = tuned(tmp_path / "whole", precision="bfloat16")
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "killed", task=Interrupted(3), precision="bfloat16")
    heard = Heard()
    resumed = tuned(tmp_path / "killed", precision="bfloat16", progress=heard)
    assert heard.notes == ["finetune goes on after epoch 2 of 4"]
    assert_same_bits(state_of(resumed.model), state_of(whole.model))


CHILD = """
import os, signal, sys
from pathlib import Path
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.finetune import Finetune
from tests.unit.passes.training_kit import Corners, model_of

class Killed(Corners):
    def set_epoch(self, epoch):
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)

Finetune(Training(epochs=4, learning_rate=0.02)).apply(model_of(), Killed(), PassContext(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_gone_on_with_and_ends_with_the_same_bits(tmp_path):
    killed = tmp_path / "killed"
    killed.mkdir()
    argv = [sys.executable, "-c", CHILD, str(killed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(argv, cwd=ROOT, env=environment, timeout=300, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in killed.iterdir()] == ["finetune.checkpoint.pt"]
    heard = Heard()
    resumed, whole = tuned(killed, progress=heard), tuned(tmp_path / "whole")
    assert heard.notes == ["finetune goes on after epoch 2 of 4"]
    assert_same_bits(state_of(resumed.model), state_of(whole.model))


def test_a_checkpoint_of_other_options_or_a_damaged_one_is_not_gone_on_with(tmp_path):
    clean = tuned(tmp_path / "clean", epochs=2)
    tuned(tmp_path, epochs=1)
    heard = Heard()
    assert_same_bits(state_of(tuned(tmp_path, epochs=2, progress=heard).model), state_of(clean.model))
    assert "is of another training" in heard.notes[0]
    (tmp_path / "finetune.checkpoint.pt").write_bytes(b"half a file")
    heard = Heard()
    assert_same_bits(state_of(tuned(tmp_path, epochs=2, progress=heard).model), state_of(clean.model))
    assert "cannot be read" in heard.warnings[0]


class Scripted(Corners):
    """Scores as it is told: before training, then after each epoch."""

    def __init__(self, *scores, direction="larger"):
        super().__init__()
        self.scores, self.direction, self.states = list(scores), direction, []
        self.calls = 0

    def score(self, outputs, split):
        self.calls += 1
        return {"top1": self.scores[self.calls - 1]}


def test_training_stops_when_patience_runs_out_and_keeps_the_best_weights(tmp_path):
    result = tuned(tmp_path / "a", task=Scripted(0.1, 0.2, 0.6, 0.6, 0.5), epochs=9, patience=2, schedule="constant")
    assert "stopped early: no better for as many epochs as `patience` says" in result.notes
    assert "the weights of epoch 2 are kept" in result.notes
    two = tuned(tmp_path / "b", task=Scripted(0.1, 0.2, 0.6), epochs=2, schedule="constant")
    assert_same_bits(state_of(result.model), state_of(two.model))


def test_a_smaller_metric_is_better_where_the_task_says_so(tmp_path):
    result = tuned(tmp_path, task=Scripted(0.9, 0.2, 0.6, 0.5, direction="smaller"), epochs=3)
    assert "the weights of epoch 1 are kept" in result.notes


def test_a_model_that_no_epoch_makes_better_is_left_as_it_was_and_said_so(tmp_path):
    model = model_of()
    result = tuned(tmp_path, model=model, task=Scripted(0.9, 0.2, math.nan), epochs=2)
    assert (result.modified, result.model) == (False, model)
    assert "the weights of before training are kept: no epoch was better" in result.notes


def test_without_validation_examples_the_last_weights_are_kept_and_patience_is_refused(tmp_path):
    task = Corners()
    task.splits = {"train"}
    assert tuned(tmp_path, task=task, epochs=2).modified is True
    with pytest.raises(ConfigError, match="`patience` watches the validation metric"):
        tuned(tmp_path, task=task, patience=1)


class Diverging(Interrupted):
    def loss(self, outputs, batch):
        loss = Corners.loss(self, outputs, batch)
        return loss * math.nan if self.epoch == self.at else loss


def test_a_loss_that_is_no_number_stops_and_the_last_good_weights_are_kept(tmp_path):
    with pytest.raises(PassError) as caught:
        tuned(tmp_path, task=Diverging(2))
    path = tmp_path / "finetune.last_good.safetensors"
    assert "the loss is nan in epoch 2, step 1" in caught.value.message
    assert str(path) in caught.value.message
    assert "learning_rate: 0.002" in caught.value.hint
    checkpoint = torch.load(tmp_path / "finetune.checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert_same_bits(load_file(path), {name: tensor.numpy() for name, tensor in checkpoint["module"].items()})


def test_a_learning_rate_that_bursts_the_weights_is_told_with_epoch_and_step(tmp_path):
    with pytest.raises(PassError, match=r"epoch \d, step \d+"):
        tuned(tmp_path, optimizer="sgd", learning_rate=1e30)


class Lacking:
    metric, direction = "top1", "larger"

    def examples(self, split):
        return ()

    def score(self, outputs, split):
        return {"top1": 0.0}


class Empty(Corners):
    def batches(self, split):
        return []


class Detached(Corners):
    def loss(self, outputs, batch):
        return super().loss({"logits": outputs["logits"].detach()}, batch)


class PerExample(Corners):
    def loss(self, outputs, batch):
        return outputs["logits"].sum(1)


class WrongName(Corners):
    def batches(self, split):
        yield from (({"picture": inputs["image"]}, labels) for inputs, labels in super().batches(split))


class BareArrays(Corners):
    def batches(self, split):
        yield from (inputs["image"] for inputs, _ in super().batches(split))


class Raising(Corners):
    def loss(self, outputs, batch):
        return outputs["scores"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Lacking(), "the task 'Lacking' lacks: batches, loss"),
        (Empty(), r"Empty.batches\('train'\) yields nothing"),
        (Detached(), "Detached.loss gives a tensor without a gradient"),
        (PerExample(), r"PerExample.loss gives a tensor of the shape \[32\]"),
        (WrongName(), r"WrongName.batches\('train'\) lacks the input 'image' of the model; it has: picture"),
        (BareArrays(), r"BareArrays.batches\('train'\) yields a ndarray"),
        (Raising(), r"finetune: epoch 1, step 1 failed at test_finetune.py:\d+: KeyError: 'scores'"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_task_that_cannot_be_trained_with_is_named(tmp_path, task, message):
    with pytest.raises(ConfigError, match=message):
        tuned(tmp_path, task=task)


def test_no_task_at_all_is_told_with_what_to_write(tmp_path):
    with pytest.raises(ConfigError, match="there is no task") as caught:
        Finetune(Training()).apply(model_of(), None, PassContext(tmp_path))
    assert "task: task.py:NAME" in caught.value.hint


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    model = model_of()
    model.program.module.requires_grad_(False)
    with pytest.raises(PassError, match="no weights to train"):
        tuned(tmp_path, model=model)


def test_the_bar_is_as_long_as_the_training_and_each_epoch_is_told_with_the_time_left(tmp_path):
    heard = Heard()
    tuned(tmp_path, progress=heard, epochs=2)
    assert (heard.done, heard.total) == (12, 12)
    assert heard.said[0].startswith("epoch 1/2, loss ")
    assert heard.said[-1].endswith(" 0 s left")


LOOP = """
import torch

def my_loop(module, task, options):
    assert module.training and options["epochs"] == 3
    optimizer = torch.optim.Adam(module.parameters(), lr=options["learning_rate"])
    for _ in range(options["epochs"]):
        for inputs, labels in task.batches("train"):
            loss = task.loss({"logits": module(torch.from_numpy(inputs["image"]))}, (inputs, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

def other_module(module, task, options):
    return torch.nn.Linear(2, 2)

def number(module, task, options):
    return 3

def spoils(module, task, options):
    module[7].bias.data.fill_(float("inf"))
"""


def test_a_loop_that_a_recipe_names_gets_all_options_with_their_defaults(tmp_path):
    (tmp_path / "train.py").write_text("def loop(module, task, options):\n    task.told = options\n")
    task = Corners()
    text = f"schema_version: 1\npasses: [{{finetune: {{epochs: 2, loop: '{tmp_path}/train.py:loop'}}}}]\n"
    (step,) = parse_recipe(parse_yaml(text, "recipe.yaml")).passes
    result = step.apply(model_of(), task, PassContext(tmp_path))
    assert (task.told["epochs"], task.told["learning_rate"], task.told["patience"]) == (2, 1e-3, None)
    assert result.modified is False


def test_the_projects_own_loop_trains_instead(tmp_path):
    (tmp_path / "train.py").write_text(LOOP)
    model = model_of()
    before = copy.deepcopy(state_of(model))
    result = tuned(tmp_path, model=model, epochs=3, loop=f"{tmp_path}/train.py:my_loop")
    assert accuracy(result.model) > accuracy(model) + 0.3
    assert_same_bits(state_of(model), before)
    assert result.notes == ("trained by the project's own loop",)
    assert not result.model.program.module.training


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("train.py:my_lop", ConfigError, "Did you mean 'my_loop'"),
        ("train.py", ConfigError, "it should name a file and a function"),
        ("trian.py:my_loop", ConfigError, "There is no file"),
        ("train.py:other_module", ConfigError, "another structure"),
        ("train.py:number", ConfigError, "returns a int"),
        ("train.py:spoils", PassError, "leaves '7.bias' with values that are not finite"),
    ],
)
def test_a_loop_that_is_not_one_is_named(tmp_path, monkeypatch, reference, kind, message):
    (tmp_path / "train.py").write_text(LOOP)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        tuned(tmp_path, loop=reference)


def recipe(text):
    return parse_recipe(parse_yaml(f"schema_version: 1\npasses:\n{text}", "recipe.yaml"))


def test_a_recipe_says_how_to_train():
    (step,) = recipe("  - finetune: {epochs: 3, optimizer: sgd, schedule: linear, warmup: 0.5, patience: 2}\n").passes
    assert step.options == Training(3, optimizer="sgd", schedule="linear", warmup=0.5, patience=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{epoch: 3}", "recipe.yaml:3: unknown key 'epoch'. Did you mean 'epochs'"),
        ("{optimizer: sdg}", "recipe.yaml:3: `optimizer` cannot be 'sdg'. Did you mean 'sgd'"),
        ("{epochs: 0}", "recipe.yaml:3: epochs has to be at least 1, not 0"),
        ("{learning_rate: -0.1}", "learning_rate has to be above 0"),
        ("{warmup: 5}", "warmup takes 5 epochs, but epochs is 5"),
        ("{schedule: one_cycle, warmup: 1}", "exclude each other"),
        ("{momentum: 1.5}", "momentum has to be"),
        ("{clip_norm: 0}", "clip_norm has to be above 0"),
        ("{patience: 0}", "patience has to be at least 1"),
        ("{weight_decay: -1}", "weight_decay has to be at least 0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError) as caught:
        recipe(f"  - finetune: {options}\n")
    assert message in caught.value.message


def test_training_after_the_weights_were_put_on_a_grid_is_refused():
    with pytest.raises(ConfigError, match="'finetune' has to come before 'quantize_aware'"):
        recipe("  - quantize_aware: {bits: 4}\n  - finetune: {}\n")


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(36, 4)

    def forward(self, image):
        return self.head(self.norm(image).flatten(1))


def test_batch_norms_gather_statistics_while_training(tmp_path):
    model = model_of(Norms())
    after = state_of(tuned(tmp_path, model=model, epochs=3).model)
    assert after["norm.num_batches_tracked"] > 0
    assert not np.array_equal(after["norm.running_var"], state_of(model)["norm.running_var"])
