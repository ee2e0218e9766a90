from __future__ import annotations

import numpy as np
import pytest

from edgekit.flow.tracing import Dependencies, neighbours, tracing


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "project" / "model.py"
    path.parent.mkdir()
    path.write_text("x = 1\n")
    return path


def traced(source, action, **options):
    with tracing(source, **options) as found:
        action()
    return found[0]


def test_a_file_that_was_opened_or_looked_for_belongs_to_the_trace(source, tmp_path):
    there, absent = tmp_path / "there.txt", tmp_path / "absent.txt"
    there.write_text("1")

    def action():
        there.read_text()
        with pytest.raises(FileNotFoundError):
            absent.read_text()

    found = traced(source, action)
    assert found.files[str(absent)] == ""
    assert found.unchanged()
    absent.write_text("now")
    assert not found.unchanged()
    absent.unlink()
    assert found.unchanged()
    there.write_text("2")
    assert not found.unchanged()


def test_a_file_that_was_only_written_is_no_input(source, tmp_path):
    found = traced(source, lambda: (tmp_path / "log.txt").write_text("x"))
    assert str(tmp_path / "log.txt") not in found.files


def test_a_folder_that_was_listed_belongs_to_the_trace(source, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "1.png").write_bytes(b"1")
    found = traced(source, lambda: sorted(images.glob("*.png")))
    assert found.unchanged()
    (images / "2.png").write_bytes(b"2")
    assert not found.unchanged()


def test_what_is_opened_by_an_installed_library_is_its_version_not_a_file(source):
    found = traced(source, lambda: np.load(np.lib.format.__file__, allow_pickle=False) if False else __import__("wave"))
    assert not any("site-packages" in name or name.endswith("wave.py") for name in found.files)
    assert found.distributions["numpy"] == np.__version__


def test_another_version_of_a_library_is_a_change(source):
    found = traced(source, lambda: None)
    versions = dict(found.distributions) | {"numpy": "0.1"}
    assert not Dependencies(found.files, found.folders, found.neighbours, versions).unchanged()


def test_the_working_folder_of_the_trace_is_left_out(source, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "own.npy").write_bytes(b"1")
    found = traced(source, (work / "own.npy").read_bytes, ignore=work)
    assert str(work / "own.npy") not in found.files


def test_a_folder_whose_name_only_begins_like_a_librarys_is_the_persons(source, tmp_path, monkeypatch):
    import edgekit.flow.tracing as module

    library, own = tmp_path / "lib", tmp_path / "library-of-mine"
    for folder in (library, own):
        folder.mkdir()
        (folder / "code.py").write_text("1")
    monkeypatch.setattr(module, "library_prefixes", lambda: (f"{library}/",))
    found = traced(source, lambda: [(folder / "code.py").read_text() for folder in (library, own)])
    assert str(own / "code.py") in found.files
    assert str(library / "code.py") not in found.files


def test_neighbours_are_weights_and_code_but_not_what_builds_and_hides(tmp_path):
    for name in ("a.pt", "b/c.safetensors", "d.txt", "build/e.bin", ".hidden/f.pt", "__pycache__/g.py", "h.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in neighbours(tmp_path)) == [
        "a.pt",
        "b/c.safetensors",
        "h.py",
    ]


def test_the_digest_follows_each_part():
    parts = [({"/f": "1"}, {}, {}, {}), ({}, {"/f": "1"}, {}, {}), ({}, {}, {"/f": "1"}, {}), ({}, {}, {}, {"/f": "1"})]
    assert len({Dependencies(*part).digest() for part in parts}) == 4
