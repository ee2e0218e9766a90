"""Reads an ONNX file and says plainly what is wrong with it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.program import first_line

_FIRST_BYTE = 0x08
"""Every ONNX file starts with the tag of `ir_version`, the first field that all writers put first."""


def load_checked(path: Path, *, weights: bool = True) -> tuple[Any, tuple[Path, ...]]:
    """Read and check an ONNX file.

    Files of more than 2 GB can be read: the checker is given the path, and nothing is serialized again.

    Args:
        path: The `.onnx` file; weights in external files lie in its folder or below.
        weights: Whether to load weights from external files too.

    Returns:
        The `onnx.ModelProto`, and the external files it refers to, sorted.

    Raises:
        ConfigError: The file is missing, cut off, no ONNX file or malformed; a file with weights is missing, too short,
            or lies outside the model's folder.
        UnsupportedModelError: It needs a newer opset or IR version than the installed onnx knows.
    """
    onnx = require("onnx", "onnx", "reading an ONNX file")
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    model = _parse(onnx, path)
    _check_versions(onnx, path, model)
    external = _external_files(onnx, path, model)
    _check(onnx, path)
    if weights and external:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model, external


def _parse(onnx: Any, path: Path) -> Any:
    with path.open("rb") as stream:
        head = stream.read(1)
    if not head:
        raise ConfigError(f"{path} is empty.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError lives in a package that need not be importable by name
        if head[0] == _FIRST_BYTE:
            raise ConfigError(
                f"{path} is cut off or damaged: it starts like an ONNX file and cannot be read to its end"
                f" ({path.stat().st_size} bytes).",
                "Copy or download it again, and compare its size and hash with the original's.",
            ) from error
        raise _not_onnx(path) from error
    if not model.HasField("graph"):
        raise _not_onnx(path) if head[0] != _FIRST_BYTE else ConfigError(f"{path} is cut off: it has no graph.")
    return model


def _not_onnx(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is not an ONNX file.", "Write one with torch.onnx.export(model, args, 'net.onnx', dynamo=True)."
    )


def _check_versions(onnx: Any, path: Path, model: Any) -> None:
    newest_ir = max(onnx.IR_VERSION, *(row[1] for row in onnx.helper.VERSION_TABLE))
    if model.ir_version > newest_ir:
        raise UnsupportedModelError(
            f"{path} is written in ONNX IR version {model.ir_version}; the installed onnx {onnx.__version__} reads up to"
            f" {newest_ir}.",
            "pip install --upgrade onnx",
        )
    if not model.opset_import:
        raise ConfigError(f"{path} is cut off or damaged: it does not say which opset it uses.")
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise UnsupportedModelError(
                f"{path} uses ONNX opset {entry.version}; the installed onnx {onnx.__version__} knows up to {newest}.",
                f"pip install --upgrade onnx, or export the model with opset {newest} or older.",
            )


def _external_files(onnx: Any, path: Path, model: Any) -> tuple[Path, ...]:
    found: dict[Path, str] = {}
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _inside(path, tensor.name, entries.get("location", ""))
        if not file.is_file():
            raise ConfigError(
                f"{path} keeps the weight '{tensor.name}' in the file '{entries['location']}', which is not there"
                f" ({file}).",
                "Copy that file next to the model, under the same name.",
            )
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if end > file.stat().st_size:
            raise ConfigError(
                f"{file} is cut off: the weight '{tensor.name}' of {path.name} ends at byte {end}, the file at"
                f" {file.stat().st_size}.",
                "Copy that file again.",
            )
        found[file] = tensor.name
    return tuple(sorted(found))


def _inside(path: Path, weight: str, location: str) -> Path:
    """The file that `location` names.

    Raises:
        ConfigError: It could lie outside the model's folder. A model is data from others; it must not read our disk.
    """
    folder = path.parent.resolve()
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    file = path.parent / location
    if not location or absolute or ".." in parts or not file.resolve().is_relative_to(folder):
        raise ConfigError(
            f"{path} keeps the weight '{weight}' at '{location}', which is not inside the model's own folder; edgekit"
            " does not follow it.",
            "Save the model again with its weights beside it.",
        )
    return file


def _check(onnx: Any, path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ConfigError(f"{path} is not a valid ONNX model: {first_line(error)}") from error
