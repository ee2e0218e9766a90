"""`edgekit compress`: what is shown, a budget, a seed, and a run that is killed."""

from __future__ import annotations

import json
import signal

import pytest

from tests.e2e.kit import PROJECT, TASK, write

TRAINABLE = """

    def batches(self, split):
        images, labels = make(split)
        for start in range(0, len(images), 32):
            yield {"image": images[start : start + 32], "label": labels[start : start + 32]}

    def loss(self, outputs, batch):
        import torch

        return torch.nn.functional.cross_entropy(outputs["scores"], torch.as_tensor(batch["label"]).long())
"""
LOOPS = """
    import time
    from pathlib import Path

    FOLDER = Path(__file__).parent

    def said(word):
        with (FOLDER / "log").open("a") as log:
            log.write(word + "\\n")

    def first(module, task, options):
        said("first")

    def second(module, task, options):
        said("second")
        while (FOLDER / "hold").exists():
            time.sleep(0.01)
        module.head.bias.data += 0.001
"""
TWO_LOOPS = """
    schema_version: 1
    passes:
      - finetune: {loop: "loops.py:first"}
      - finetune: {loop: "loops.py:second"}
"""
LOSSY = """
    schema_version: 1
    passes:
      - prune_magnitude: {sparsity: 0.97}
      - fold_batch_norm: {}
    budget: {max_drop: 0.05, on_break: %s}
"""


@pytest.fixture
def project(person):
    return write(person.cwd, {**PROJECT, "task.py": TASK + TRAINABLE.removeprefix("\n")})


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_after_the_pass_that_finished(person, project):
    write(project, {"loops.py": LOOPS, "recipe.yaml": TWO_LOOPS, "hold": ""})
    log = project / "log"
    running = person.start("compress")
    running.wait_for(lambda: log.exists() and "second" in log.read_text(), "the second pass")
    running.interrupt(signal.SIGKILL)
    assert running.done().code == -signal.SIGKILL
    (project / "hold").unlink()
    found = person.run("compress", "--json").check().json
    assert log.read_text().split() == ["first", "second", "second"]
    assert [stage["name"] for stage in found["stages"]] == ["source", "finetune", "finetune"]
    assert [stage["changed"] for stage in found["stages"]] == [False, False, True]


@pytest.mark.slow
def test_each_stage_is_shown_with_what_it_costs_and_the_test_split_is_reported(person, project):
    done = person.run("compress", "--json").check()
    found = done.json
    source, folded = found["stages"]
    assert (source["kept"], source["seconds"], folded["changed"]) == (True, None, True)
    assert folded["macs"] == source["macs"] == 8 * 9 * 36 + 72 * 4
    assert folded["parameters"] == found["parameters"] == source["parameters"] - 16
    assert folded["weight_bytes"] < source["weight_bytes"]
    assert source["latency"]["ratio"] == 1
    assert folded["latency"]["ratio"] > 0
    assert "the device's own numbers come from deploy" in found["latency"]["of"]
    assert (found["test"]["examples"], found["validation_examples"]) == (60, 60)
    assert found["test"]["source"]["top1"] == found["test"]["result"]["top1"]
    assert found["history"][0]["kept"]
    shown = person.run("compress").check().out
    assert "test split (60 examples, only reported): top1 0." in shown
    assert "the source timed a second time" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("1 fold_batch_norm")]
    assert [part for part in ("yes", "2,880", "1 batch norms folded") if part not in row] == []
    page = project / "build" / "corners" / "checkpoint" / "report.html"
    assert found["report"] == str(page)
    assert "fold_batch_norm" in page.read_text()


@pytest.mark.slow
def test_a_pass_over_budget_ends_the_run_or_is_rolled_back(person, project):
    write(project, {"recipe.yaml": LOSSY % "stop"})
    assert "the pass 'prune_magnitude' takes top1 from" in person.run("compress").check(1).err
    assert not (project / "build").exists()
    write(project, {"recipe.yaml": LOSSY % "roll_back"})
    done = person.run("compress", "--json").check()
    assert "warning: Rolled back: the pass 'prune_magnitude' takes top1 from" in done.err
    assert [(stage["name"], stage["kept"]) for stage in done.json["stages"]] == [
        ("source", True),
        ("prune_magnitude", False),
        ("fold_batch_norm", True),
    ]
    # What was undone is neither in the checkpoint nor in what is compiled from it.
    checkpoint = json.loads((project / "build" / "corners" / "checkpoint" / "checkpoint.json").read_text())
    assert [record["kept"] for record in checkpoint["history"]] == [False, True]
    made = person.run("compile", "build/corners/checkpoint", "--task", "task.py:Corners", "--target", "linux-x86")
    made.check()


@pytest.mark.slow
def test_a_seed_on_the_command_line_takes_the_recipes_place(person, project):
    drawn = "import torch\n\ndef draw(module, task, options):\n    module.head.bias.data += torch.rand(4)\n"
    text = 'schema_version: 1\nseed: 4\npasses: [{finetune: {epochs: 1, loop: "draw.py:draw"}}]\n'
    write(project, {"draw.py": drawn, "recipe.yaml": text})
    digests = [
        person.run("compress", "--json", *seed).check().json["stages"][1]["digest"]
        for seed in ((), ("--seed", "4"), ("--seed", "5"))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_without_the_reports_libraries_there_is_a_checkpoint_and_no_report(person, project):
    without = person.without("plotly")
    assert person.run("compress", "--json", **without).check().json["report"] is None
    said = person.run("compress", "--html", "page.html", **without).check(2).err
    assert "pip install 'edgekit[report]'" in said
