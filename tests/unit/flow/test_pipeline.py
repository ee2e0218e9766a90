from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from edgekit.backends.base import registry as backends
from edgekit.core import schema
from edgekit.core.errors import BudgetError, ConfigError, PassError, UnsupportedModelError
from edgekit.core.schema import parse_yaml
from edgekit.core.user_code import fresh_modules
from edgekit.flow.build import Builder
from edgekit.flow.cache import Cache
from edgekit.flow.checkpoint import WEIGHTS, load_checkpoint, read_checkpoint, save_checkpoint
from edgekit.flow.pipeline import check_budget
from edgekit.flow.project import Overrides, load_project
from edgekit.flow.recipe import Budget, parse_recipe
from edgekit.flow.source import load_source
from edgekit.passes import fold_batch_norm
from edgekit.passes.base import PassResult, registry
from tests.unit.flow import kit


def recipe(text="passes: [{fold_batch_norm: {}}]\n"):
    return parse_recipe(parse_yaml("schema_version: 1\n" + text, "recipe.yaml"))


class Spoil(fold_batch_norm.FoldBatchNorm):
    """A pass that takes the last layer's weights away, and says it is fine."""

    name = "spoil"
    killed = False

    def apply(self, model, task, context):
        if self.killed:
            raise PassError("killed")
        module = copy.deepcopy(model.program.module)
        module[4].weight.data.zero_()
        program = model.program.with_module(module)
        return PassResult(replace(model, program=program, digest=program.digest()), modified=True)

    def replay(self, module, structure):
        return module

    def ensures(self, before, after):
        """The budget has to see it."""


@pytest.fixture
def spoiling(monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {"fold_batch_norm": fold_batch_norm.FoldBatchNorm, "spoil": Spoil})


def test_a_pass_is_recorded_with_metrics_and_parameters(tasked):
    builder = kit.builder_in(tasked)
    made = builder.compressed(recipe())
    (record,) = made.info.history
    assert (record.name, record.modified, record.notes) == ("fold_batch_norm", True, ("1 batch norms folded",))
    assert set(record.metrics_before) == {"accuracy", "spread"}
    assert record.metrics_after["spread"] == pytest.approx(record.metrics_before["spread"], rel=1e-4)
    assert record.parameters_before - record.parameters_after == 4
    assert made.info.digest != builder.source.info.digest


def test_a_finished_pass_is_not_run_again(tasked, monkeypatch):
    first = kit.builder_in(tasked).compressed(recipe())
    monkeypatch.setattr(fold_batch_norm.FoldBatchNorm, "apply", lambda *_: pytest.fail("the pass ran again"))
    heard = kit.Heard()
    second = kit.builder_in(tasked, heard).compressed(recipe())
    assert second.info == first.info
    assert heard.steps == []
    assert second.live().digest == first.info.digest


def test_a_run_goes_on_after_the_last_pass_that_finished(tasked, monkeypatch, spoiling):
    both = recipe("passes: [{fold_batch_norm: {}}, {spoil: {}}]\n")
    monkeypatch.setattr(Spoil, "killed", True)
    with pytest.raises(PassError, match="killed"):
        kit.builder_in(tasked).compressed(both)
    monkeypatch.setattr(Spoil, "killed", False)
    heard = kit.Heard()
    made = kit.builder_in(tasked, heard).compressed(both)
    assert [step for step in heard.steps if step.startswith("pass ")] == ["pass spoil"]
    assert [record.name for record in made.info.history] == ["fold_batch_norm", "spoil"]


def test_rebuilding_a_finished_pass_leaves_the_source_as_it_is(tasked):
    kit.builder_in(tasked).compressed(recipe())
    builder = kit.builder_in(tasked)
    made = builder.compressed(recipe())
    x = {"input": np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)}
    np.testing.assert_allclose(
        made.live().program.run(x)["output"], builder.source.live().program.run(x)["output"], atol=1e-5
    )
    assert "BatchNorm2d" in repr(builder.source.live().program.module)
    assert "BatchNorm2d" not in repr(made.live().program.module)


def test_a_pass_that_changed_nothing_is_said(plain, heard):
    made = kit.builder_in(plain, heard).compressed(recipe("passes: [{fold_batch_norm: {}}, {fold_batch_norm: {}}]\n"))
    assert [record.modified for record in made.info.history] == [True, False]
    assert heard.warnings == ["The pass 'fold_batch_norm' changed nothing: there is no batch norm to fold."]


def test_another_task_or_data_runs_the_pass_again(tasked):
    kit.builder_in(tasked).compressed(recipe())
    task = tasked / "task.py"
    task.write_text(task.read_text().replace("(4, 3)", "(4, 2)"))
    heard = kit.Heard()
    kit.builder_in(tasked, heard).compressed(recipe())
    assert heard.count("pass ") == 1


def test_a_pass_that_loses_too_much_breaks_the_budget(tasked, spoiling):
    lossy = recipe("passes: [{fold_batch_norm: {}}, {spoil: {}}]\nbudget: {max_drop: rel:10%, metric: spread}\n")
    with pytest.raises(BudgetError) as caught:
        kit.builder_in(tasked).compressed(lossy)
    assert "the pass 'spoil' takes spread from" in caught.value.message
    assert "on the validation split" in caught.value.message


def test_a_budget_about_an_unknown_metric_is_refused(tasked):
    with pytest.raises(ConfigError, match="about 'acuracy'.*accuracy, spread"):
        kit.builder_in(tasked).compressed(
            recipe("passes: [{fold_batch_norm: {}}]\nbudget: {max_drop: 0.1, metric: acuracy}\n")
        )


def test_a_budget_that_nothing_can_judge_is_said(plain, heard):
    kit.builder_in(plain, heard).compressed(recipe("budget: {max_drop: 0.1}\n"))
    assert "limits nothing" in heard.warnings[0]


@pytest.mark.parametrize(
    "direction, before, after, max_drop, breaks",
    [
        ("larger", 0.9, 0.89, 0.01, False),
        ("larger", 0.9, 0.88, 0.01, True),
        ("larger", 0.9, 0.95, 0.0, False),
        ("larger", 0.9, 0.88, "rel:3%", False),
        ("smaller", 2.0, 2.1, 0.05, True),
        ("smaller", 2.0, 1.5, 0.0, False),
    ],
)
def test_a_budget_is_judged_in_the_metrics_direction(tasked, direction, before, after, max_drop, breaks):
    task = tasked / "task.py"
    task.write_text(task.read_text().replace('"larger"', f'"{direction}"'))
    tools = kit.builder_in(tasked).tools

    def check():
        check_budget(Budget(max_drop), {"accuracy": before}, {"accuracy": after}, "it", tools)

    if not breaks:
        check()
        return
    with pytest.raises(BudgetError):
        check()


@pytest.fixture
def saved(tasked, tmp_path):
    builder = kit.builder_in(tasked)
    made = builder.compressed(recipe())
    folder = tmp_path / "out" / "checkpoint"
    save_checkpoint(made.live(), builder.project.source_request, folder, with_program=True)
    return made, folder


def test_a_checkpoint_comes_back_whole_and_without_pickle(saved, monkeypatch):
    made, folder = saved
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_: pytest.fail("unpickled"))
    loaded = load_checkpoint(folder)
    assert (loaded.digest, loaded.history) == (made.info.digest, made.info.history)
    x = made.live().example_inputs
    assert np.array_equal(loaded.program.run(x)["output"], made.live().program.run(x)["output"])
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "program.pt2", WEIGHTS]


def test_a_checkpoint_is_a_source_and_its_history_goes_on(saved, tasked):
    made, folder = saved
    project = load_project(tasked, Overrides(source=str(folder)), {})
    heard = kit.Heard()
    state = load_source(project, Cache(), heard)
    assert (state.info.digest, state.info.history) == (made.info.digest, made.info.history)
    again = kit.Heard()
    load_source(project, Cache(), again)
    assert (heard.count("loading"), again.count("loading")) == (1, 0)


def test_a_checkpoint_whose_source_is_gone_or_changed_says_so(saved, tasked):
    _, folder = saved
    model = tasked / "model.py"
    text = model.read_text()
    model.write_text(text.replace("nn.ReLU()", "nn.Tanh()"))
    with fresh_modules(), pytest.raises(PassError, match="does not give the model that was saved"):
        load_checkpoint(folder)
    model.write_text(text.replace("4 * 36, 3", "4 * 36, 5"))
    with fresh_modules(), pytest.raises(ConfigError, match="do not fit the structure"):
        load_checkpoint(folder)
    model.unlink()
    with pytest.raises(ConfigError, match="not there any more"):
        load_checkpoint(folder)


def test_a_damaged_checkpoint_is_refused(saved):
    _, folder = saved
    weights = folder / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-3] ^= 0x40
    weights.write_bytes(data)
    with pytest.raises(PassError, match="does not give the model that was saved"):
        load_checkpoint(folder)
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="do not fit"):
        load_checkpoint(folder)


def test_a_checkpoint_of_another_version_is_refused(saved):
    _, folder = saved
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": schema.SCHEMA_VERSION + 1}))
    with pytest.raises(ConfigError, match="schema_version"):
        read_checkpoint(folder)


def test_a_program_that_is_no_live_module_cannot_be_a_checkpoint(saved, tasked, tmp_path):
    _, folder = saved
    project = load_project(tasked, Overrides(source=str(folder / "program.pt2")), {})
    state = load_source(project, Cache(), kit.Heard())
    with pytest.raises(UnsupportedModelError, match="live torch module"):
        save_checkpoint(state.live(), project.source_request, tmp_path / "other")


def test_what_a_pass_costs_and_gains_is_in_its_record(plain):
    (record,) = kit.builder_in(plain).compressed(recipe()).info.history
    assert record.macs_before == record.macs_after == 4 * 9 * 36 + 4 * 36 * 3
    # The norm's four vectors of four and its counter are gone, the convolution has a bias.
    assert record.weight_bytes_before - record.weight_bytes_after == 4 * 4 * 4 + 8 - 4 * 4
    assert record.zeros_before == 4
    assert record.seconds > 0


def test_a_history_without_costs_is_still_read(saved):
    _, folder = saved
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text())
    new = ("macs_before", "macs_after", "weight_bytes_before", "weight_bytes_after", "zeros_before", "zeros_after")
    for record in document["history"]:
        for key in (*new, "seconds", "kept"):
            del record[key]
    path.write_text(json.dumps(document))
    (record,) = load_checkpoint(folder).history
    assert (record.macs_after, record.kept) == (0, True)


def test_how_long_a_pass_took_does_not_make_another_artifact(tasked, monkeypatch):
    from edgekit.flow import pipeline

    keys = []
    for seconds in (1.0, 2.0):
        monkeypatch.setattr(pipeline.time, "monotonic", iter([0.0, seconds] * 50).__next__)
        builder = kit.builder_in(tasked, enabled=False)
        state = builder.compressed(recipe())
        assert state.info.history[0].seconds == seconds
        keys.append(builder._artifact_key(backends.create("openvino"), state, recipe().lowering, kit.intel(), None))
    assert keys[0] == keys[1]


def test_a_pass_that_changed_the_model_for_nothing_says_so(tasked, spoiling):
    notes = kit.builder_in(tasked).compressed(recipe("passes: [{spoil: {}}, {spoil: {}}]\n")).info.history
    assert notes[0].notes == ()
    assert notes[1].notes == ("did not pay: parameters and MACs are as before, accuracy is no better",)


def test_passes_go_on_from_a_checkpoint(saved, tasked, spoiling, tmp_path):
    made, folder = saved
    project = load_project(tasked, Overrides(source=str(folder)), {})
    for _ in range(2):
        builder = Builder(project, kit.Heard(), Cache())
        state = builder.compressed(recipe("passes: [{spoil: {}}]\n"))
        assert [record.name for record in state.info.history] == ["fold_batch_norm", "spoil"]
        assert state.live().digest == state.info.digest != made.info.digest
    save_checkpoint(state.live(), project.source_request, tmp_path / "second")
    loaded = load_checkpoint(tmp_path / "second")
    assert (loaded.digest, loaded.history) == (state.info.digest, state.info.history)


def test_a_seed_that_is_asked_for_takes_the_recipes_place(tasked):
    write = kit.write(tasked, {"recipe.yaml": "schema_version: 1\nseed: 3\npasses: [{fold_batch_norm: {}}]\n"})
    given = [load_project(write, Overrides(recipe=str(write / "recipe.yaml"), seed=s), {}) for s in (None, 0, 7)]
    assert [project.recipe.seed for project in given] == [3, 0, 7]
    own = replace(kit.intel(), recipe={"schema_version": 1, "seed": 5})
    assert [replace(project, recipe=None).recipe_for(own).seed for project in given] == [5, 0, 7]


def test_a_pass_that_trains_is_refused_before_any_pass_runs(tasked, monkeypatch):
    monkeypatch.setattr(fold_batch_norm.FoldBatchNorm, "apply", lambda *_: pytest.fail("a pass ran"))
    lacking = r"The pass 'finetune' trains the model, but the task '.*' lacks: batches, loss"
    with pytest.raises(ConfigError, match=lacking):
        kit.builder_in(tasked).compressed(recipe("passes: [{fold_batch_norm: {}}, {finetune: {epochs: 1}}]\n"))


def test_a_merged_adapter_needs_no_task(plain):
    steps = recipe("passes: [{lora: {adapter: adapter}}, {prune_magnitude: {sparsity: 0.5}}]\n").passes
    assert [step.trains for step in steps] == [False, False]
