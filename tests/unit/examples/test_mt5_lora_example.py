"""The mt5_lora example: its numbers, its splits, its task and its project files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.task import Task, TrainableTask
from edgekit.core.user_code import load_module, load_name
from edgekit.flow.project import load_project
from edgekit.passes.lora import Lora

pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[3] / "examples" / "mt5_lora"


@pytest.fixture
def data() -> Any:
    return load_module(FOLDER / "numbers_data.py")


@pytest.mark.parametrize(
    ("number", "english", "french"),
    [
        (0, "zero", "zero"),
        (15, "fifteen", "fifteen"),
        (61, "sixty one", "sixty one"),
        (70, "seventy", "sixty ten"),
        (80, "eighty", "four twenty"),
        (3092, "three thousand and ninety two", "three thousand and four twenty twelve"),
        (9900, "nine thousand nine hundred", "nine thousand nine hundred"),
    ],
)
def test_a_number_is_said_in_both_ways(data, number, english, french):
    assert " ".join(data.words_of(number, "english")) == english
    assert " ".join(data.words_of(number, "french")) == french


@pytest.mark.parametrize("wording", ["english", "french"])
def test_no_two_numbers_are_said_alike_and_all_fit(data, wording):
    said = {tuple(data.words_of(number, wording)) for number in range(10_000)}
    assert len(said) == 10_000
    assert max(map(len, said)) < data.SOURCE_LENGTH


def test_no_number_is_in_two_splits(data):
    splits = [data.numbers_in(name) for name in data.SIZES]
    assert [len(split) for split in splits] == list(data.SIZES.values())
    assert len({number for split in splits for number in split}) == sum(map(len, splits))


def test_the_task_scores_whole_numbers_and_single_digits(data):
    task = load_name(FOLDER / "task.py", "French")()
    assert isinstance(task, Task)
    assert isinstance(task, TrainableTask)
    digits = data.load("validation", "french")[2]
    answers = digits.copy()
    answers[: len(answers) // 4, 2] = (answers[: len(answers) // 4, 2] - 2) % 10 + 3
    wrong = float((answers[:, 2] != digits[:, 2]).mean())
    logits = np.eye(len(data.VOCABULARY), dtype=np.float32)[answers]
    scored = task.score([{"output": logits}], "validation")
    assert scored == pytest.approx({"exact": 1 - wrong, "digits": 1 - wrong / 4})


def test_the_decoder_sees_the_digits_before_a_place_and_never_the_one_at_it(data):
    _, given, digits = data.load("validation", "french")
    assert (given[:, 0] == data.START).all()
    assert (given[:, 1:] == digits[:, :-1]).all()
    module = load_module(FOLDER / "model.py")
    torch.manual_seed(0)
    writer = module.NumberWriter().eval()
    inputs = module.example_inputs()
    with torch.no_grad():
        before = writer(**inputs)
        inputs["digits"][0, 2] = 7
        after = writer(**inputs)
    assert torch.equal(before[0, :2], after[0, :2])
    assert not torch.allclose(before[0, 2:], after[0, 2:])


def test_the_project_names_its_inputs_and_the_adapters_of_the_paper(monkeypatch):
    project = load_project(FOLDER)
    (step,) = project.recipe.passes
    assert isinstance(step, Lora)
    assert (step.options.r, step.options.alpha, step.options.dropout) == (8, 32, 0.1)


def test_a_base_without_weights_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_EXAMPLES_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="no weights yet") as error:
        load_module(FOLDER / "model.py").build()
    assert "train.py --seed" in error.value.hint
