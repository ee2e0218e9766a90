"""An `.mlpackage` on disk: where its model and its weights are, and the interface that it declares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.backends._mil.blobs import WeightFile
from edgekit.backends._mil.program import Function, ProgramReader
from edgekit.backends._mil.wire import Message
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.files import safe_relative

if TYPE_CHECKING:
    from edgekit.core.task import Array

_ML_PROGRAM = 502
_MODEL_PATH = "@model_path/"
_ARRAY_DTYPES: Mapping[int, str] = {
    0x10000 | 32: "float32",
    0x10000 | 16: "float16",
    0x10000 | 64: "float64",
    0x20000 | 32: "int32",
    0x20000 | 8: "int8",
}


@dataclass(frozen=True)
class Feature:
    """An input or output as the model's description declares it.

    Attributes:
        name: What programs call it.
        kind: `array`, `image`, or another of Core ML's kinds.
        dtype: Element type of an array; `uint8` for an image.
        shape: Sizes of an array, (1, channels, height, width) of an image; empty where the description has none.
    """

    name: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Package:
    """What is in an `.mlpackage`.

    Attributes:
        inputs: The declared inputs.
        outputs: The declared outputs.
        function: The program.
        states: Names of state that the model keeps between calls.
        metadata: The user's own metadata, by key.
    """

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    function: Function
    states: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_package(path: Path) -> Package:
    """Read an `.mlpackage`.

    Raises:
        ConfigError: A piece is missing or damaged; it is named.
        UnsupportedModelError: It holds something else than an ML Program.
    """
    specification = find_specification(path)
    model = Message(memoryview(specification.read_bytes()))
    if not model.has(_ML_PROGRAM):
        raise UnsupportedModelError(
            f"'{path.name}' is no ML Program but an older kind of Core ML model.",
            "Only packages made with convert_to='mlprogram' can be evaluated here.",
        )
    description = model.message(2)
    weights = _Weights(specification.parent)
    function = ProgramReader(weights.read).function(model.message(_ML_PROGRAM), description.text(21) or "main")
    metadata = description.message(100)
    return Package(
        inputs=tuple(_feature(message) for message in description.messages(1)),
        outputs=tuple(_feature(message) for message in description.messages(10)),
        function=function,
        states=tuple(message.text(1) for message in description.messages(13)),
        metadata={entry.text(1): entry.text(2) for entry in metadata.messages(100)},
    )


def find_specification(path: Path) -> Path:
    """The model's own file in the package at `path`.

    Raises:
        ConfigError: The package, its manifest or the model's file is missing or damaged.
    """
    if not path.is_dir():
        raise ConfigError(f"There is no Core ML package at '{path}'.", "An .mlpackage is a folder.")
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise ConfigError(f"The package '{path.name}' lacks its Manifest.json.", "Compile the model anew.")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        entry = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"The Manifest.json of the package '{path.name}' names no model.", "Compile the model anew."
        ) from error
    specification = path / "Data" / safe_relative(str(entry))
    if not specification.is_file():
        raise ConfigError(f"The package '{path.name}' lacks its model '{entry}'.", "Compile the model anew.")
    return specification


class _Weights:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, WeightFile] = {}

    def read(self, name: str, offset: int, dtype: str, count: int) -> Array:
        if name not in self._files:
            relative = name.removeprefix(_MODEL_PATH)
            self._files[name] = WeightFile(self._folder / safe_relative(relative))
        return self._files[name].read(offset, dtype, count)


def _feature(message: Message) -> Feature:
    name, kind = message.text(1), message.message(3)
    if kind.has(5):
        array = kind.message(5)
        return Feature(name, "array", _ARRAY_DTYPES.get(array.integer(2), ""), tuple(array.varints(1)))
    if kind.has(4):
        image = kind.message(4)
        channels = 1 if image.integer(3) in (10, 40) else 3
        return Feature(name, "image", "uint8", (1, channels, image.integer(2), image.integer(1)))
    kinds = {1: "integer", 2: "number", 3: "string", 6: "dictionary", 7: "sequence", 8: "state"}
    return Feature(name, next((word for number, word in kinds.items() if kind.has(number)), "unknown"))
