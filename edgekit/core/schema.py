"""Versioned YAML and JSON, turned into typed values, with errors that say where.

An unknown key, a wrong type or an unknown choice is a `ConfigError` that names the file, the line and the nearest
valid key. The conversion itself is msgspec's; the lines come from PyYAML's marks.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekit.core.errors import ConfigError, nearest

T = TypeVar("T")
Trail = tuple[str | int, ...]

SCHEMA_VERSION = 1
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Document:
    """A parsed file, or a part of one, that still knows where each value stood.

    Attributes:
        value: Plain data: dicts, lists, strings, numbers, booleans, None.
        source: The file's name as the person knows it.
        lines: Line number (from 1) of each value, by its trail of keys and indexes from the file's root.
        trail: Where this part stands in the file.
    """

    value: Any
    source: str
    lines: Mapping[Trail, int] = field(default_factory=dict)
    trail: Trail = ()

    def at(self, *steps: str | int) -> Document:
        """The part of this document that `steps` lead to."""
        value = self.value
        for step in steps:
            value = value[step]
        return Document(value, self.source, self.lines, self.trail + steps)

    def where(self, *steps: str | int) -> str:
        """`file:line` of a value, or of the nearest enclosing value that has a line."""
        trail = self.trail + steps
        while trail and trail not in self.lines:
            trail = trail[:-1]
        line = self.lines.get(trail)
        return f"{self.source}:{line}" if line else self.source


def load_yaml(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ConfigError: It is missing, unreadable, not YAML, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file '{path}'.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Parse YAML text; `source` is what errors call it."""
    import yaml

    try:
        # libyaml's parser where PyYAML has it: ten times faster, same nodes and marks.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        try:
            node = loader.get_single_node()
            lines: dict[Trail, int] = {}
            value = _plain(node, loader, source, lines, (), frozenset()) if node is not None else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}.") from error
    return Document(value, source, lines)


def _plain(
    node: Any, loader: Any, source: str, lines: dict[Trail, int], trail: Trail, open_nodes: frozenset[int]
) -> Any:
    import yaml

    if id(node) in open_nodes or len(trail) > 50:
        raise ConfigError(f"{source}:{node.start_mark.line + 1}: nested too deeply, or within itself.")
    open_nodes = open_nodes | {id(node)}
    lines[trail] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node)) if isinstance(key_node, yaml.ScalarNode) else None
            where = f"{source}:{key_node.start_mark.line + 1}"
            if key is None:
                raise ConfigError(f"{where}: a key must be a plain word.")
            if key in mapping:
                raise ConfigError(f"{where}: the key '{key}' is given twice.")
            mapping[key] = _plain(value_node, loader, source, lines, (*trail, key), open_nodes)
            lines[(*trail, key)] = key_node.start_mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(item, loader, source, lines, (*trail, index), open_nodes) for index, item in enumerate(node.value)
        ]
    value = loader.construct_object(node, deep=True)
    # YAML 1.1, which PyYAML reads, takes 1e-3 for text: it wants 1.0e-3.
    if isinstance(value, str) and not node.style and _FLOAT.fullmatch(value):
        return float(value)
    # The same YAML takes `sparse: off` and a name `no` for truth values: here true and false are, and nothing else.
    if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
        return str(node.value)
    return value


def parse_json(data: bytes | str, source: str) -> Document:
    """Parse JSON; `source` is what errors call it.

    Raises:
        ConfigError: It is not JSON.
    """
    try:
        return Document(msgspec.json.decode(data), source)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid JSON: {error}.") from error


def load_json(path: Path) -> Document:
    """Read a JSON file.

    Raises:
        ConfigError: It is missing, unreadable or not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file '{path}'.") from error
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from error
    return parse_json(data, str(path))


def convert(kind: type[T], document: Document) -> T:
    """Turn plain data into a value of the dataclass `kind`.

    Raises:
        ConfigError: An unknown key, a missing key, a wrong type or an unknown choice; says the file and line.
    """
    value = document.value
    if value is None and dataclasses.is_dataclass(kind):
        value = {}
    _check_names(kind, value, document, ())
    return _convert(kind, value, document, ())


def _convert(kind: type[T], value: Any, document: Document, prefix: Trail) -> T:
    try:
        return _completed(msgspec.convert(value, type=kind, strict=True))
    except msgspec.ValidationError as error:
        message, path = _split_path(str(error))
        steps = (*prefix, *path)
        key = ".".join(str(step) for step in steps)
        raise ConfigError(f"{document.where(*steps)}: {f'`{key}`: ' if key else ''}{message}.") from error


def _completed(value: T) -> T:
    """The value with every field of its dataclasses in place.

    msgspec leaves a default that is a class attribute there, where neither it nor anything else finds it when the value
    is written down again: what is hashed would hang on how the value was made.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for known in dataclasses.fields(value):
            held = getattr(value, known.name)
            if known.name not in vars(value):
                object.__setattr__(value, known.name, held)
            _completed(held)
    elif isinstance(value, Mapping):
        for held in value.values():
            _completed(held)
    elif isinstance(value, list | tuple):
        for held in value:
            _completed(held)
    return value


def versioned(kind: type[T], document: Document) -> T:
    """`convert` for a file that carries `schema_version`.

    Raises:
        ConfigError: As `convert`; also when the version is missing or is not ours.
    """
    if not isinstance(document.value, dict):
        raise ConfigError(f"{document.source}: expected keys and values, got {_kind_of(document.value)}.")
    version = document.value.get("schema_version")
    if version is None:
        raise ConfigError(f"{document.source}: `schema_version` is missing.", f"Add: schema_version: {SCHEMA_VERSION}")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{document.where('schema_version')}: schema_version {version} is not known; this edgekit reads"
            f" {SCHEMA_VERSION}.",
            "pip install --upgrade edgekit",
        )
    return convert(kind, document)


def to_plain(value: Any) -> Any:
    """A dataclass as the plain data that its JSON gives when it is read again: no tuples, so that equal stays equal."""
    return _listed(msgspec.to_builtins(value, str_keys=True))


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(held) for key, held in value.items()}
    return [_listed(held) for held in value] if isinstance(value, list | tuple) else value


def to_json(value: Any) -> str:
    """A value as indented JSON with a stable key order (declaration order), ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def canonical_json(value: Any) -> bytes:
    """A value as JSON whose bytes depend on nothing but the value: for hashing."""
    return msgspec.json.encode(value, order="deterministic")


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON Schema of a dataclass: what editors need to complete and check a file."""
    return msgspec.json.schema(kind)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check_names(kind: Any, value: Any, document: Document, steps: Trail) -> None:
    """Refuse unknown keys and choices before msgspec looks, because it neither says the line nor offers a name."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in arguments if a is not type(None)]
        structured = [a for a in options if dataclasses.is_dataclass(a)]
        if isinstance(value, dict) and structured:
            _check_names(structured[0], value, document, steps)
        elif len(options) == 1 and value is not None:
            _check_names(options[0], value, document, steps)
    elif origin is typing.Literal:
        if isinstance(value, str) and value not in arguments:
            guess = nearest(value, [str(a) for a in arguments])
            hint = f" Did you mean '{guess}'?" if guess else ""
            listing = ", ".join(str(a) for a in arguments)
            raise ConfigError(
                f"{document.where(*steps)}: `{steps[-1] if steps else ''}` cannot be '{value}'.{hint} Choices: {listing}."
            )
    elif origin in (tuple, list) and isinstance(value, list):
        for index, item in enumerate(value):
            item_kind = arguments[0] if origin is list or arguments[-1:] == (...,) else arguments[index : index + 1]
            if isinstance(item_kind, tuple):
                if not item_kind:
                    return
                item_kind = item_kind[0]
            _check_names(item_kind, item, document, (*steps, index))
    elif origin in (dict, Mapping, typing.get_origin(Mapping[str, int])) and isinstance(value, dict):
        for key, item in value.items():
            _check_names(arguments[1], item, document, (*steps, key))
            if isinstance(arguments[1], type) and dataclasses.is_dataclass(arguments[1]):
                # msgspec's error says `[...]` for the key of a mapping; checked one by one, the key is known.
                _convert(arguments[1], item, document, (*steps, key))
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        known = {f.name for f in dataclasses.fields(kind) if f.init}
        for key, item in value.items():
            if key not in known:
                guess = nearest(key, known)
                did_you_mean = f" Did you mean '{guess}'?" if guess else ""
                raise ConfigError(
                    f"{document.where(*steps, key)}: unknown key '{key}'.{did_you_mean}"
                    f" Known keys: {', '.join(sorted(known))}."
                )
            _check_names(_hints(kind)[key], item, document, (*steps, key))


_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>.*)`$")
_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")


def _split_path(text: str) -> tuple[str, Trail]:
    """A message of msgspec, `Expected int - at $.a[0].b`, as its sentence and its steps."""
    match = _PATH.search(text)
    if not match:
        return text, ()
    steps: list[str | int] = []
    for step in _STEP.finditer(match["path"]):
        if step["key"]:
            steps.append(step["key"])
        elif step["index"]:
            steps.append(int(step["index"]))
    return text[: match.start()], tuple(steps)


def _kind_of(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
    return names.get(type(value), f"a {type(value).__name__}")
