from __future__ import annotations

import pickle

import pytest

from edgekit.core import errors
from edgekit.core.errors import ConfigError, EdgekitError, nearest, unknown_name

KINDS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EdgekitError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_way_back_from_a_child_process(kind: type[EdgekitError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what", "do this")))
    assert type(back) is kind
    assert (back.message, back.hint) == ("what", "do this")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_tree_in_the_docstring_gives_each_error_with_its_exit_code(kind: type[EdgekitError]) -> None:
    line = next(line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in f"{line} ")
    if "(" in line:
        assert f"({kind.exit_code})" in line
    assert kind.exit_code in (1, 2, 3)


def test_a_message_stands_before_its_hint() -> None:
    assert str(ConfigError("wrong", "edgekit targets")) == "wrong\nedgekit targets"
    assert str(ConfigError("wrong")) == "wrong"


@pytest.mark.parametrize(
    ("typed", "meant"), [("rpi5x", "rpi5"), ("RPI5", "rpi5"), ("prune_chanels", "prune_channels"), ("zzz", None)]
)
def test_the_nearest_choice_is_the_one_that_was_meant(typed: str, meant: str | None) -> None:
    assert nearest(typed, ["rpi4", "rpi5", "prune_channels"]) == meant


def test_the_nearest_choice_keeps_its_own_capitals() -> None:
    assert nearest("nchw", ["NCHW", "any"]) == "NCHW"


def test_an_unknown_name_lists_what_there_is() -> None:
    error = unknown_name("target", "rp4", ["rpi5", "rpi4"], "edgekit targets")
    assert error.message == "There is no target 'rp4'. Did you mean 'rpi4'? Known: rpi4, rpi5."
    assert error.hint == "edgekit targets"


def test_an_unknown_name_among_none_says_none() -> None:
    assert unknown_name("device", "x", []).message.endswith("Known: none.")
