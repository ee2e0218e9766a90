"""Debian packages of another architecture, fetched and unpacked without root and without changing this system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.devices.rootfs import UnavailableError

SECONDS = 900


class Apt:
    """An apt with lists and a cache of its own: no foreign architecture is added to this system's.

    It uses the sources of this system, so that these have to be Debian's.

    Args:
        folder: Everything of it goes there.
        architecture: As Debian names it: `arm64`.

    Raises:
        UnavailableError: This system has no apt.
    """

    def __init__(self, folder: Path, architecture: str) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise UnavailableError(
                "Packages for the emulated device come from Debian: this needs apt-get and dpkg-deb."
            )
        self.folder = folder.resolve()
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        status = self.folder / "state/status"
        status.touch()
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Dir::Cache": str(self.folder / "cache"),
            "Dir::State": str(self.folder / "state"),
            "Dir::State::status": str(status),
        }
        self._configuration = self.folder / "apt.conf"
        self._configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        self._run("apt-get", "update")

    def needs(self, package: str) -> list[str]:
        """The names of the packages that a package depends on itself."""
        found = self._run("apt-cache", "depends", "--important", package)
        return re.findall(r"^\s+\|?(?:Pre)?Depends: ([^\s<>]+)$", found, re.MULTILINE)

    def fetch(self, packages: Iterable[str]) -> list[Path]:
        """The files of packages, without what they depend on.

        Raises:
            UnavailableError: There is no such package, or it cannot be fetched.
        """
        before = set(self.folder.glob("*.deb"))
        self._run("apt-get", "download", *packages)
        return sorted(set(self.folder.glob("*.deb")) - before)

    def _run(self, *argv: str) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C"}
        done = subprocess.run(
            argv, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode != 0:
            raise UnavailableError(
                f"`{' '.join(argv)}` for another architecture failed:\n{done.stderr.strip()[-2000:]}"
            )
        return done.stdout


def unpack(package: Path, folder: Path) -> None:
    """The files of a package into a folder; none of its scripts are run."""
    subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
