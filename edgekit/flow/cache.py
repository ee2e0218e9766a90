"""The cache: content-addressed, safe for several processes, and never needed: everything in it can be made again.

<root>/records/<kind>/<key>.json     small answers
<root>/<kind>/<key>/                 folders: artifacts, models, data, outputs
<root>/locks/<kind>-<key>.lock       held while one process makes a folder
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.core.files import size_of, staged_directory, write_atomic
from edgekit.core.places import cache_dir

T = TypeVar("T")

FOLDER_KINDS = ("artifacts", "models", "data", "outputs", "verifications")


@dataclass(frozen=True)
class Usage:
    """How much one kind of entry takes."""

    kind: str
    entries: int
    bytes: int


class Cache:
    """A cache in one folder.

    Args:
        root: The folder; made when first written to.
        enabled: Where False nothing is found, so that everything is made anew; what is made is kept all the same.
    """

    def __init__(self, root: Path | None = None, enabled: bool = True) -> None:
        self.root = root or cache_dir()
        self.enabled = enabled
        self._fresh: set[Path] = set()

    def record(self, kind: str, key: str, type_: type[T]) -> T | None:
        """A small answer kept under a key, or None. One that cannot be read counts as absent."""
        path = self._record_path(kind, key)
        if not (self.enabled or path in self._fresh) or not path.is_file():
            return None
        try:
            return schema.convert(type_, schema.load_json(path))
        except ConfigError:
            return None

    def put_record(self, kind: str, key: str, value: Any) -> None:
        """Keep a small answer."""
        path = self._record_path(kind, key)
        write_atomic(path, schema.to_json(value))
        self._fresh.add(path)

    def folder(self, kind: str, key: str) -> Path | None:
        """A finished folder, or None."""
        path = self.root / kind / key
        if not (self.enabled or path in self._fresh) or not path.is_dir():
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def make(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        """The folder of a key, filled by `fill` unless it is there.

        Two processes that want the same one make it once: the second waits. A folder appears whole or not at all.
        """
        found = self.folder(kind, key)
        if found is not None:
            return found
        final = self.root / kind / key
        with self._locked(f"{kind}-{key}"):
            found = self.folder(kind, key)
            if found is not None:
                return found
            _remove_leftovers(final)
            with staged_directory(final) as staging:
                fill(staging)
            self._fresh.add(final)
        return final

    def usage(self) -> list[Usage]:
        """How much each kind takes."""
        found = []
        for kind in (*FOLDER_KINDS, "records", "wheels", "devices"):
            folder = self.root / kind
            if folder.is_dir():
                entries = sum(1 for entry in folder.iterdir() if not entry.name.startswith("."))
                found.append(Usage(kind, entries, size_of(folder)))
        return found

    def clear(self, older_than_days: float = 0.0) -> int:
        """Remove entries not used for some days, but for what a device named `local` serves; bytes freed."""
        limit = time.time() - older_than_days * 86400
        freed = 0
        for kind in (*FOLDER_KINDS, "records", "wheels", "locks"):
            folder = self.root / kind
            if not folder.is_dir():
                continue
            for entry in list(folder.rglob("*.json") if kind == "records" else folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat().st_mtime <= limit:
                        freed += size_of(entry)
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return freed

    def _record_path(self, kind: str, key: str) -> Path:
        return self.root / "records" / kind / f"{key}.json"

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        from filelock import FileLock

        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            yield


def _remove_leftovers(final: Path) -> None:
    """Remove what a killed process left of this entry; its lock is held, so nobody is writing there."""
    if final.parent.is_dir():
        for entry in final.parent.iterdir():
            if entry.name.startswith(".") and entry.name.lstrip(".").startswith(f"{final.name}."):
                shutil.rmtree(entry, ignore_errors=True)
