from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.core.errors import BudgetError, ConfigError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.target import load_target
from edgekit.flow import ladder as ladders
from edgekit.flow.accuracy import accuracies
from edgekit.flow.ladder import NoRungError, fastest
from edgekit.flow.recipe import Budget
from edgekit.flow.rungs import Rung, document, title
from tests.unit.flow import kit

AUTO = """
    recipe:
      lowering: {quantize: {scheme: auto}}
    """


def project(folder, *, task=True, more=AUTO, **files):
    texts = {"edgekit.yaml": kit.project_yaml(task=task, more=more), "model.py": kit.MODEL}
    return kit.write(folder, texts | ({"task.py": kit.TASK} if task else {}) | files)


def budgeted(max_drop, metric="accuracy"):
    return AUTO + f"  budget: {{max_drop: {max_drop}, metric: {metric}}}\n"


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A ladder climbed once with OpenVINO, with a budget that lets everything pass, and what was heard."""
    heard = kit.Heard()
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("ladder-cache")
        patch.setenv("EDGEKIT_CACHE_DIR", str(cache))
        folder = project(tmp_path_factory.mktemp("ladder"), more=budgeted(1.0))
        yield ladders.make(kit.builder_in(folder, heard), kit.intel()), heard, cache


def test_the_smallest_rung_inside_the_budget_is_kept(climbed):
    made, heard, _ = climbed
    tried = [rung for rung in made.ladder.rungs if rung.built is not None]
    assert {"float16", "static_wi8_ai8"} <= {rung.name for rung in tried}
    inside = [rung for rung in tried if rung.inside]
    assert made.ladder.kept.bytes == min(rung.bytes for rung in inside)
    assert made.built is made.ladder.kept.built
    assert made.built.artifact.manifest.lowering.precision == made.ladder.kept.name != "auto"
    assert [rung.bytes for rung in made.ladder.finalists] == sorted(rung.bytes for rung in inside)[:3]
    assert any(note.startswith("kept: ") for note in heard.notes)


def test_what_each_rung_cost_and_gained_is_told(climbed):
    made, heard, _ = climbed
    said = next(note for note in heard.notes if note.startswith("static_wi8_ai8: "))
    rung = next(rung for rung in made.ladder.rungs if rung.name == "static_wi8_ai8")
    ratio = made.ladder.baseline.bytes / rung.bytes
    assert f"{ratio:.2f}× smaller" in said
    for part in ("download ", "accuracy ", " → ", " ± ", "on 7 validation examples", "agreement "):
        assert part in said
    plain = document(made.ladder)
    assert plain["rungs"][0]["name"] == "float32"
    shown = next(one for one in plain["rungs"] if one["name"] == "static_wi8_ai8")
    assert shown["accuracy"]["examples"] == 7
    assert shown["accuracy"]["host_agreement"].keys() == {"output"}
    assert shown["artifact_bytes"] == rung.bytes
    assert shown["lowering"]["quantize"]["scheme"] == "static_wi8_ai8"


def test_accuracy_before_and_after_is_known_of_each_split_that_set_nothing(climbed):
    found = {accuracy.split: accuracy for accuracy in accuracies(climbed[0].built)}
    assert found.keys() == {"validation", "test"}
    value = found["test"].host["accuracy"]
    assert found["test"].host_standard_error == pytest.approx((value * (1 - value) / 5) ** 0.5)
    assert found["test"].source.keys() == found["test"].host.keys()


def test_rungs_that_were_built_are_not_built_again(climbed, tmp_path, monkeypatch):
    made, _, cache = climbed
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(cache))
    heard = kit.Heard()
    builder = kit.builder_in(made.built.data and made_root(made), heard)
    again = ladders.make(builder, kit.intel())
    assert heard.count("converting") == 0
    assert [rung.bytes for rung in again.ladder.rungs] == [rung.bytes for rung in made.ladder.rungs]


def made_root(made):
    from pathlib import Path

    return Path(made.built.data.reference.partition(":")[0]).parent


def test_where_no_rung_is_inside_the_best_is_named(climbed, monkeypatch):
    made, _, cache = climbed
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(cache))
    builder = kit.builder_in(made_root(made))
    # Every precision moves the spread of the scores a little; none is allowed to.
    recipe = replace(builder.project.recipe, budget=Budget(-1.0, "spread"))
    builder.project = replace(builder.project, recipe=recipe)
    with pytest.raises(NoRungError) as caught:
        ladders.make(builder, kit.intel())
    assert isinstance(caught.value, BudgetError)
    assert caught.value.exit_code == 1
    best = caught.value.ladder.best
    assert f"The best is {title(best)}" in caught.value.message
    assert best.loss == min(rung.loss for rung in caught.value.ladder.rungs if rung.loss is not None and rung.sound)
    assert caught.value.details["ladder"]["kept"] is None


def test_a_budget_on_an_unknown_metric_is_refused(climbed, monkeypatch):
    made, _, cache = climbed
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(cache))
    builder = kit.builder_in(made_root(made))
    recipe = replace(builder.project.recipe, budget=Budget(0.1, "top7"))
    builder.project = replace(builder.project, recipe=recipe)
    with pytest.raises(ConfigError, match="'top7'"):
        ladders.make(builder, kit.intel())


def test_without_a_task_outputs_are_judged_and_static_integers_are_left_out(plain, heard):
    kit.write(plain, {"edgekit.yaml": kit.project_yaml(more=AUTO)})
    made = ladders.make(kit.builder_in(plain, heard), kit.intel())
    static = next(rung for rung in made.ladder.rungs if rung.name == "static_wi8_ai8")
    assert static.refused == "there are no calibration examples"
    assert made.ladder.default_budget
    assert "golden and random" in made.ladder.judged_by
    assert any("no validation examples" in said for said in heard.warnings)
    assert any("The recipe has no budget" in said for said in heard.notes)
    assert made.ladder.kept.inside


def test_the_ladder_needs_verification(tasked, heard):
    kit.write(tasked, {"edgekit.yaml": kit.project_yaml(task=True, more=AUTO)})
    builder = kit.builder_in(tasked, heard)
    with pytest.raises(ConfigError, match="cannot do without verification"):
        ladders.make(builder, kit.intel(), verify=False)
    with pytest.raises(ConfigError, match="only `compile` and `deploy`"):
        builder.build(kit.intel())


def test_an_override_that_fits_no_layer_is_named_before_any_conversion(tasked, heard):
    builder = kit.builder_in(tasked, heard)
    lowering = Lowering(Quantize("static_wi8_ai8"), {"44": "float32"})
    with pytest.raises(ConfigError, match="'44' fits no layer with weights. Did you mean '4'"):
        builder.made(load_target("linux-x86"), "litert", lowering)
    assert heard.count("converting") == 0


def rungs(*sizes):
    return [Rung(f"scheme{place}", Lowering(Quantize("float16"))) for place, _ in enumerate(sizes)]


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ({"scheme0": [5.0, 5.1], "scheme1": [2.0, 2.1, 50.0]}, "scheme1"),
        ({"scheme0": [2.05], "scheme1": [2.0]}, "scheme0"),
        ({"scheme0": [], "scheme1": [2.0]}, "scheme1"),
        ({"scheme0": [], "scheme1": []}, "scheme0"),
    ],
)
def test_the_faster_finalist_is_kept_and_of_equally_fast_ones_the_smaller(times, kept):
    assert fastest(rungs(1, 2), times)[0].name == kept


WIDE = """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
                            nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        return net, (torch.rand(1, 1, 8, 8),)
    """


DISTANCE = """
    import numpy as np
    import torch
    from model import build

    class Digits:
        metric = "distance"
        direction = "smaller"

        def examples(self, split):
            generator = np.random.default_rng(len(split))
            if split in ("calibration", "validation"):
                yield {"input": generator.random((12, 1, 8, 8), dtype=np.float32)}

        def score(self, outputs, split):
            (batch,) = self.examples(split)
            with torch.no_grad():
                wanted = build()[0](torch.from_numpy(batch["input"])).numpy()
            return {"distance": float(np.abs(np.concatenate([b["output"] for b in outputs]) - wanted).max())}
    """


@pytest.mark.slow
def test_where_static_integers_lose_too_much_the_most_sensitive_layers_stay_in_float(tmp_path, heard, monkeypatch):
    monkeypatch.setattr(ladders, "_BEFORE_MIXED", ("static_wi8_ai8",))
    monkeypatch.setattr(ladders, "_AFTER_MIXED", ())
    files = {"model.py": WIDE, "task.py": DISTANCE}
    builder = kit.builder_in(project(tmp_path / "wide", more=budgeted("0.000001", "distance"), **files), heard)
    found = ladders.climb(builder, load_target("linux-x86"), "litert")
    static, *mixed = found.rungs
    assert static.built is not None
    assert not static.inside
    assert [rung.name for rung in mixed] == ["mixed"] * 2
    for count, rung in enumerate(mixed, 1):
        assert rung.built is not None, rung.refused
        assert rung.built.artifact.manifest.lowering.overrides == rung.lowering.overrides
        assert list(rung.lowering.overrides.values()) == ["float32"] * count
        assert static.bytes < rung.bytes < found.baseline.bytes
    assert mixed[-1].loss < static.loss
    assert found.kept is None
