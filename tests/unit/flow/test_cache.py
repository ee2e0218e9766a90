from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest

from edgekit.flow.cache import Cache


@dataclass(frozen=True)
class Answer:
    value: int


def filled(text):
    return lambda staging: (staging / "file").write_text(text)


def test_a_folder_is_made_once(cache_dir):
    cache = Cache()
    folder = cache.make("artifacts", "key", filled("first"))
    assert Cache().make("artifacts", "key", filled("second")) == folder
    assert (folder / "file").read_text() == "first"


def test_a_fill_that_fails_leaves_nothing(cache_dir):
    def fails(staging):
        (staging / "half").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Cache().make("artifacts", "key", fails)
    assert Cache().folder("artifacts", "key") is None
    assert list((cache_dir / "artifacts").iterdir()) == []


def test_what_a_killed_process_left_is_removed_when_the_entry_is_made(cache_dir):
    for name in (".key.abc.part", "..key.abc.part.def.part", ".key.abc.old", ".other.abc.part"):
        (cache_dir / "artifacts" / name).mkdir(parents=True)
    Cache().make("artifacts", "key", filled("whole"))
    assert sorted(p.name for p in (cache_dir / "artifacts").iterdir()) == [".other.abc.part", "key"]


def test_a_record_that_cannot_be_read_counts_as_absent(cache_dir):
    cache = Cache()
    cache.put_record("sources", "key", Answer(3))
    path = cache_dir / "records" / "sources" / "key.json"
    assert Cache().record("sources", "key", Answer) == Answer(3)
    for broken in ("{", '{"value": "three"}', '{"older": 1}'):
        path.write_text(broken)
        assert Cache().record("sources", "key", Answer) is None


def test_a_cache_that_is_switched_off_finds_only_what_it_made_itself(cache_dir):
    Cache().make("artifacts", "key", filled("old"))
    Cache().put_record("scores", "key", Answer(1))
    off = Cache(enabled=False)
    assert off.folder("artifacts", "key") is None
    assert off.record("scores", "key", Answer) is None
    folder = off.make("artifacts", "key", filled("new"))
    assert (folder / "file").read_text() == "new"
    assert off.make("artifacts", "key", filled("newer")) == folder
    assert (folder / "file").read_text() == "new"


def test_usage_tells_entries_and_bytes_by_kind(cache_dir):
    cache = Cache()
    cache.make("artifacts", "a", filled("1234"))
    cache.make("artifacts", "b", filled("56"))
    (cache_dir / "artifacts" / ".c.x.part").mkdir()
    cache.put_record("scores", "key", Answer(1))
    used = {usage.kind: (usage.entries, usage.bytes) for usage in cache.usage()}
    assert used["artifacts"] == (2, 6)
    assert used["records"][0] == 1


def test_clearing_keeps_what_was_used_lately(cache_dir):
    cache = Cache()
    old, new = cache.make("artifacts", "old", filled("1234")), cache.make("artifacts", "new", filled("1234"))
    cache.put_record("scores", "key", Answer(1))
    long_ago = time.time() - 10 * 86400
    os.utime(old, (long_ago, long_ago))
    assert cache.clear(older_than_days=5) == 4
    assert (old.exists(), new.exists()) == (False, True)
    assert cache.record("scores", "key", Answer) == Answer(1)
    cache.clear()
    assert Cache().folder("artifacts", "new") is None
    assert Cache().record("scores", "key", Answer) is None


def test_finding_a_folder_counts_as_using_it(cache_dir):
    cache = Cache()
    folder = cache.make("artifacts", "key", filled("1"))
    long_ago = time.time() - 10 * 86400
    os.utime(folder, (long_ago, long_ago))
    cache.folder("artifacts", "key")
    cache.clear(older_than_days=5)
    assert folder.exists()


def test_clearing_leaves_what_a_local_device_serves(cache_dir):
    (cache_dir / "devices" / "local").mkdir(parents=True)
    (cache_dir / "devices" / "local" / "model").write_text("in force")
    Cache().clear()
    assert (cache_dir / "devices" / "local" / "model").exists()
