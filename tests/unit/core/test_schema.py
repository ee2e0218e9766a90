from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.core.lowering import Lowering, Quantize


@dataclass(frozen=True)
class Leaf:
    size: int
    colour: Literal["green", "red"] = "green"


@dataclass(frozen=True)
class Tree:
    name: str
    leaf: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    named: Mapping[str, Leaf] = field(default_factory=dict)
    pair: tuple[Leaf, int] | None = None
    height: float | None = None


@dataclass(frozen=True)
class File:
    schema_version: int
    tree: Tree


def read(text: str) -> Tree:
    return schema.convert(Tree, schema.parse_yaml(text, "tree.yaml"))


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value.message


def test_a_file_becomes_typed_values() -> None:
    tree = read("name: oak\nleaf: {size: 3}\nleaves: [{size: 1, colour: red}]\nnamed:\n  a: {size: 2}\nheight: 2\n")
    assert tree == Tree("oak", Leaf(3), (Leaf(1, "red"),), {"a": Leaf(2)}, None, 2.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "name: oak\nheigt: 3\n",
            ["tree.yaml:2", "unknown key 'heigt'", "Did you mean 'height'?", "Known keys: height"],
        ),
        ("name: oak\nleaf:\n  size: 1\n  sise: 2\n", ["tree.yaml:4", "'sise'", "'size'"]),
        ("name: oak\nleaves:\n  - size: 1\n  - {size: 1, color: red}\n", ["tree.yaml:4", "'color'", "'colour'"]),
        (
            "name: oak\nnamed:\n  a:\n    size: 1\n    colour: gren\n",
            ["tree.yaml:5", "'gren'", "'green'", "green, red"],
        ),
        ("name: oak\nleaf: {size: big}\n", ["tree.yaml:2", "`leaf.size`", "Expected `int`"]),
        ("name: oak\nnamed:\n  a: {size: 1}\n  b: {size: x}\n", ["tree.yaml:4", "`named.b.size`"]),
        ("leaf: {size: 1}\n", ["tree.yaml", "name"]),
        ("name: oak\nleaves: {size: 1}\n", ["tree.yaml:2", "`leaves`"]),
        ("name: oak\npair: [{size: 1, x: 2}, 3]\n", ["tree.yaml:2", "unknown key 'x'"]),
        ("name: oak\npair: [{size: 1}, 3, 4]\n", ["tree.yaml:2"]),
        ("name: 3\n", ["tree.yaml:1", "`name`", "`str`"]),
        ("name: a\nname: b\n", ["tree.yaml:2", "'name' is given twice"]),
        ("name: [a\n", ["tree.yaml:2", "not valid YAML"]),
        ("? [a, b]\n: 1\n", ["tree.yaml:1", "a plain word"]),
        ("name: &a [*a]\n", ["tree.yaml:1"]),
        ("name: !!python/object:os.system x\n", ["tree.yaml", "not valid YAML"]),
        ("- a\n", ["tree.yaml:1", "array"]),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, words: list[str]) -> None:
    message = refusal(text)
    for word in words:
        assert word in message


def test_a_part_of_a_file_still_knows_its_lines() -> None:
    part = schema.parse_yaml("tree:\n  name: oak\n  heigt: 1\n", "forest.yaml").at("tree")
    with pytest.raises(ConfigError, match="forest.yaml:3: unknown key 'heigt'"):
        schema.convert(Tree, part)


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert schema.parse_yaml("", "x.yaml").value == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tree: {name: oak}\n", "`schema_version` is missing"),
        ("schema_version: 7\ntree: {name: oak}\n", "f.yaml:1: schema_version 7 is not known"),
        ("- 1\n", "expected keys and values, got a list"),
        ("oak\n", "expected keys and values, got text"),
    ],
)
def test_a_file_of_another_version_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        schema.versioned(File, schema.parse_yaml(text, "f.yaml"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for load in (schema.load_yaml, schema.load_json):
        with pytest.raises(ConfigError, match="There is no file '.*nothing"):
            load(tmp_path / "nothing")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        schema.load_yaml(path)


def test_broken_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"a": ')
    with pytest.raises(ConfigError, match="manifest.json: not valid JSON"):
        schema.load_json(path)


def test_what_is_written_reads_back() -> None:
    tree = Tree("oak", Leaf(3), (Leaf(1, "red"),), {"a": Leaf(2)}, (Leaf(1), 2), 2.5)
    text = schema.to_json(tree)
    assert text.endswith("}\n")
    assert schema.convert(Tree, schema.parse_json(text, "t.json")) == tree
    assert list(schema.to_plain(tree)["leaves"]) == [{"size": 1, "colour": "red"}]


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_the_bytes_for_hashing_depend_on_the_value_alone(value: Any) -> None:
    def turned(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(list(item))}
        return [turned(inner) for inner in item] if isinstance(item, list) else item

    assert schema.canonical_json(value) == schema.canonical_json(turned(value))


@given(st.text(max_size=60))
def test_any_text_is_either_read_or_refused_in_our_words(text: str) -> None:
    refused = ""
    try:
        schema.convert(Tree, schema.parse_yaml(text, "any.yaml"))
    except ConfigError as error:
        refused = error.message
    assert not refused or "any.yaml" in refused


def test_editors_get_a_json_schema() -> None:
    assert "size" in str(schema.json_schema(Tree))


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.0e-3", "+1e-3"])
def test_a_number_with_an_exponent_is_a_number(written: str) -> None:
    assert schema.parse_yaml(f"rate: {written}", "f.yaml").value == {"rate": 1e-3}


def test_a_quoted_number_stays_text() -> None:
    assert schema.parse_yaml("rate: '1e-3'", "f.yaml").value == {"rate": "1e-3"}


def test_what_is_read_is_written_like_what_is_made() -> None:
    read = schema.convert(Lowering, schema.parse_yaml("quantize: {scheme: float16}", "f.yaml"))
    assert schema.canonical_json(read) == schema.canonical_json(Lowering(Quantize("float16")))


def test_plain_data_equal_what_their_json_reads_as() -> None:
    plain = schema.to_plain(Lowering(batch_sizes=(1, 4)))
    assert plain == schema.parse_json(schema.to_json(Lowering(batch_sizes=(1, 4))), "lowering").value
    assert plain["batch_sizes"] == [1, 4]


def test_words_that_old_yaml_takes_for_truth_values_stay_words() -> None:
    found = schema.parse_yaml("{a: off, b: On, c: no, d: yes, e: true, f: False}", "f.yaml").value
    assert found == {"a": "off", "b": "On", "c": "no", "d": "yes", "e": True, "f": False}
