"""Layers as recipes name them."""

from __future__ import annotations

import pytest

from edgekit.core.layer_paths import fits, fits_any, no_layer


@pytest.mark.parametrize("pattern", ["blocks.1.conv", "blocks.1", "blocks.*.conv", "*conv"])
def test_a_layer_is_named_by_its_path_a_part_of_it_or_a_pattern(pattern: str) -> None:
    assert fits("blocks.1.conv", pattern)


@pytest.mark.parametrize("pattern", ["blocks.1.con", "blocks", "Blocks.1.conv"])
def test_a_part_of_a_word_or_another_case_names_nothing(pattern: str) -> None:
    assert not fits("blocks1.conv" if pattern == "blocks" else "blocks.1.conv", pattern)


def test_one_of_several_patterns_is_enough() -> None:
    assert fits_any("head", ["stem", "head"])
    assert not fits_any("head", [])


def test_the_error_offers_the_nearest_and_lists_the_first_layers() -> None:
    error = no_layer("keep: 'haed' fits no layer", "haed", ["stem", "body", "head"], shown=2)
    assert error.message == "keep: 'haed' fits no layer. Did you mean 'head'?"
    assert error.hint == "Layers: stem, body, …."
