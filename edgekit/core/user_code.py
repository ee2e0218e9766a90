"""The person's own Python: factories and tasks, loaded by file and name, their errors told in their own terms."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit.core.errors import ConfigError, EdgekitError, unknown_name

_imported: set[str] = set()
"""Names of the person's modules that `fresh_modules` has seen come in."""


@functools.cache
def library_prefixes() -> tuple[str, ...]:
    """Folders of installed libraries, Python's own and edgekit, each ending in a separator."""
    paths = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = str(Path(__file__).resolve().parent.parent)
    # Not sys.base_prefix: that is /usr where the system's Python is used, and people have projects below it.
    found = {*paths, *site.getsitepackages(), site.getusersitepackages(), ours}
    return tuple(sorted(path.rstrip(os.sep) + os.sep for path in found if path))


@contextmanager
def fresh_modules() -> Iterator[None]:
    """Run the block as a new process would: what the person's files and their helpers import, they import anew.

    Otherwise a file that was edited, or that reads weights while it is imported, would go on giving what it gave first.
    Modules that the block does not import again are put back afterwards.
    """
    aside = {name: module for name in _imported if (module := sys.modules.pop(name, None)) is not None}
    before = set(sys.modules)
    try:
        yield
    finally:
        _imported.update(name for name in sys.modules.keys() - before if _is_users_module(sys.modules[name]))
        for name, module in aside.items():
            sys.modules.setdefault(name, module)


def load_module(path: Path) -> ModuleType:
    """Import a Python file of the person's project, with its folder on the import path, as `python FILE` has it.

    A file is imported once a process, but for what `fresh_modules` says.

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
    return not filename.startswith((*library_prefixes(), "<"))


def _is_users_module(module: object) -> bool:
    # Not getattr: libraries put objects there that answer to every name. A package without __init__.py has only a path.
    names: dict[str, Any] = getattr(module, "__dict__", {})
    places = [names.get("__file__"), *names.get("__path__", ())]
    found = [place for place in places if isinstance(place, str)]
    return bool(found) and all(_is_users(place) for place in found)
