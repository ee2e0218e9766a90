"""What running a piece of the person's code depended on: files opened, folders listed, modules imported.

A trace answers "would running it again give the same?" without running it, and so without importing torch. Files that
Python opens are seen through an audit hook, and safetensors' through its reader. What is not seen: environment
variables, the clock, random numbers, and files opened by native code alone; against the last, every file beside the
source that looks like weights belongs to the trace whether it was opened or not.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.core.extras import is_installed, version_of
from edgekit.core.files import sha256_file, sha256_text
from edgekit.core.user_code import library_prefixes

WEIGHT_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".h5", ".keras", ".npy", ".npz", ".onnx", ".pkl", ".pt", ".pt2", ".pth", ".safetensors", ".data"}
)
_NAMED_SUFFIXES = WEIGHT_SUFFIXES | {".py", ".json"}
_SYSTEM = ("/proc/", "/dev/", "/sys/")
_MAX_NEIGHBOURS = 2000
_LIBRARY_SUFFIXES = frozenset({".py", ".pyc", ".so", ".pth", ".dylib", ""})


@dataclass(frozen=True)
class Dependencies:
    """What a run depended on.

    Attributes:
        files: SHA-256 by path; the empty string for a file that was not there.
        folders: Hash of the names in a folder that the code listed, by path.
        neighbours: Hash of the paths of weights and code in and below the source's folder, by the folder's path.
        distributions: Versions of installed distributions that were imported.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    neighbours: Mapping[str, str] = field(default_factory=dict)
    distributions: Mapping[str, str] = field(default_factory=dict)

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        return (
            all(version_of(name) == version for name, version in self.distributions.items())
            and all(_names_hash(Path(path)) == names for path, names in self.folders.items())
            and all(_neighbours_hash(Path(path)) == names for path, names in self.neighbours.items())
            and all(_file_hash(Path(path)) == digest for path, digest in self.files.items())
        )

    def digest(self) -> str:
        """One hash of it all."""
        parts = [
            f"{kind}:{key}={value}"
            for kind in ("files", "folders", "neighbours", "distributions")
            for key, value in sorted(getattr(self, kind).items())
        ]
        return sha256_text("\n".join(parts))


class _Recorder:
    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()


_active: list[_Recorder] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # Called for every audited event of the process, for good: the common case has to cost nothing.
    if not _active:
        return
    if event == "open":
        path, mode = arguments[0], arguments[1]
        if isinstance(path, str) and (mode is None or "r" in mode):
            for recorder in _active:
                recorder.files.add(path)
    elif event in ("os.listdir", "os.scandir"):
        path = arguments[0]
        caller = sys._getframe(1).f_globals.get("__name__", "")
        # The import system lists folders to find modules; that is no wish of the person's code.
        if isinstance(path, str) and not caller.startswith("importlib"):
            for recorder in _active:
                recorder.folders.add(path)


@functools.cache
def _install_hook() -> None:
    """Add the audit hook, once a process: there is no way to take one away."""
    sys.addaudithook(_hook)


@contextmanager
def tracing(beside: Path, ignore: Path | None = None) -> Iterator[list[Dependencies]]:
    """Record what the block depends on; afterwards the yielded list holds it.

    Args:
        beside: The source's file: itself and the weights beside it belong to the trace.
        ignore: A folder that the block writes to itself.
    """
    _install_hook()
    recorder = _Recorder()
    started = time.time()
    found: list[Dependencies] = []
    with _watch_safetensors():
        _active.append(recorder)
        try:
            yield found
        finally:
            _active.remove(recorder)
    if ignore is not None:
        recorder.files = {name for name in recorder.files if not Path(name).is_relative_to(ignore)}
    recorder.files = {name for name in recorder.files if not _is_scratch(Path(name), started)}
    found.append(_dependencies(recorder, beside))


def _is_scratch(path: Path, since: float) -> bool:
    """Whether a file is a temporary one that was made while the trace ran: a library's scratch paper, no input."""
    if not path.absolute().is_relative_to(tempfile.gettempdir()):
        return False
    try:
        return path.stat().st_ctime >= since
    except OSError:
        return False


def _watched_safe_open(original: Any) -> Any:
    @functools.wraps(original, updated=())
    def recording(filename: Any, *args: Any, **keywords: Any) -> Any:
        for recorder in _active:
            recorder.files.add(os.fsdecode(filename))
        return original(filename, *args, **keywords)

    return recording


@contextmanager
def _watch_safetensors() -> Iterator[None]:
    """Record the files that safetensors opens: its reader is native code, which no audit event tells of."""
    if not is_installed("safetensors"):
        yield
        return
    # Imported here so that the person's code, which mostly imports it within the block, gets the watched reader.
    import safetensors

    original = safetensors.safe_open
    watched = _watched_safe_open(original)

    def put(old: Any, new: Any) -> None:
        for name in ("safetensors", "safetensors.torch", "safetensors.numpy"):
            module = sys.modules.get(name)
            if module is not None and getattr(module, "safe_open", None) is old:
                module.safe_open = new  # type: ignore[attr-defined]  # a module's attribute, set on purpose

    put(original, watched)
    try:
        yield
    finally:
        put(watched, original)


def _dependencies(recorder: _Recorder, beside: Path) -> Dependencies:
    prefixes = library_prefixes()
    files: dict[str, str] = {}
    for name in sorted(recorder.files | {str(beside)} | _user_modules(prefixes)):
        path = Path(name).absolute()
        if not _counts(path, prefixes):
            continue
        files[str(path)] = _file_hash(path)
    home = beside.absolute().parent
    for path in neighbours(home):
        if path.suffix in WEIGHT_SUFFIXES:
            files.setdefault(str(path), _file_hash(path))
    folders = {}
    for name in sorted(recorder.folders):
        path = Path(name).absolute()
        if path.is_dir() and not str(path).startswith((*prefixes, *_SYSTEM)) and not _is_hidden(path):
            folders[str(path)] = _names_hash(path)
    # A weight file that appears beside the source later changes the names, and so the trace.
    return Dependencies(files, folders, {str(home): _neighbours_hash(home)}, _imported_distributions())


def neighbours(folder: Path) -> list[Path]:
    """The files in `folder` and its subfolders that look like weights or code, but for hidden, build and cache folders."""
    found: list[Path] = []
    pending = [folder]
    while pending and len(found) < _MAX_NEIGHBOURS:
        here = pending.pop()
        try:
            entries = sorted(here.iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in ("build", "dist", "node_modules", "__pycache__"):
                continue
            if entry.is_dir() and not entry.is_symlink() and len(pending) < _MAX_NEIGHBOURS:
                pending.append(entry)
            elif entry.suffix in _NAMED_SUFFIXES and entry.is_file():
                found.append(entry)
    return found


def _counts(path: Path, prefixes: tuple[str, ...]) -> bool:
    """Whether a file that was opened belongs to a trace: data and the person's code do, libraries' code does not."""
    text = str(path)
    if text.startswith(_SYSTEM) or path.is_dir():
        return False
    if text.startswith(prefixes):
        return path.suffix not in _LIBRARY_SUFFIXES and path.suffix in WEIGHT_SUFFIXES | {".json"} and path.is_file()
    return "__pycache__" not in path.parts and not _is_hidden(path) and (path.is_file() or not path.exists())


def _is_hidden(path: Path) -> bool:
    """Whether it lies in our own folder or git's inside a project: what we write there is no input."""
    return ".edgekit" in path.parts or ".git" in path.parts


def _file_hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return ""


def _names_hash(folder: Path) -> str:
    """Hash of the names in a folder, but for hidden ones and caches: those come and go without meaning."""
    try:
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith((".", "__pycache__")))
    except OSError:
        return ""
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def _neighbours_hash(folder: Path) -> str:
    names = sorted(path.relative_to(folder).as_posix() for path in neighbours(folder))
    return sha256_text("\0".join(names))


def _user_modules(prefixes: tuple[str, ...]) -> set[str]:
    """Source files of imported modules that belong to no installed library: cached bytecode hides their opening."""
    found = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(".py") and name.startswith(os.sep) and not name.startswith(prefixes):
            found.add(name)
    return found


@functools.cache
def _providers() -> dict[str, list[str]]:
    """Installed distributions by the module they provide; read once a process, for it takes long."""
    import importlib.metadata

    return dict(importlib.metadata.packages_distributions())


def _imported_distributions() -> dict[str, str]:
    """Versions of the installed distributions whose modules are imported, and Python's own."""
    top_level = {name.partition(".")[0] for name in sys.modules}
    providers = _providers()
    names = {distribution for module in top_level for distribution in providers.get(module, ())}
    return {name: version for name in sorted(names) if (version := version_of(name)) is not None}
