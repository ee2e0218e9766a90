from __future__ import annotations

import sys

import pytest

from tests.unit.flow import kit


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch):
    """A cache of the test's own, outside its project."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(folder))
    path = list(sys.path)
    yield folder
    sys.path[:] = path


@pytest.fixture
def plain(tmp_path):
    """A project with a model and no task."""
    return kit.write(tmp_path / "plain", {"edgekit.yaml": kit.project_yaml(), "model.py": kit.MODEL})


@pytest.fixture
def tasked(tmp_path):
    """A project with a model and a task."""
    files = {"edgekit.yaml": kit.project_yaml(task=True), "model.py": kit.MODEL, "task.py": kit.TASK}
    return kit.write(tmp_path / "tasked", files)


@pytest.fixture
def heard():
    return kit.Heard()


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """A project with a task, built once for the tests that only look: its builder, its artifact and what was heard."""
    files = {"edgekit.yaml": kit.project_yaml(task=True), "model.py": kit.MODEL, "task.py": kit.TASK}
    heard = kit.Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path_factory.mktemp("once-cache")))
        builder = kit.builder_in(kit.write(tmp_path_factory.mktemp("once"), files), heard)
        yield builder, builder.build(kit.intel()), heard
