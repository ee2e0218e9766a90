"""A look at a device that tells whether a fault has broken it. Standard library only: it runs on the device as well.

`python3 whole.py ROOT MODEL` prints `{"current": …, "broken": […]}`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path


def current(root: Path, model: str) -> str | None:
    """The release that programs on the device see."""
    link = root / "models" / model / "current"
    return link.readlink().name if link.is_symlink() else None


def broken(root: Path, model: str) -> list[str]:
    """What is wrong with a device: nothing, whatever happened to it.

    A release in force has to be there whole; a blob has to hold what its name says; a kept release has to be whole, too.
    """
    wrong = []
    link = root / "models" / model / "current"
    if link.is_symlink() and not (link / "release.json").is_file():
        wrong.append(f"current points to {link.readlink()}, which is not there")
    for folder in (root / "models" / model / "releases").glob("[!.]*"):
        record = json.loads((folder / "release.json").read_text())
        for entry in record["files"]:
            path = folder / entry["path"]
            if not path.is_file() or digest_of(path) != entry["sha256"]:
                wrong.append(f"{folder.name[:12]}: {entry['path']} is not what it was")
    blobs = [path for path in (root / "store").glob("*") if len(path.name) == 64]
    return wrong + [f"the blob {path.name[:12]} has other bytes" for path in blobs if digest_of(path) != path.name]


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    ROOT, MODEL = Path(sys.argv[1]), sys.argv[2]
    print(json.dumps({"current": current(ROOT, MODEL), "broken": broken(ROOT, MODEL)}))
