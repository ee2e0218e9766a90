"""Artifacts that cells leave behind: how each is run, and how fast those of a group are beside each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.workshop import CellError, Ended, Found, Workshop

_QUICK_ROUNDS = 3
_ROUNDS = 41


def keep(folder: Path, artifact: Path) -> None:
    """Write down, in a cell's folder, how an artifact of edgekit is run: what its backend tells the agent on a device."""
    from edgekit.backends.base import registry
    from edgekit.core.artifact import load_artifact
    from edgekit.core.target import load_target

    loaded = load_artifact(artifact)
    manifest = loaded.manifest
    plan = registry.create(manifest.backend).run_plan(manifest, load_target(manifest.target, ROOT), ())
    run = {
        "backend": manifest.backend,
        "main": str(loaded.main),
        "bindings": dict(plan.bindings),
        "options": dict(plan.options),
    }
    (folder / "run.json").write_text(json.dumps(run))


def said(shop: Workshop, argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> tuple[Found, Ended]:
    """What `edgekit … --json` says, and how it ended.

    Raises:
        CellError: It says nothing, or that it failed.
    """
    document, ended = answered(shop, argv, cwd, env)
    if "error" in document:
        raise CellError(document["error"]["message"])
    return document, ended


def answered(
    shop: Workshop, argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
) -> tuple[Found, Ended]:
    """The document of `edgekit … --json`, an error's too.

    Raises:
        CellError: There is none.
    """
    ended = shop.child([sys.executable, "-m", "edgekit", *argv, "--json"], cwd=cwd, env=env)
    try:
        document: Found = json.loads(ended.stdout)
    except ValueError as error:
        raise CellError(ended.last_words()) from error
    return document, ended


def compiled(shop: Workshop, argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Found:
    """What `edgekit compile … --json` says of its one artifact.

    Raises:
        CellError: It failed.
    """
    found: Found = said(shop, argv, cwd, env)[0]["artifacts"][0]
    return found


def speeds(shop: Workshop, models: Mapping[str, str], inputs: Mapping[str, str]) -> Found:
    """Process time of one inference of several artifacts in one process, interleaved, against the first, which runs twice.

    Args:
        shop: Where they lie.
        models: Keys of their cells, by the names that they get.
        inputs: Files of inputs, by name.

    Raises:
        CellError: The first is not here any more.
    """
    found = {name: model for name, key in models.items() if (model := shop.model(key)) is not None}
    first, key = next(iter(models.items()))
    if first not in found:
        raise CellError(f"the artifact of {key} is not here: make it with --again --only {key}")
    rounds = _QUICK_ROUNDS if shop.quick else _ROUNDS
    return shop.asked("runtime", ("speed",), {"models": found, "inputs": dict(inputs), "rounds": rounds}).document()
