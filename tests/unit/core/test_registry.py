from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.registry import Registry


class Tool:
    """A base of plugins."""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Tool]]:
    """A registry over a package of files written here."""
    package = tmp_path / "some_tools"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("raise RuntimeError('the base is no plugin')\n")
    head = f"from {__name__} import Tool\n"
    (package / "saw.py").write_text(head + "class Saw(Tool):\n    pass\n")
    (package / "two.py").write_text(head + "class A(Tool):\n    pass\nclass B(Tool):\n    pass\n")
    (package / "none.py").write_text(head)
    (package / "_private.py").write_text("raise RuntimeError('private')\n")
    (package / "broken.py").write_text("raise RuntimeError('loaded without need')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("tool", "some_tools", Tool)
    for name in [name for name in sys.modules if name.startswith("some_tools")]:
        del sys.modules[name]


def test_names_are_file_names_and_nothing_is_loaded_to_know_them(registry: Registry[Tool]) -> None:
    assert registry.names() == ["broken", "none", "saw", "two"]
    assert "saw" in registry
    assert "base" not in registry
    assert "_private" not in registry


def test_a_plugin_is_the_one_class_of_its_module(registry: Registry[Tool]) -> None:
    assert registry.get("saw").__name__ == "Saw"
    assert isinstance(registry.create("saw"), Tool)
    assert registry.get("saw") is registry.get("saw")


@pytest.mark.parametrize(("name", "count"), [("two", 2), ("none", 0)])
def test_a_module_without_exactly_one_plugin_is_refused(registry: Registry[Tool], name: str, count: int) -> None:
    with pytest.raises(ConfigError, match=f"some_tools.{name} must define exactly one public Tool; it defines {count}"):
        registry.get(name)


def test_an_unknown_name_offers_the_nearest(registry: Registry[Tool]) -> None:
    with pytest.raises(ConfigError, match="There is no tool 'sew'. Did you mean 'saw'?"):
        registry.get("sew")


def entry_point(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, "some_tools")


def use(monkeypatch: pytest.MonkeyPatch, *points: importlib.metadata.EntryPoint) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [p for p in points if p.group == group])


def test_a_third_party_adds_a_plugin_by_an_entry_point(
    registry: Registry[Tool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other_package.py").write_text(f"from {__name__} import Tool\nclass Drill(Tool):\n    pass\n")
    use(monkeypatch, entry_point("drill", "other_package:Drill"))
    assert registry.names() == ["broken", "drill", "none", "saw", "two"]
    assert registry.get("drill").__name__ == "Drill"


def test_a_built_in_wins_over_an_entry_point_of_its_name(
    registry: Registry[Tool], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, entry_point("saw", "pathlib:Path"))
    assert registry.get("saw").__name__ == "Saw"


def test_an_entry_point_to_something_else_is_refused(registry: Registry[Tool], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, entry_point("drill", "pathlib:Path"))
    with pytest.raises(ConfigError, match="The entry point 'drill' of some_tools is not a Tool"):
        registry.get("drill")
