from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core import files
from edgekit.core.errors import ConfigError


def test_a_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = os.urandom(3 * (1 << 20) + 7)
    path = tmp_path / "blob"
    path.write_bytes(data)
    assert files.sha256_file(path) == hashlib.sha256(data).hexdigest() == files.sha256_bytes(data)
    assert files.sha256_text("é") == hashlib.sha256("é".encode()).hexdigest()


def test_a_file_is_written_whole_with_the_folders_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.json"
    files.write_atomic(path, "é")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        files.write_atomic(tmp_path / "x", "x")
        with files.staged_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def no_space(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_staged_folder_takes_its_name_when_all_went_well(tmp_path: Path) -> None:
    final = tmp_path / "out" / "artifact"
    with files.staged_directory(final) as staging:
        (staging / "model").write_text("1")
        assert not final.exists()
    assert (final / "model").read_text() == "1"


def test_a_staged_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    final.mkdir()
    (final / "old").write_text("")
    with files.staged_directory(final) as staging:
        (staging / "new").write_text("")
    assert [path.name for path in final.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_staged_folder_vanishes_when_the_work_fails(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    final.mkdir()
    (final / "old").write_text("")

    def work() -> None:
        with files.staged_directory(final) as staging:
            (staging / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [path.name for path in final.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\b", "a\0b"])
def test_a_path_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="leaves the folder"):
        files.safe_relative(path)


@given(st.text(alphabet=st.sampled_from("ab./\\\0é"), max_size=12))
def test_a_path_that_is_let_pass_stays_below(path: str) -> None:
    root = Path("/base")
    try:
        inner = files.safe_relative(path)
    except ConfigError:
        return
    assert Path(os.path.normpath(root / inner)).is_relative_to(root)


def test_a_link_or_a_copy_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_text("bytes")
    files.link_or_copy(source, tmp_path / "a" / "linked")
    assert (tmp_path / "a" / "linked").samefile(source)

    def no_links(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    files.link_or_copy(source, tmp_path / "b" / "copied")
    assert (tmp_path / "b" / "copied").read_text() == "bytes"
    assert not (tmp_path / "b" / "copied").samefile(source)


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "deep" / "b").write_bytes(b"123")
    assert files.size_of(tmp_path) == 8
    assert files.size_of(tmp_path / "a") == 5
