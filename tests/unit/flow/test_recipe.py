from __future__ import annotations

import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.schema import parse_yaml
from edgekit.flow import recipe as recipe_module
from edgekit.flow.recipe import Budget, parse_recipe
from edgekit.passes.base import NoOptions
from edgekit.passes.fold_batch_norm import FoldBatchNorm


def parsed(text):
    return parse_recipe(parse_yaml("schema_version: 1\n" + text, "recipe.yaml"))


def test_passes_keep_their_order_and_options():
    recipe = parsed("passes:\n  - fold_batch_norm: {}\n  - fold_batch_norm:\n")
    assert [(step.name, step.options) for step in recipe.passes] == [("fold_batch_norm", NoOptions())] * 2


@pytest.mark.parametrize(
    "text, said",
    [
        ("pases: []\n", ["recipe.yaml:2", "passes"]),
        ("passes:\n  - fold_batchnorm: {}\n", ["recipe.yaml:3", "Did you mean 'fold_batch_norm'"]),
        ("passes:\n  - fold_batch_norm: {epochs: 3}\n", ["recipe.yaml:3", "epochs"]),
        ("passes:\n  - {fold_batch_norm: {}, distill: {}}\n", ["recipe.yaml:3", "one name"]),
        ("passes:\n  - fold_batch_norm\n", ["recipe.yaml:3"]),
        ("lowering:\n  quantize:\n    scheme: int8\n", ["recipe.yaml:4", "scheme"]),
        ("lowering:\n  quantize:\n    shceme: float16\n", ["recipe.yaml:4", "shceme", "scheme"]),
        ("budget:\n  max_drop: 1%\n", ["recipe.yaml:3", "1%"]),
        ("budget:\n  max_drop: -rel:1%\n", ["recipe.yaml:3"]),
        ("budget:\n  max_dorp: 0.1\n", ["recipe.yaml:3", "max_dorp", "max_drop"]),
    ],
)
def test_a_mistake_is_named_with_its_line(text, said):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert [part for part in said if part not in caught.value.message] == []


@pytest.mark.parametrize("max_drop, allowed", [("0.02", 0.02), ("1", 1.0), ("rel:1%", 0.009), ("rel:2.5%", 0.0225)])
def test_a_budget_is_absolute_or_relative(max_drop, allowed):
    budget = parsed(f"budget: {{max_drop: {max_drop}}}\n").budget
    assert budget.allowed_drop(0.9) == pytest.approx(allowed)


def test_a_relative_budget_of_a_negative_metric_is_a_size():
    assert Budget("rel:10%").allowed_drop(-2.0) == pytest.approx(0.2)


class _First(FoldBatchNorm):
    name = "first"


class _Second(FoldBatchNorm):
    name = "second"
    after = ("first",)


class _Third(FoldBatchNorm):
    name = "third"
    before = ("second",)


@pytest.mark.parametrize(
    "order, said",
    [
        (["second", "first"], "'first' has to come before 'second'"),
        (["first", "second", "third"], "'third' has to come before 'second'"),
    ],
)
def test_an_order_that_cannot_be_is_refused(monkeypatch, order, said):
    kinds = {"first": _First, "second": _Second, "third": _Third}
    monkeypatch.setattr(recipe_module.registry, "_loaded", kinds)
    text = "passes:\n" + "".join(f"  - {name}: {{}}\n" for name in order)
    with pytest.raises(ConfigError, match=said):
        parsed(text)


def test_an_order_that_can_be_is_taken(monkeypatch):
    monkeypatch.setattr(recipe_module.registry, "_loaded", {"first": _First, "second": _Second, "third": _Third})
    recipe = parsed("passes: [{third: {}}, {first: {}}, {second: {}}]\n")
    assert [step.name for step in recipe.passes] == ["third", "first", "second"]
