"""Students that learn from teachers."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.errors import ConfigError
from edgekit.core.schema import parse_yaml
from edgekit.flow.checkpoint import load_checkpoint, save_checkpoint
from edgekit.flow.recipe import parse_recipe
from edgekit.frontends.base import SourceRequest, frontend_for
from edgekit.passes._distill.losses import cosine_loss, match, soft_loss
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.distill import Distill, DistillOptions, FeaturePair
from edgekit.passes.finetune import Finetune
from tests.unit.passes.training_kit import Corners, Heard, accuracy, assert_same_bits, model_of, state_of

STUDENT = """
import torch
from torch import nn
import sizes

def build(width=1.0, depth=None):
    hidden = int(sizes.HIDDEN * width)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, hidden), nn.ReLU(), nn.Linear(hidden, 4))

def with_example():
    return build(), torch.zeros(1, 1, 6, 6)

def fixed():
    return build()

def five():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5))

def soft():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Softmax(-1))

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()

    def forward(self, image):
        return {"scores": self.inner(image)}

def conv():
    return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 4))

def number():
    return 3

def breaks():
    return nn.Linear(7, 4)
"""
TRAINING = Training(epochs=3, learning_rate=0.02)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "student.py").write_text(STUDENT)
    (tmp_path / "sizes.py").write_text("HIDDEN = 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    training = Training(epochs=5, learning_rate=0.02)
    return Finetune(training).apply(model_of(), Corners(), PassContext(tmp_path_factory.mktemp("t"))).model


def distilled(folder, model, *, task=None, progress=None, seed=0, **options):
    options = {"finetune": TRAINING, **options}
    folder.mkdir(exist_ok=True)
    context = PassContext(folder, seed, progress or Heard())
    return Distill(DistillOptions(**options)).apply(model, task or Corners(), context)


def divergence(model, teacher):
    logits = [
        [torch.from_numpy(m.program.run(batch)["logits"]) for batch in Corners().examples("validation")]
        for m in (model, teacher)
    ]
    return float(soft_loss(torch.cat(logits[0]), torch.cat(logits[1]), 1.0, -1, probabilities=False))


def test_a_student_learns_what_its_teacher_says_and_the_teacher_is_untouched(folder, teacher):
    before = copy.deepcopy(state_of(teacher))
    options = {"student": "student.py:build", "finetune": Training(epochs=8, learning_rate=0.02)}
    result = distilled(folder / "a", teacher, alpha=1.0, **options)
    assert_same_bits(state_of(teacher), before)
    assert accuracy(result.model) > 0.9
    # The same student, which all but only sees labels, is as good and yet further from the teacher.
    labelled = distilled(folder / "b", teacher, alpha=1e-9, **options)
    assert divergence(result.model, teacher) < 0.5 * divergence(labelled.model, teacher)
    assert result.modified is True
    assert result.notes[0].startswith(f"teacher → student: top1 {accuracy(teacher):.4g} → {accuracy(result.model):.4g}")
    assert "the teacher's answers to 192 training examples were kept on disk" in result.notes


def test_labels_are_not_needed_where_the_teacher_has_all_the_say(folder, teacher):
    class Unlabelled(Corners):
        def loss(self, outputs, batch):
            raise AssertionError

    assert (
        accuracy(distilled(folder / "w", teacher, task=Unlabelled(), student="student.py:build", alpha=1).model) > 0.8
    )


def test_the_loss_is_hintons():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 4, dtype=torch.double)
    found = soft_loss(ours, theirs, 3.0, -1, probabilities=False)
    p, q = torch.softmax(theirs / 3, 1), torch.softmax(ours / 3, 1)
    assert float(found) == pytest.approx(float(9 * (p * (p / q).log()).sum(1).mean()))
    # Probabilities say the same as the logits that they come from; and classes may lie along another axis.
    same = soft_loss(ours.softmax(1), theirs.softmax(1), 3.0, -1, probabilities=True)
    assert float(same) == pytest.approx(float(found))
    turned = soft_loss(ours.T[None], theirs.T[None], 3.0, 1, probabilities=False)
    assert float(turned) == pytest.approx(float(found))


class Counting(nn.Module):
    """Counts how many examples it is asked for."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, [0]

    def forward(self, image):
        if not torch.compiler.is_exporting():
            self.rows[0] += image.shape[0]
        return self.inner(image)

    def __deepcopy__(self, memo):
        made = Counting(copy.deepcopy(self.inner, memo))
        made.rows = self.rows
        return made


def test_the_teacher_is_asked_once_though_the_order_changes_each_epoch(folder, teacher):
    counting = model_of(Counting(copy.deepcopy(teacher.program.module)))
    rows = counting.program.module.rows
    rows[0] = 0
    first = distilled(folder / "w", counting, student="student.py:build")
    asked = rows[0]
    # All training examples, the validation examples for its score, and the example input a few times.
    assert 192 + 96 <= asked < 192 + 96 + 8
    (folder / "w" / "distill.checkpoint.pt").unlink()
    again = distilled(folder / "w", counting, student="student.py:build")
    assert rows[0] - asked == asked - 192
    assert_same_bits(state_of(first.model), state_of(again.model))


def test_what_was_kept_of_another_teacher_is_not_used(folder, teacher):
    distilled(folder / "w", model_of(), student="student.py:build")
    (folder / "w" / "distill.checkpoint.pt").unlink()
    after_another = distilled(folder / "w", teacher, student="student.py:build")
    assert_same_bits(
        state_of(after_another.model), state_of(distilled(folder / "v", teacher, student="student.py:build").model)
    )


def test_inputs_that_are_new_each_epoch_are_put_to_the_teacher_as_they_come_and_that_is_told(folder, teacher):
    class Noisy(Corners):
        def batches(self, split):
            for inputs, labels in super().batches(split):
                noise = np.random.normal(0, 0.1, inputs["image"].shape).astype(np.float32)  # noqa: NPY002
                yield {"image": inputs["image"] + noise}, labels

    result = distilled(folder / "w", teacher, task=Noisy(), student="student.py:build", alpha=1.0)
    assert accuracy(result.model) > 0.8
    # The first epoch draws what the asking drew; the second and the third do not.
    assert any("67% of the batches had inputs that it had not seen" in note for note in result.notes)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(folder, teacher):
    class Killed(Corners):
        def set_epoch(self, epoch):
            if epoch == 3:
                raise KeyboardInterrupt

    options = {"student": "student.py:conv", "features": (FeaturePair("0", "0"),)}
    whole = distilled(folder / "a", teacher, **options)
    with pytest.raises(KeyboardInterrupt):
        distilled(folder / "b", teacher, task=Killed(), **options)
    heard = Heard()
    resumed = distilled(folder / "b", teacher, progress=heard, **options)
    assert heard.notes == ["distill goes on after epoch 2 of 3"]
    assert_same_bits(state_of(resumed.model), state_of(whole.model))


def test_features_of_other_widths_and_sizes_are_learned_through_a_projection_that_does_not_stay(folder, teacher):
    def apart(model):
        """What is left of the teacher's features after the best linear map of the student's."""
        images = torch.from_numpy(np.concatenate([b["image"] for b in Corners().examples("validation")]))
        with torch.no_grad():
            ours, theirs = model.program.module[0](images), teacher.program.module[0](images)
        theirs = nn.functional.adaptive_avg_pool2d(theirs, 2)
        rows = [value.movedim(1, -1).flatten(0, 2) for value in (ours, theirs)]
        rows[0] = torch.cat([rows[0], torch.ones(len(rows[0]), 1)], 1)
        left = rows[1] - rows[0] @ torch.linalg.lstsq(rows[0], rows[1]).solution
        return float(left.square().mean())

    task = Corners()
    task.splits = {"train"}
    options = {"student": "student.py:conv", "finetune": Training(epochs=6, learning_rate=0.02), "task": task}
    plain = distilled(folder / "a", teacher, alpha=0.5, **options)
    taught = distilled(folder / "b", teacher, alpha=0.5, features=(FeaturePair("0", "0", 10.0),), **options)
    assert apart(taught.model) < 0.9 * apart(plain.model)
    assert state_of(taught.model).keys() == state_of(plain.model).keys()
    assert not any(module._forward_hooks for module in taught.model.program.module.modules())


def test_features_are_matched_by_shape():
    def pair(theirs, ours):
        return match(("t", torch.zeros(theirs)), ("s", torch.zeros(ours)), 1.0)

    same = pair((1, 8, 5, 5), (1, 8, 5, 5))
    assert (same.projected, same.places) == (False, None)
    image = pair((1, 8, 7, 7), (1, 4, 5, 9))
    assert (image.axis, image.channels, image.places) == (1, (4, 8), (5, 7))
    assert pair((1, 10, 32), (1, 10, 16)).axis == 2
    assert pair((1, 32, 10), (1, 16, 10)).axis == 1
    with pytest.raises(ConfigError, match=r"'t' of the teacher gives \[1, 10, 32\], 's' of the student \[1, 9, 16\]"):
        pair((1, 10, 32), (1, 9, 16))


def test_a_model_that_was_made_smaller_learns_back_from_its_whole(folder, teacher, tmp_path):
    weights = tmp_path / "whole.pt"
    torch.save(teacher.program.module.state_dict(), weights)
    (folder / "whole.py").write_text(
        "import torch\nfrom tests.unit.passes.training_kit import cnn\n"
        f"def build():\n    net = cnn()\n    net.load_state_dict(torch.load({str(weights)!r}))\n    return net\n"
        "def fresh():\n    return cnn()\n"
    )
    hurt = copy.deepcopy(teacher.program.module)
    with torch.no_grad():
        hurt[3].weight[::2] = 0
    hurt = model_of(hurt)
    result = distilled(folder / "w", hurt, teacher="whole.py:build", finetune=Training(8, 0.02))
    assert accuracy(result.model) > accuracy(hurt) + 0.1
    assert result.structure == {}
    heard = Heard()
    distilled(folder / "v", teacher, teacher="whole.py:fresh", progress=heard)
    assert "does its factory load its weights?" in heard.warnings[0]


def test_other_outputs_are_compared_by_their_squared_difference(folder, teacher):
    result = distilled(
        folder / "w", teacher, student="student.py:build", alpha=1.0, loss="mse", finetune=Training(8, 0.02)
    )
    batches = list(Corners().examples("validation"))
    theirs, ours = (np.concatenate([m.program.run(b)["logits"] for b in batches]) for m in (teacher, result.model))
    assert np.mean((theirs - ours) ** 2) < 0.5 * theirs.var()


def test_embeddings_are_compared_by_their_direction_alone(folder, teacher):
    result = distilled(
        folder / "w", teacher, student="student.py:build", alpha=1.0, loss="cosine", finetune=Training(8, 0.02)
    )
    batches = list(Corners().examples("validation"))
    theirs, ours = (
        torch.from_numpy(np.concatenate([m.program.run(b)["logits"] for b in batches])) for m in (teacher, result.model)
    )
    assert float(torch.cosine_similarity(theirs, ours).mean()) > 0.9
    assert float(cosine_loss(5 * theirs, theirs, -1)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_loss(-theirs, theirs, -1)) == pytest.approx(2, abs=1e-6)


def test_a_teacher_that_runs_along_computes_in_the_precision_of_training(folder, teacher):
    class Anew(Corners):
        def batches(self, split):
            for inputs, labels in super().batches(split):
                noise = np.random.normal(0, 0.01, inputs["image"].shape).astype(np.float32)  # noqa: NPY002
                yield {"image": inputs["image"] + noise}, labels

    seen = set()
    handle = teacher.program.module[0].register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    training = Training(epochs=2, learning_rate=0.02, precision="bfloat16")
    options = {"student": "student.py:conv", "alpha": 1.0, "features": (FeaturePair("0", "0"),), "finetune": training}
    try:
        result = distilled(folder / "w", teacher, task=Anew(), **options)
    finally:
        handle.remove()
    assert any("it ran on them" in note for note in result.notes)
    # What it said when it was asked once, and what it said while the student trained.
    assert seen == {torch.float32, torch.bfloat16}
    assert all(tensor.dtype != torch.bfloat16 for tensor in state_of(result.model).values())


def test_width_is_handed_to_the_factory_and_a_checkpoint_builds_the_same_student(folder, teacher):
    (folder / "model.py").write_text(
        "import torch\nfrom tests.unit.passes.training_kit import cnn\n"
        "def build():\n    torch.manual_seed(0)\n    return cnn(), (torch.zeros(1, 1, 6, 6),)\n"
    )
    request = SourceRequest("model.py:build", folder, "net")
    model = frontend_for(request.source).load(request)

    class Images(Corners):
        def examples(self, split):
            yield from ({"input": batch["image"]} for batch in super().examples(split))

        def batches(self, split):
            yield from (({"input": inputs["image"]}, labels) for inputs, labels in super().batches(split))

        def loss(self, outputs, batch):
            return super().loss({"logits": outputs["output"]}, batch)

        def score(self, outputs, split):
            return super().score([{"logits": batch["output"]} for batch in outputs], split)

    text = "{student: 'student.py:build', width: 2, finetune: {epochs: 1}}"
    (step,) = parse_recipe(parse_yaml(f"schema_version: 1\npasses: [{{distill: {text}}}]", "r.yaml")).passes
    (folder / "work").mkdir()
    result = step.apply(model, Images(), PassContext(folder / "work"))
    assert result.model.program.module[1].out_features == 16
    assert result.structure["student"] == "student.py:build"
    assert {path.name for path in step.own_files(Images())} == {"student.py", "sizes.py"}

    from dataclasses import replace

    from edgekit.core import schema
    from edgekit.core.model import PassRecord

    record = PassRecord("distill", schema.to_plain(step.options), structure=result.structure)
    save_checkpoint(replace(result.model, history=(record,)), request, folder / "kept")
    again = load_checkpoint(folder / "kept")
    assert again.digest == result.model.digest
    assert_same_bits(state_of(again), state_of(result.model))
    (folder / "sizes.py").write_text("HIDDEN = 9\n")
    with pytest.raises(ConfigError, match="built by student.py:build, which has changed since"):
        load_checkpoint(folder / "kept")
    (folder / "student.py").unlink()
    with pytest.raises(ConfigError, match="is not there any more"):
        load_checkpoint(folder / "kept")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"student": "student.py:five"},
            r"The student gives 'output' \[1, 5\] float32; the model gives 'output' \[1, 4\]",
        ),
        ({"student": "student.py:Named"}, "The student gives 'scores' .*; the model gives 'output'"),
        ({"student": "student.py:soft"}, "of the teacher is logits, that of the student probabilities"),
        ({"student": "student.py:number"}, "student.py:number returned 'int', not an nn.Module"),
        ({"student": "student.py:breaks"}, "running the student with the model's example inputs .image. failed"),
        ({"student": "student.py:biuld"}, "Did you mean 'build'"),
        ({"student": "pupil.py:build"}, "student: there is no file 'pupil.py'"),
        (
            {"student": "student.py:fixed", "width": 0.5},
            "width is handed to .*, but student.py:fixed takes no arguments",
        ),
        ({"student": "student.py:conv", "features": (FeaturePair("0", "00"),)}, "the student has no module '00'"),
        ({"student": "student.py:conv", "features": (FeaturePair("8", "0"),)}, "the teacher has no module '8'"),
        ({"student": "student.py:conv", "features": (FeaturePair("0", "3"),)}, "cannot be compared"),
        (
            {"student": "student.py:build", "outputs": ("logit",)},
            "'logit' is no output of floats. Did you mean 'logits'",
        ),
        ({"student": "student.py:build", "axis": 2}, "no classes along the axis 2"),
        ({"student": "student.py:build", "axis": 2, "loss": "cosine"}, "no vectors along the axis 2"),
    ],
)
def test_a_student_that_does_not_fit_is_named(folder, teacher, options, message):
    with pytest.raises(ConfigError, match=message):
        distilled(folder / "w", teacher, **options)


def test_a_student_that_calls_its_inputs_otherwise_is_told_how_the_model_does(folder, teacher):
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(teacher.program.module)

        def forward(self, image):
            return self.inner(image)

    model = model_of(Image())
    model.program.by_keyword = True
    with pytest.raises(
        ConfigError, match="The student's forward takes input; the model's inputs are called image"
    ) as caught:
        distilled(folder / "w", model, student="student.py:build")
    assert "def forward(self, image)" in caught.value.hint


def test_a_factory_may_return_example_inputs_too(folder, teacher):
    assert distilled(folder / "w", teacher, student="student.py:with_example").modified


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{}", "recipe.yaml:3: teacher and student are the same model"),
        ("{student: student.py}", "student is 'student.py'; it should be FILE.py:NAME"),
        ("{teacher: sauce, student: 's.py:b'}", "it should be 'source' or FILE.py:NAME"),
        ("{teacher: 'm.py:b', width: 0.5}", "no student is named"),
        ("{student: 's.py:b', temperature: 0}", "temperature has to be above 0"),
        ("{student: 's.py:b', alpha: 1.5}", "alpha is a share"),
        ("{student: 's.py:b', alpha: 0}", "the teacher would have no say"),
        ("{student: 's.py:b', features: [{teacher: a, student: b, weight: 0}]}", "weight of a pair"),
        ("{student: 's.py:b', features: [{teacher: a, pupil: b}]}", "unknown key 'pupil'"),
        ("{student: 's.py:b', finetune: {loop: 't.py:f'}}", "it would have to know the teacher"),
        ("{student: 's.py:b', loss: kll}", "`loss` cannot be 'kll'. Did you mean 'kl'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError) as caught:
        parse_recipe(parse_yaml(f"schema_version: 1\npasses:\n  - distill: {options}\n", "recipe.yaml"))
    assert message in caught.value.message


def test_distillation_after_the_weights_were_put_on_a_grid_is_refused():
    text = "schema_version: 1\npasses:\n  - quantize_aware: {bits: 4}\n  - distill: {student: 's.py:b'}\n"
    with pytest.raises(ConfigError, match="'distill' has to come before 'quantize_aware'"):
        parse_recipe(parse_yaml(text, "recipe.yaml"))
