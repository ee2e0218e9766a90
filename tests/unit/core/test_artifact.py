from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.core import schema
from edgekit.core.artifact import Artifact, BuildInfo, Manifest, describe_files, load_artifact
from edgekit.core.errors import ConfigError
from edgekit.core.files import sha256_bytes
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import Normalize, PassRecord, TensorSpec


def made(folder: Path) -> Artifact:
    """An artifact with two files, written as a backend does."""
    (folder / "assets").mkdir(parents=True)
    (folder / "model.tflite").write_bytes(b"0123456789")
    (folder / "assets" / "labels.txt").write_bytes(b"cat\ndog\n")
    manifest = Manifest(
        schema_version=1,
        name="pets",
        backend="litert",
        target="rpi4",
        main="model.tflite",
        files=describe_files(folder),
        inputs=(TensorSpec("image", (1, 3, 8, 8), layout="NCHW", normalize=Normalize((0.5,), (0.25,))),),
        outputs=(TensorSpec("logits", (1, 2), labels=("cat", "dog")),),
        lowering=Lowering(Quantize("static_wi8_ai8"), {"stem.conv": "float32"}),
        history=(PassRecord("low_rank", {"energy": 0.6}, metrics_before={"top1": 0.9}),),
        source="model.py:build",
        source_digest="d" * 64,
        bindings={"inputs.image": "args_0"},
    )
    (folder / "manifest.json").write_text(schema.to_json(manifest))
    return load_artifact(folder)


def test_an_artifact_reads_back_as_it_was_written(tmp_path: Path) -> None:
    artifact = made(tmp_path / "a")
    assert artifact.manifest.lowering.precision == "static_wi8_ai8"
    assert [entry.path for entry in artifact.manifest.files] == ["assets/labels.txt", "model.tflite"]
    assert artifact.bytes == 18
    assert artifact.main.read_bytes() == b"0123456789"
    assert artifact.digest == sha256_bytes((tmp_path / "a" / "manifest.json").read_bytes())
    assert load_artifact(tmp_path / "a" / "manifest.json") == artifact
    artifact.verify_files()


def test_the_same_content_gives_the_same_digest(tmp_path: Path) -> None:
    assert made(tmp_path / "a").digest == made(tmp_path / "somewhere" / "else").digest


@pytest.mark.parametrize("damage", [b"0123456780", b"012345678", b""])
def test_a_file_that_was_changed_is_found(tmp_path: Path, damage: bytes) -> None:
    artifact = made(tmp_path)
    (tmp_path / "model.tflite").write_bytes(damage)
    with pytest.raises(ConfigError, match="'model.tflite' .* is not what its manifest says"):
        artifact.verify_files()


def test_a_file_that_is_gone_is_found(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    (tmp_path / "assets" / "labels.txt").unlink()
    with pytest.raises(ConfigError, match="lacks its file 'assets/labels.txt'"):
        artifact.verify_files()


def test_the_record_of_the_build_is_no_part_of_its_identity(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    assert artifact.build is None
    build = BuildInfo(1, 12.5, 900.0)
    (tmp_path / "build.json").write_text(schema.to_json(build))
    assert load_artifact(tmp_path).digest == artifact.digest
    assert load_artifact(tmp_path).build == build
    assert "build.json" not in {entry.path for entry in describe_files(tmp_path)}


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd"])
@pytest.mark.parametrize("key", ["files", "main"])
def test_a_manifest_that_points_out_of_its_folder_is_refused(tmp_path: Path, path: str, key: str) -> None:
    made(tmp_path)
    document = schema.load_json(tmp_path / "manifest.json").value
    if key == "main":
        document["main"] = path
    else:
        document["files"][0]["path"] = path
    (tmp_path / "manifest.json").write_text(schema.to_json(document))
    with pytest.raises(ConfigError, match="leaves the folder"):
        load_artifact(tmp_path)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not an artifact: it has no manifest.json") as caught:
        load_artifact(tmp_path)
    assert caught.value.hint.startswith("edgekit compile")


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    text = (tmp_path / "manifest.json").read_text().replace('"schema_version": 1', '"schema_version": 2')
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match="schema_version 2 is not known"):
        load_artifact(tmp_path)
