"""Writing of an `.mlpackage`: metadata, and the same bytes for the same model.

It is the converter's side; the evaluator does not use it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.core.extras import require
from edgekit.core.files import write_atomic

_WHY = "the backend coreml"
_EXTRA = "coreml"
_CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"


def save(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a package whose bytes depend on the model alone.

    Args:
        model: The `MLModel`.
        path: The package.
        metadata: More of the user's own metadata, by key.
    """
    for key, value in metadata.items():
        model.user_defined_metadata[key] = value
    model.save(str(path))
    # A by-product of the converter that no runtime reads.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    specification = next((path / "Data").rglob("*.mlmodel"))
    _normalize_specification(specification)
    _normalize_manifest(path)


def _normalize_specification(path: Path) -> None:
    """Write the model's message anew: map fields in a fixed order, and no date."""
    model_pb2 = require("coremltools.proto.Model_pb2", _EXTRA, _WHY)
    specification = model_pb2.Model()
    specification.ParseFromString(path.read_bytes())
    user = specification.description.metadata.userDefined
    if _CONVERSION_DATE in user:
        del user[_CONVERSION_DATE]
    write_atomic(path, specification.SerializeToString(deterministic=True))


def _normalize_manifest(package: Path) -> None:
    """Replace the random identifiers of the package's items by ones made from their contents."""
    manifest = package / "Manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    entries, root = {}, content["rootModelIdentifier"]
    for old, entry in content["itemInfoEntries"].items():
        new = _identifier(package / "Data" / entry["path"], entry["path"])
        entries[new] = entry
        if old == root:
            content["rootModelIdentifier"] = new
    content["itemInfoEntries"] = dict(sorted(entries.items(), key=lambda pair: str(pair[1]["path"])))
    write_atomic(manifest, json.dumps(content, indent=4, sort_keys=True) + "\n")


def _identifier(item: Path, name: str) -> str:
    digest = hashlib.sha256(name.encode())
    files = sorted(file for file in item.rglob("*") if file.is_file()) if item.is_dir() else [item]
    for file in files:
        digest.update(file.read_bytes())
    return str(uuid.UUID(bytes=digest.digest()[:16], version=4))
