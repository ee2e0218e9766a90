"""A pass that breaks the budget: the run stops, or goes on with the model before it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from edgekit.core.errors import BudgetError, ConfigError
from edgekit.core.grid import Grid, Trained, structure_of, trained_in
from edgekit.core.schema import parse_yaml
from edgekit.flow.checkpoint import load_checkpoint, save_checkpoint
from edgekit.flow.pipeline import SOURCE
from edgekit.flow.recipe import parse_recipe
from edgekit.passes import fold_batch_norm
from edgekit.passes.base import PassResult, registry
from tests.unit.flow import kit


class Spoil(fold_batch_norm.FoldBatchNorm):
    """Takes the last layer's weights away."""

    name = "spoil"

    def apply(self, model, task, context):
        module = copy.deepcopy(model.program.module)
        module[4].weight.data.zero_()
        program = model.program.with_module(module)
        structure = structure_of(Trained({"4": Grid(1, (0.0, 1.0), (1.0,))}))
        return PassResult(replace(model, program=program, digest=program.digest()), True, structure=structure)

    def replay(self, module, structure):
        return module

    def ensures(self, before, after):
        """The budget has to see it."""


class Mend(Spoil):
    """Gives the last layer other weights."""

    name = "mend"

    def apply(self, model, task, context):
        module = copy.deepcopy(model.program.module)
        module[4].weight.data.fill_(5.0)
        program = model.program.with_module(module)
        return PassResult(replace(model, program=program, digest=program.digest()), True)


@pytest.fixture(autouse=True)
def spoiling(monkeypatch):
    kinds = {"fold_batch_norm": fold_batch_norm.FoldBatchNorm, "spoil": Spoil, "mend": Mend}
    monkeypatch.setattr(registry, "_loaded", kinds)


def recipe(passes="[{spoil: {}}, {fold_batch_norm: {}}]", on_break="roll_back", drop="rel:10%", judged=""):
    more = f", judged: {judged}" if judged else ""
    text = f"passes: {passes}\nbudget: {{max_drop: {drop}, metric: spread, on_break: {on_break}{more}}}\n"
    return parse_recipe(parse_yaml(f"schema_version: 1\n{text}", "recipe.yaml"))


def test_a_run_stops_unless_the_budget_says_otherwise(tasked):
    with pytest.raises(BudgetError, match="the pass 'spoil' takes spread from"):
        kit.builder_in(tasked).compressed(recipe(on_break="stop"))
    with pytest.raises(ConfigError, match="on_break.*'rollback'"):
        recipe(on_break="rollback")


def test_what_a_pass_loses_may_be_mended_by_a_later_one_where_the_budget_is_judged_at_the_end(tasked):
    chain = "[{spoil: {}}, {mend: {}}]"
    with pytest.raises(BudgetError, match="the pass 'spoil'"):
        kit.builder_in(tasked).compressed(recipe(chain, "stop"))
    made = kit.builder_in(tasked).compressed(recipe(chain, "stop", judged="at_the_end"))
    assert [record.kept for record in made.info.history] == [True, True]
    with pytest.raises(BudgetError, match="the pass 'fold_batch_norm'"):
        kit.builder_in(tasked).compressed(recipe(on_break="stop", judged="at_the_end"))
    with pytest.raises(ConfigError, match="cannot roll a pass back"):
        recipe(judged="at_the_end")


def test_a_run_goes_on_with_the_model_before_a_pass_that_is_rolled_back(tasked, heard):
    made = kit.builder_in(tasked, heard).compression(recipe())
    without = kit.builder_in(tasked).compressed(recipe("[{fold_batch_norm: {}}]"))
    assert made.state.info.digest == without.info.digest
    undone, folded = made.state.info.history
    assert (undone.kept, undone.modified, undone.structure) == (False, False, {})
    assert undone.metrics_after["spread"] < 0.9 * undone.metrics_before["spread"]
    assert undone.zeros_after - undone.zeros_before == 4 * 36 * 3
    assert folded.kept
    assert folded.metrics_before == undone.metrics_before
    assert [(stage.name, stage.kept) for stage in made.stages] == [
        (SOURCE, True),
        ("spoil", False),
        ("fold_batch_norm", True),
    ]
    assert [w.partition(" takes ")[0] for w in heard.warnings] == ["Rolled back: the pass 'spoil'"]


def test_nothing_of_a_pass_that_was_rolled_back_reaches_a_backend(tasked):
    assert trained_in(kit.builder_in(tasked).compressed(recipe()).info.history) == Trained()
    kept = recipe("[{spoil: {}}]", drop="rel:100%")
    assert trained_in(kit.builder_in(tasked).compressed(kept).info.history).grids.keys() == {"4"}


def test_results_from_the_cache_are_rolled_back_alike(tasked, monkeypatch):
    first = kit.builder_in(tasked).compression(recipe())
    for kind in (Spoil, fold_batch_norm.FoldBatchNorm):
        monkeypatch.setattr(kind, "apply", lambda *_: pytest.fail("the pass ran again"))
    heard = kit.Heard()
    again = kit.builder_in(tasked, heard).compression(recipe())
    assert again.state.info == first.state.info
    assert [stage.record for stage in again.stages] == [stage.record for stage in first.stages]
    assert len(heard.warnings) == 1
    assert again.state.live().digest == first.state.info.digest
    assert again.stages[1].state.live().digest == first.stages[1].state.info.digest != again.state.info.digest
    # Without the pass in the recipe, what came after it is there as well, and knows nothing of it.
    (record,) = kit.builder_in(tasked).compressed(recipe("[{fold_batch_norm: {}}]")).info.history
    assert record.name == "fold_batch_norm"
    # The same result judged by another budget: it stops.
    with pytest.raises(BudgetError):
        kit.builder_in(tasked).compressed(recipe(on_break="stop"))


def test_losses_add_up_against_the_source(tasked, monkeypatch):
    """Each pass alone loses a tenth less than the budget allows; the second one breaks it."""

    def weaken(_, model, task, context):
        module = copy.deepcopy(model.program.module)
        module[4].weight.data.mul_(0.94)
        module[4].bias.data.mul_(0.94)
        program = model.program.with_module(module)
        return PassResult(replace(model, program=program, digest=program.digest()), True)

    monkeypatch.setattr(Spoil, "apply", weaken)
    history = kit.builder_in(tasked).compressed(recipe("[{spoil: {}}, {spoil: {}}]")).info.history
    assert [record.kept for record in history] == [True, False]


def test_a_warning_is_given_once_however_often_the_model_is_asked_for(tasked, heard):
    builder = kit.builder_in(tasked, heard)
    assert builder.compressed(recipe()) is builder.compressed(recipe())
    assert len(heard.warnings) == 1


def test_a_checkpoint_comes_back_without_what_was_rolled_back(tasked, tmp_path):
    builder = kit.builder_in(tasked)
    made = builder.compressed(recipe())
    save_checkpoint(made.live(), builder.project.source_request, tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert (loaded.digest, loaded.history) == (made.info.digest, made.info.history)
    x = {"input": np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)}
    assert np.array_equal(loaded.program.run(x)["output"], made.live().program.run(x)["output"])
