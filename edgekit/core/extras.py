"""Optional libraries: imported where they are used, with a clear word when they are absent."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from edgekit.core.errors import MissingExtraError


def require(module: str, extra: str, why: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: Dotted module name.
        extra: The extra of edgekit that installs it.
        why: What needs it, as a phrase: "the litert backend".

    Raises:
        MissingExtraError: It is not installed; the hint is the pip line.
    """
    _silence(module.partition(".")[0])
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise MissingExtraError(
            f"{why} needs the Python package that provides '{missing}', which is not installed.",
            f"pip install 'edgekit[{extra}]'",
        ) from error


def _silence(library: str) -> None:
    """Switch off a library's reports to its makers before it is imported: afterwards is too late.

    ONNX Runtime writes a device id on import, and OpenVINO loads a reporter; neither asks.
    """
    if library == "onnxruntime":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    elif library in ("openvino", "nncf"):
        # None in the table of modules makes the import fail, and OpenVINO then takes its own silent stand-in.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # documented use of None


def is_installed(module: str) -> bool:
    """Whether `module` could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_of_package(thing: object) -> str:
    """The source text of all modules beside the one that defines an object's class, and below: its private helpers too."""
    folder = Path(inspect.getfile(type(thing))).parent
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))


def versions_of(distributions: tuple[str, ...]) -> dict[str, str]:
    """The installed versions of those `distributions` that are there."""
    return {name: version for name in distributions if (version := version_of(name)) is not None}


def normalized(distribution: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
