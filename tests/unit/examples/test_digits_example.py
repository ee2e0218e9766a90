"""The digits example: its splits, its task, its project files and its training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.model import Normalize
from edgekit.core.task import SPLITS, Task, TrainableTask
from edgekit.core.user_code import load_module, load_name
from edgekit.flow.project import load_project
from edgekit.flow.recipe import load_recipe
from edgekit.frontends.base import registry as frontends

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture
def data() -> Any:
    return load_module(FOLDER / "digits_data.py")


@pytest.fixture
def task() -> Any:
    return load_name(FOLDER / "task.py", "Digits")()


@pytest.fixture
def network(tmp_path, monkeypatch) -> Any:
    """The example's model.py, with seeded, untrained weights where it looks for trained ones."""
    from safetensors.torch import save_file

    module = load_module(FOLDER / "model.py")
    torch.manual_seed(0)
    weights = tmp_path / "digits.safetensors"
    save_file(module.Digits().state_dict(), weights)
    monkeypatch.setattr(module, "WEIGHTS", weights)
    return module


def answers(data: Any, split: str, right: int) -> list[dict[str, np.ndarray]]:
    """Logits for a split of which exactly the first `right` are right."""
    _, digits = data.load(split)
    chosen = np.where(np.arange(len(digits)) < right, digits, (digits + 1) % 10)
    logits = np.eye(10, dtype=np.float32)[chosen]
    return [{"logits": logits[start : start + 50]} for start in range(0, len(logits), 50)]


def test_every_image_is_in_exactly_one_split(data):
    splits = data.split_indices()

    assert set(splits) == set(SPLITS)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(1797))
    assert {name: len(splits[name]) for name in data.SIZES} == data.SIZES


def test_no_image_of_training_is_repeated_in_another_split(data):
    images = {split: {image.tobytes() for image in data.load(split)[0]} for split in SPLITS}

    assert not images["train"] & (images["calibration"] | images["validation"] | images["test"])
    assert not images["validation"] & images["test"]


def test_the_digits_are_in_the_same_proportion_in_every_split(data):
    for split in SPLITS:
        shares = np.bincount(data.load(split)[1], minlength=10) / len(data.load(split)[1])
        assert np.all(np.abs(shares - 0.1) < 0.02), split


def test_the_split_is_the_same_each_time(data):
    first = {name: rows.copy() for name, rows in data.split_indices().items()}
    data.split_indices.cache_clear()

    again = data.split_indices()

    assert all(np.array_equal(first[name], again[name]) for name in SPLITS)


def test_the_task_follows_both_protocols(task):
    assert isinstance(task, Task)
    assert isinstance(task, TrainableTask)
    assert task.direction == "larger"


@pytest.mark.parametrize("split", SPLITS)
def test_examples_come_in_the_same_order_in_the_networks_range(task, split):
    first, again = list(task.examples(split)), list(task.examples(split))

    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    for batch in first:
        assert list(batch) == ["image"]
        assert batch["image"].dtype == np.float32
        assert batch["image"].shape[1:] == (1, 8, 8)
        assert batch["image"].min() >= -1.0
        assert batch["image"].max() <= 1.0


def test_the_score_is_the_share_of_right_answers(task, data):
    assert task.score(answers(data, "test", right=360), "test") == {"top1": 1.0}
    assert task.score(answers(data, "test", right=90), "test") == {"top1": 0.25}


def test_a_score_of_too_few_outputs_is_refused(task, data):
    with pytest.raises(ValueError, match="360 images"):
        task.score(answers(data, "test", right=360)[:-1], "test")


def test_training_batches_hold_each_example_once_and_their_own_labels(task, data):
    def pairs(images: Any, digits: Any) -> list[tuple[bytes, int]]:
        return [(image.tobytes(), int(digit)) for image, digit in zip(images, digits, strict=True)]

    seen = [pair for inputs, digits in task.batches("train") for pair in pairs(inputs["image"], digits)]

    assert sorted(seen) == sorted(pairs(*data.load("train")))


def test_the_loss_falls_when_the_answer_is_right(task):
    batch = next(iter(task.batches("train")))
    right = torch.eye(10)[torch.from_numpy(batch[1])] * 5

    wrong_loss, right_loss = task.loss({"logits": -right}, batch), task.loss({"logits": right}, batch)

    assert right_loss.shape == ()
    assert float(right_loss) < float(wrong_loss)


def test_the_project_file_agrees_with_the_factory(network, data):
    project = load_project(FOLDER, environ={})

    model = frontends.create("torch_module").load(project.source_request)

    (image,), (logits,) = model.inputs, model.outputs
    assert (image.name, image.shape, image.dtype, image.layout) == ("image", (1, 1, 8, 8), "float32", "NCHW")
    assert image.normalize == Normalize((data.PIXEL_MEAN,), (data.PIXEL_STD,))
    assert (logits.name, logits.shape, logits.labels) == ("logits", (1, 10), tuple("0123456789"))
    assert 100_000 < model.program.parameter_count() < 200_000
    assert not model.program.module.training


def test_the_declared_normalization_and_range_are_those_of_the_data(data):
    (image,) = load_project(FOLDER, environ={}).inputs

    extremes = data.normalized(np.array([[[0.0]], [[16.0]]]))

    assert image.range == (extremes.min(), extremes.max())


def test_the_recipes_can_be_read(network):
    assert load_recipe(FOLDER / "recipe-float.yaml").passes == ()
    recipe = load_project(FOLDER, environ={}).recipe
    assert recipe is not None
    assert recipe.lowering.precision == "static_wi8_ai8"
    assert recipe.budget is not None
    assert recipe.budget.metric == "top1"


def test_missing_weights_name_the_script_that_makes_them(network):
    network.WEIGHTS.unlink()

    with pytest.raises(ConfigError, match="no weights yet") as caught:
        network.build()

    assert "train.py" in caught.value.hint


def test_a_damaged_weights_file_is_told_from_a_missing_one(network):
    network.WEIGHTS.write_bytes(network.WEIGHTS.read_bytes()[:1000])

    with pytest.raises(ConfigError, match="does not hold the weights"):
        network.build()


@pytest.mark.slow
def test_a_short_training_learns_and_its_weights_load(network, task, tmp_path, monkeypatch):
    weights = tmp_path / "out" / "trained.safetensors"
    repository = str(FOLDER.parents[1])

    done = subprocess.run(
        [sys.executable, str(FOLDER / "train.py"), "--epochs", "4", "--out", str(weights)],
        env={**os.environ, "PYTHONPATH": repository},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "epoch  4/4" in done.stdout
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]
    monkeypatch.setattr(network, "WEIGHTS", weights)
    module, _ = network.build()
    with torch.inference_mode():
        outputs = [
            {"logits": module(torch.from_numpy(batch["image"].copy())).numpy()} for batch in task.examples("validation")
        ]
    # Four epochs of thirty: far above chance is what shows that it trains and that the weights are those trained.
    assert task.score(outputs, "validation")["top1"] > 0.8
