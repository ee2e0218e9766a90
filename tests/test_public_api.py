"""The public names are a promise: they change on purpose, with a line in `public_api.txt`."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import edgekit

LIST = Path(__file__).with_name("public_api.txt")
PROMISED = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_the_public_names_are_exactly_the_promised_ones() -> None:
    assert sorted(edgekit.__all__) == sorted(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_a_public_name_is_there_and_explains_itself(name: str) -> None:
    value = getattr(edgekit, name)
    if name.startswith("__"):
        assert isinstance(value, str)
    else:
        # A dataclass without a docstring shows its signature in its place.
        text = inspect.getdoc(value) or ""
        assert text, name
        assert not text.startswith(f"{name}("), name


def test_the_listing_for_a_person_shows_every_public_name() -> None:
    assert set(PROMISED) <= set(dir(edgekit))


def test_a_name_that_is_not_there_fails_as_python_does() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = edgekit.no_such_thing
