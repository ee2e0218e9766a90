"""LiteRT.js, as two npm packages carry it: fetched once with the person's own npm configuration, checked, kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from edgekit.core.errors import ConfigError, TransientDeviceError
from edgekit.core.files import sha256_file, staged_directory
from edgekit.core.places import cache_dir

VERSION = "2.5.3"
_NPM_SECONDS = 600


class Package(NamedTuple):
    """One npm package.

    Attributes:
        name: Its name at npm.
        sha256: Of the file that `npm pack` gives.
    """

    name: str
    sha256: str


PACKAGES = {
    "core": Package("@litertjs/core", "a97660833e9e7e1063c95e12016718881240b14f7438728a2f62785e912d30fd"),
    "wasm-utils": Package("@litertjs/wasm-utils", "ce2a1f8379c067be49e59752e5a7f40db6be09f6e497f0f11e59f17b515366a7"),
}


def litertjs() -> dict[str, Path]:
    """The folder of each package by the name that the page calls it by; about 40 MB, fetched when first asked for.

    Raises:
        ConfigError: npm is missing, or gives another file than the one that is pinned.
        TransientDeviceError: npm cannot reach its registry.
    """
    return {key: _unpacked(package) for key, package in PACKAGES.items()}


def _unpacked(package: Package) -> Path:
    folder = cache_dir() / "npm" / f"{package.name.replace('/', '-').lstrip('@')}-{VERSION}-{package.sha256[:12]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix="edgekit-npm-") as work:
            archive = _fetched(package, Path(work))
            with staged_directory(folder) as staging, tarfile.open(archive, "r:gz") as content:
                content.extractall(staging, filter="data")
    return folder / "package"


def _fetched(package: Package, work: Path) -> Path:
    wanted = f"{package.name}@{VERSION}"
    argv = [_npm(wanted), "pack", "--silent", "--ignore-scripts", wanted]
    try:
        done = subprocess.run(argv, cwd=work, capture_output=True, text=True, check=False, timeout=_NPM_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TransientDeviceError(f"`npm pack {wanted}` did not end within {_NPM_SECONDS} s.") from error
    files = sorted(work.glob("*.tgz"))
    if done.returncode != 0 or len(files) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise TransientDeviceError(
            f"`npm pack {wanted}` failed: {said[-1] if said else f'exit code {done.returncode}'}",
            "npm has to reach its registry once; what it gives is kept after that.",
        )
    found = sha256_file(files[0])
    if found != package.sha256:
        raise ConfigError(f"The npm package {wanted} has the SHA-256 {found}; {package.sha256} was expected.")
    return files[0]


def _npm(wanted: str) -> str:
    """npm: the system's, which knows the system's settings, else the one of this Python's environment."""
    found = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if found is None:
        raise ConfigError(
            f"Running a model in a browser needs the npm package {wanted}, and there is no `npm` here.",
            "pip install 'edgekit[browser]'",
        )
    return found
