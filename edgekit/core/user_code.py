"""The person's own Python: factories and tasks, loaded by file and name, their errors told in their own terms."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit.core.errors import ConfigError, EdgekitError, unknown_name


def load_module(path: Path) -> ModuleType:
    """Import a Python file of the person's project, with its folder on the import path, as `python FILE` has it.

    A file is imported once a process.

    Raises:
        ConfigError: It is missing, or raises while it is imported; names the line.
    """
    resolved = path.resolve()
    if not resolved.is_file():
        raise ConfigError(f"There is no file '{path}'.")
    name = f"edgekit_user_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}_{resolved.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{path}' is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    if str(resolved.parent) not in sys.path:
        sys.path.insert(0, str(resolved.parent))
    sys.modules[name] = module
    try:
        with blame_user(f"importing '{path.name}'"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def load_name(path: Path, name: str) -> Any:
    """An object that a Python file of the person's defines.

    Raises:
        ConfigError: The file does not define it; offers the nearest name.
    """
    module = load_module(path)
    if not hasattr(module, name):
        own = [key for key in vars(module) if not key.startswith("_")]
        raise unknown_name(f"name in '{path.name}':", name, own)
    return getattr(module, name)


@contextmanager
def blame_user(doing: str) -> Iterator[None]:
    """Turn an exception of the person's code into a ConfigError that names their line."""
    try:
        yield
    except EdgekitError:
        raise
    except ModuleNotFoundError as error:
        where = _deepest_user_line(error)
        raise ConfigError(
            f"{doing} failed{where}: the module '{error.name}' is not installed.", f"pip install {error.name}"
        ) from error
    except Exception as error:
        where = _deepest_user_line(error)
        text = str(error).strip()
        raise ConfigError(f"{doing} failed{where}: {type(error).__name__}{f': {text}' if text else ''}") from error


def _deepest_user_line(error: BaseException) -> str:
    """` at file:line` of the innermost frame that is neither ours nor an installed library's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return f" at {Path(frame.filename).name}:{frame.lineno}"
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {Path(error.filename).name}:{error.lineno}"
    return ""


def _is_users(filename: str) -> bool:
    ours = str(Path(__file__).resolve().parent.parent)
    return not (filename.startswith((ours, "<", sys.base_prefix)) or "site-packages" in filename)
