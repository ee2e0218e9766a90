"""Baselines: results kept under a name in the project, so that later runs are compared with the same thing each time.

`.edgekit/baselines/NAME.json` holds the results whole, the digests of their artifacts, and a hash of it all: a baseline
is a file that may be committed, and one that somebody edited is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.core import schema
from edgekit.core.errors import ConfigError, unknown_name
from edgekit.core.files import sha256_bytes, write_atomic
from edgekit.core.places import project_dir
from edgekit.core.result import Result

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Baseline:
    """Results kept under a name.

    Attributes:
        schema_version: Of the file.
        kind: `baseline`.
        name: What it is called.
        artifacts: Digests of the artifacts that it pins.
        sha256: Of the results, so that a change is noticed.
        results: The results, with their samples.
    """

    schema_version: int
    kind: str
    name: str
    artifacts: tuple[str, ...]
    sha256: str
    results: tuple[Result, ...]


def save(root: Path, name: str, results: Sequence[Result]) -> Path:
    """Keep results as the baseline `name` of the project at `root`; one of that name is replaced.

    Raises:
        ConfigError: The name cannot be a file's, or there are no results.
    """
    path = _path(root, name)
    if not results:
        raise ConfigError(f"There is no result to keep as the baseline '{name}'.", "edgekit report --list")
    artifacts = tuple(dict.fromkeys(result.artifact_digest for result in results))
    baseline = Baseline(schema.SCHEMA_VERSION, "baseline", name, artifacts, _hash(results), tuple(results))
    write_atomic(path, schema.to_json(baseline))
    return path


def load(root: Path, name: str) -> Baseline:
    """The baseline `name` of the project at `root`.

    Raises:
        ConfigError: There is none, or its file was changed or cut off.
    """
    path = _path(root, name)
    if not path.is_file():
        known = [file.stem for file in path.parent.glob("*.json")]
        raise unknown_name("baseline", name, known, f"edgekit compare --save-baseline {name} RUN")
    baseline = schema.versioned(Baseline, schema.load_json(path))
    if not baseline.results or _hash(baseline.results) != baseline.sha256:
        raise ConfigError(
            f"The baseline '{path}' is not what was saved: its results do not have the hash in it.",
            f"edgekit compare --save-baseline {name} RUN",
        )
    return baseline


def _path(root: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name a baseline: letters, digits, '.', '_' and '-' can, 64 of them at most.",
            "edgekit compare --save-baseline main RUN",
        )
    return project_dir(root) / "baselines" / f"{name}.json"


def _hash(results: Sequence[Result]) -> str:
    return sha256_bytes(schema.canonical_json([schema.to_plain(result) for result in results]))
