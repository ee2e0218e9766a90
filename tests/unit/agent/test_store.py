from __future__ import annotations

import importlib
import os
import stat
import sys

import pytest

from tests.unit.agent.kit import AGENT, a_wheel, workload


@pytest.fixture
def store(monkeypatch):
    monkeypatch.syspath_prepend(str(AGENT))
    monkeypatch.delitem(sys.modules, "store", raising=False)
    return importlib.import_module("store")


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "a\\b.py", "./x.py"])
def test_a_wheel_that_leaves_its_folder_is_refused(store, tmp_path, name):
    wheel = a_wheel(tmp_path / "x.whl", {name: "evil"})
    with pytest.raises(store.AgentError, match="leaves its folder"):
        store.unpack(str(wheel), str(tmp_path / "out"))
    assert not list(tmp_path.rglob("evil.py"))


def test_a_symbolic_link_in_a_wheel_is_refused(store, tmp_path):
    wheel = a_wheel(tmp_path / "x.whl", {"link": "/etc"}, {"link": stat.S_IFLNK | 0o777})
    with pytest.raises(store.AgentError, match="not a plain file"):
        store.unpack(str(wheel), str(tmp_path / "out"))


def test_a_wheel_is_laid_out_as_an_installer_does(store, tmp_path):
    files = {"pkg/tool": "#!", "pkg/a.py": "", "pkg-1.data/platlib/pkg/b.so": "", "pkg-1.data/scripts/run": ""}
    store.unpack(str(a_wheel(tmp_path / "x.whl", files, {"pkg/tool": 0o100755})), str(tmp_path / "out"))
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"pkg/tool", "pkg/a.py", "pkg/b.so"}
    assert os.access(tmp_path / "out/pkg/tool", os.X_OK)
    assert not os.access(tmp_path / "out/pkg/a.py", os.X_OK)


def test_what_is_no_wheel_is_refused(store, tmp_path):
    (tmp_path / "x.whl").write_text("no zip")
    with pytest.raises(store.AgentError, match="not a wheel"):
        store.unpack(str(tmp_path / "x.whl"), str(tmp_path / "out"))


def test_a_folder_is_placed_whole_or_not_at_all(store, tmp_path):
    def fill(staging):
        (tmp_path / "seen").write_text(staging)
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        store.place(str(tmp_path / "final"), fill)
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


def test_workers_import_the_runtime_of_the_wheels(device, tmp_path):
    wheel = a_wheel(tmp_path / "x.whl", {"a_runtime_of_ours.py": ""}).read_bytes()
    sha256 = device.put(wheel)
    request = device.run_request(tmp_path, options={"import": "a_runtime_of_ours"}, workloads=[workload()])
    assert device.ask(request)["error"]["kind"] == "runtime"
    request["runtime"] = {"kind": "wheels", "digest": "abc", "wheels": [{"name": "x.whl", "sha256": sha256}]}
    assert device.ask(request)["ok"] is True
    assert not (device.root / "store" / sha256).exists(), "an unpacked wheel is not kept twice"
    assert device.ask({"command": "inspect", "blobs": [], "model": None})["runtimes"] == ["abc"]
    assert device.ask(request)["ok"] is True


def test_a_broken_wheel_leaves_no_runtime(device, tmp_path):
    sha256 = device.put(a_wheel(tmp_path / "x.whl", {"ok.py": "", "../evil.py": ""}).read_bytes())
    request = device.run_request(tmp_path)
    request["runtime"] = {"kind": "wheels", "digest": "abc", "wheels": [{"name": "x.whl", "sha256": sha256}]}
    assert device.ask(request)["error"]["kind"] == "request"
    assert not list((device.root / "runtimes").iterdir())


def test_what_arrived_of_a_missing_blob_counts_as_free(device, store):
    sha256 = "ab" * 32
    (device.root / "store" / f".{sha256}.{sha256[:16]}.part").write_bytes(bytes(1 << 20))
    assert store.partial_bytes(str(device.root), [sha256]) == 1 << 20
    assert store.partial_bytes(str(device.root), ["cd" * 32]) == 0


def test_a_partial_file_that_nobody_continued_for_a_day_is_removed(device):
    paths = [device.root / "store" / f".{letter * 64}.{letter * 16}.part" for letter in "ab"]
    for path in paths:
        path.write_bytes(b"x")
    os.utime(paths[0], (1, 1))
    device.ask({"command": "inspect", "blobs": [], "model": None})
    assert [path.exists() for path in paths] == [False, True]
