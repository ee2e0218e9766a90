"""The compression example: its networks, its recipes and its table; nothing is trained or downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.core.user_code import load_module, load_name
from edgekit.flow.project import load_project
from edgekit.flow.recipe import load_recipe

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[3] / "examples" / "compression"


@pytest.fixture(scope="module")
def table() -> Any:
    return load_module(FOLDER / "table.py")


def found(table: Any, **top1: float) -> dict[str, dict[str, Any]]:
    """Made-up results of all rows: what a recipe reaches, a little more with each seed."""
    return {
        row.name: {"top1": top1.get(row.recipe, 0.9) + 0.001 * row.seed, "bytes": 100 if row.recipe == "prune" else 800}
        for row in table.rows()
    }


@pytest.mark.parametrize(("factory", "weights"), [("cnn", 104_000), ("student", 102_000), ("mlp", 109_000)])
def test_the_networks_have_the_weights_that_they_are_said_to_have(factory: str, weights: int) -> None:
    module, inputs = load_name(FOLDER / "model.py", factory)()
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(weights, rel=0.02)
    assert module(**inputs).shape == (1, 10)


def test_a_seed_gives_the_same_weights_and_leaves_the_random_numbers_of_others_alone() -> None:
    student = load_name(FOLDER / "model.py", "student")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (student(seed)[0].layers[0].weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_row_has_a_recipe_and_the_project_can_be_read(table) -> None:
    for row in table.rows():
        load_recipe(FOLDER / "recipes" / f"{row.recipe}.yaml")
    assert load_project(FOLDER).recipe is not None


def test_both_students_are_trained_alike_but_for_the_learning_rate() -> None:
    (alone,), (taught,) = (load_recipe(FOLDER / "recipes" / f"{name}.yaml").passes for name in ("alone", "distill"))
    rate = alone.options.learning_rate
    assert alone.options == replace(taught.options.finetune, learning_rate=rate)


def test_the_table_says_whether_distillation_pays(table) -> None:
    assert "gains 1.00 points, more than" in table.table(found(table, distill=0.91))
    assert "gains -1.00 points, not more than" in table.table(found(table, distill=0.89))


def test_the_table_compares_seed_by_seed(table) -> None:
    lines = table.table(found(table, prune=0.885)).splitlines()
    (pruned,) = [line for line in lines if "| prune |" in line]
    assert "88.60 ± 0.10" in pruned
    assert "-1.50 ± 0.00" in pruned
    assert "8.00×" in pruned
