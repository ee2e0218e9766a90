"""Where edgekit keeps things on the host: caches, settings, results."""

from __future__ import annotations

import os
from pathlib import Path

APP = "edgekit"
PROJECT_FILE = "edgekit.yaml"
DEVICES_FILE = "devices.yaml"


def cache_dir() -> Path:
    """The folder of everything that can be made again: `EDGEKIT_CACHE_DIR`, else the system's place for caches."""
    chosen = os.environ.get("EDGEKIT_CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir(APP))


def config_dir() -> Path:
    """The folder of the person's settings: `EDGEKIT_CONFIG_DIR`, else the system's place for settings."""
    chosen = os.environ.get("EDGEKIT_CONFIG_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_config_dir(APP))


def find_root(start: Path) -> Path:
    """The nearest folder from `start` upwards with an `edgekit.yaml`, else `start`."""
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder
    return start


def project_dir(root: Path) -> Path:
    """The folder, inside a project, of what belongs to it: results, logs."""
    return root / f".{APP}"


def results_at(root: Path) -> str | Path:
    """The store of results: `EDGEKIT_RESULTS` (a file or a database's URL), else a file in the project."""
    return os.environ.get("EDGEKIT_RESULTS") or project_dir(root) / "results.sqlite"
