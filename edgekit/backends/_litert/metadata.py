"""TFLite metadata: how inputs are made and outputs read, written into the `.tflite` file and read back.

Android's task library and model explorers read it: a buffer named `TFLITE_METADATA` with a flatbuffer of its own
schema (metadata_schema.fbs, version 1.0), and, behind the model's bytes, a zip archive with the labels. No Python
package with that schema's classes is needed: `_TABLES` states the part that edgekit uses.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.backends._litert import flatbuffer
from edgekit.core.errors import BackendError
from edgekit.core.extras import require
from edgekit.core.model import Normalize, TensorSpec

_BUFFER = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"
_AXIS_LABELS = 2
_COLORS = {3: 1, 1: 2}
"""The schema's colour space by number of channels: RGB, grayscale."""

# Fields in the schema's order: the place is the field's number. A union takes two, its kind and its table.
_TABLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Model": (
        ("name", "string"),
        ("description", "string"),
        ("version", "string"),
        ("subgraphs", "[SubGraph]"),
        ("author", "string"),
        ("license", "string"),
        ("files", "[File]"),
        ("min_parser_version", "string"),
    ),
    "SubGraph": (
        ("name", "string"),
        ("description", "string"),
        ("inputs", "[Tensor]"),
        ("outputs", "[Tensor]"),
    ),
    "Tensor": (
        ("name", "string"),
        ("description", "string"),
        ("dimensions", "[string]"),
        ("content", "Content"),
        ("process_units", "[ProcessUnit]"),
        ("stats", "Stats"),
        ("files", "[File]"),
    ),
    "Content": (("kind", "byte"), ("image", "Image")),
    "Image": (("color_space", "byte"), ("size", "Size")),
    "Size": (("width", "uint"), ("height", "uint")),
    "ProcessUnit": (("kind", "byte"), ("normalization", "Normalization")),
    "Normalization": (("mean", "[float]"), ("std", "[float]")),
    "Stats": (("max", "[float]"), ("min", "[float]")),
    "File": (("name", "string"), ("description", "string"), ("type", "byte")),
}
_IMAGE, _NORMALIZATION = 2, 1
"""Kinds in the unions ContentProperties and ProcessUnitOptions."""


@dataclass(frozen=True)
class TensorMetadata:
    """What a file says of one input or output.

    Attributes:
        name: Its name in the signature.
        normalize: How raw values become the input.
        value_range: Smallest and largest value.
        labels: Names of the classes along the last axis.
        image: Width, height and channels, where it is an image.
    """

    name: str
    normalize: Normalize | None = None
    value_range: tuple[float, float] | None = None
    labels: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class ModelMetadata:
    """What a file says of itself.

    Attributes:
        name: The model's name.
        description: One line for people.
        inputs: Its inputs, in the order of the file.
        outputs: Its outputs, in the order of the file.
    """

    name: str
    description: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def worth_writing(specs: Sequence[TensorSpec]) -> bool:
    """Whether there is anything to say beyond names, which the signature has anyway."""
    return any(spec.normalize or spec.value_range or spec.labels for spec in specs)


def with_metadata(
    content: bytes,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    signature: str,
    *,
    write: Callable[[Any], bytes] = flatbuffer.write,
) -> bytes:
    """The file with what the specs say of its inputs and outputs; what it computes is untouched.

    Args:
        content: The `.tflite` file.
        name: The model's name.
        inputs: Specs of its inputs, as the file takes them.
        outputs: Specs of its outputs, as the file gives them.
        signature: The signature whose tensors the specs name.
        write: What turns the model into bytes.
    """
    model = flatbuffer.read(content)
    order = flatbuffer.signature_order(model, signature)
    specs = {"input": {spec.name: spec for spec in inputs}, "output": {spec.name: spec for spec in outputs}}
    described = {
        "name": name,
        "description": "Made by edgekit.",
        "subgraphs": [
            {
                "inputs": [_tensor(specs["input"][each]) for each in order["input"]],
                "outputs": [_tensor(specs["output"][each]) for each in order["output"]],
            }
        ],
        "min_parser_version": _PARSER,
    }
    flatbuffer.set_metadata(model, _BUFFER, _encoded(described))
    labelled = [spec for spec in outputs if spec.labels]
    return write(model) if not labelled else _with_files(write(model), labelled)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"name": spec.name}
    image = _image(spec)
    if image is not None:
        width, height, channels = image
        size = {"width": width, "height": height}
        found["content"] = {"kind": _IMAGE, "image": {"color_space": _COLORS[channels], "size": size}}
    if spec.normalize is not None:
        values = {"mean": list(spec.normalize.mean), "std": list(spec.normalize.std)}
        found["process_units"] = [{"kind": _NORMALIZATION, "normalization": values}]
    if spec.value_range is not None:
        low, high = spec.value_range
        found["stats"] = {"min": [low], "max": [high]}
    if spec.labels:
        found["files"] = [{"name": _label_file(spec.name), "type": _AXIS_LABELS}]
    return found


def _image(spec: TensorSpec) -> tuple[int, int, int] | None:
    if spec.layout not in ("NCHW", "NHWC") or len(spec.shape) != 4:
        return None
    _, *rest = spec.shape
    channels, height, width = rest if spec.layout == "NCHW" else (rest[2], rest[0], rest[1])
    return (width, height, channels) if channels in _COLORS else None


def _label_file(output: str) -> str:
    return f"{output}_labels.txt"


def _with_files(content: bytes, outputs: Sequence[TensorSpec]) -> bytes:
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for spec in outputs:
            # A fixed date: equal models give equal bytes.
            archive.writestr(zipfile.ZipInfo(_label_file(spec.name)), "\n".join(spec.labels) + "\n")
    return stream.getvalue()


def read_metadata(path: Path) -> ModelMetadata | None:
    """What a `.tflite` file says of itself; None where it says nothing.

    Raises:
        BackendError: Its metadata are damaged, or name a file that is not packed into it.
    """
    content = path.read_bytes()
    data = flatbuffer.metadata_of(flatbuffer.read(content), _BUFFER)
    if data is None:
        return None
    if data[4:8] != _IDENTIFIER:
        raise BackendError(f"The metadata in '{path.name}' are not TFLite metadata of version 1.")
    found = _decoded(data)
    subgraph = (found.get("subgraphs") or [{}])[0]
    return ModelMetadata(
        name=found.get("name", ""),
        description=found.get("description", ""),
        inputs=tuple(_described(each, content, path) for each in subgraph.get("inputs", [])),
        outputs=tuple(_described(each, content, path) for each in subgraph.get("outputs", [])),
    )


def _described(tensor: Mapping[str, Any], content: bytes, path: Path) -> TensorMetadata:
    units = [unit for unit in tensor.get("process_units", []) if unit.get("kind") == _NORMALIZATION]
    values = units[0]["normalization"] if units else None
    stats, image = tensor.get("stats"), tensor.get("content", {}).get("image")
    labels: tuple[str, ...] = ()
    for file in tensor.get("files", []):
        if file.get("type") == _AXIS_LABELS:
            labels = _lines(file["name"], content, path)
    return TensorMetadata(
        name=tensor.get("name", ""),
        normalize=Normalize(tuple(values["mean"]), tuple(values["std"])) if values else None,
        value_range=(stats["min"][0], stats["max"][0]) if stats else None,
        labels=labels,
        image=_pixels(image) if image else None,
    )


def _pixels(image: Mapping[str, Any]) -> tuple[int, int, int] | None:
    channels = {space: count for count, space in _COLORS.items()}.get(image.get("color_space", 0))
    size = image.get("size")
    return (size["width"], size["height"], channels) if size and channels else None


def _lines(name: str, content: bytes, path: Path) -> tuple[str, ...]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return tuple(archive.read(name).decode().splitlines())
    except (zipfile.BadZipFile, KeyError) as error:
        raise BackendError(f"'{path.name}' names the file '{name}', which is not packed into it.") from error


# --- the metadata's own flatbuffer ----------------------------------------------------------------------------------


def _encoded(model: Mapping[str, Any]) -> bytes:
    flatbuffers = require("flatbuffers", "litert", "writing TFLite metadata")
    builder = flatbuffers.Builder(1024)
    builder.Finish(_table(builder, "Model", model), _IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, name: str, values: Mapping[str, Any]) -> int:
    kinds = dict(_TABLES[name])
    # A table's children must stand before it.
    children = {
        field: _child(builder, kinds[field], value) for field, value in values.items() if kinds[field] not in _PLAIN
    }
    builder.StartObject(len(_TABLES[name]))
    for slot, (field, kind) in enumerate(_TABLES[name]):
        if field in children:
            builder.PrependUOffsetTRelativeSlot(slot, children[field], 0)
        elif field in values and kind == "byte":
            builder.PrependInt8Slot(slot, values[field], 0)
        elif field in values:
            builder.PrependUint32Slot(slot, values[field], 0)
    return int(builder.EndObject())


_PLAIN = ("byte", "uint")


def _child(builder: Any, kind: str, value: Any) -> int:
    if kind == "string":
        return int(builder.CreateString(value))
    if not kind.startswith("["):
        return _table(builder, kind, value)
    inner = kind.strip("[]")
    if inner == "float":
        builder.StartVector(4, len(value), 4)
        for number in reversed(value):
            builder.PrependFloat32(number)
        return int(builder.EndVector())
    parts = [_child(builder, inner, part) for part in value]
    builder.StartVector(4, len(parts), 4)
    for part in reversed(parts):
        builder.PrependUOffsetTRelative(part)
    return int(builder.EndVector())


def _decoded(data: bytes) -> dict[str, Any]:
    table = require("flatbuffers.table", "litert", "reading TFLite metadata")
    encode = require("flatbuffers.encode", "litert", "reading TFLite metadata")
    packer = require("flatbuffers.packer", "litert", "reading TFLite metadata")
    start = encode.Get(packer.uoffset, data, 0)
    return _read_table(table.Table(bytearray(data), start), "Model")


def _read_table(table: Any, name: str) -> dict[str, Any]:
    types = require("flatbuffers.number_types", "litert", "reading TFLite metadata")
    found: dict[str, Any] = {}
    for slot, (field, kind) in enumerate(_TABLES[name]):
        offset = table.Offset(4 + 2 * slot)
        if not offset:
            continue
        place = table.Pos + offset
        if kind in _PLAIN:
            found[field] = table.Get(types.Int8Flags if kind == "byte" else types.Uint32Flags, place)
        elif kind == "string":
            found[field] = table.String(place).decode()
        elif kind.startswith("["):
            found[field] = _read_vector(table, offset, kind.strip("[]"), types)
        else:
            found[field] = _read_table(type(table)(table.Bytes, table.Indirect(place)), kind)
    return found


def _read_vector(table: Any, offset: int, inner: str, types: Any) -> list[Any]:
    start, count = table.Vector(offset), table.VectorLen(offset)
    places = [start + 4 * index for index in range(count)]
    if inner == "float":
        return [table.Get(types.Float32Flags, place) for place in places]
    if inner == "string":
        return [table.String(place).decode() for place in places]
    return [_read_table(type(table)(table.Bytes, table.Indirect(place)), inner) for place in places]
