"""A project and a device for it: a real sshd on the loopback interface that counts what is asked of it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from edgekit.core.device import Device
from tests.devices.sshd import Sshd
from tests.e2e.kit import PROJECT, Done, Person, write, write_devices

LOOP_TARGET = """
    schema_version: 1
    name: loop-x86
    summary: A PC that is reached over SSH
    cpu: {arch: x86_64}
    os: {family: linux}
    backends: [openvino, litert, onnxruntime]
    transports: [ssh]
    runtimes: {ai-edge-litert: 2.3.0, onnxruntime: 1.32.0, openvino: 2026.4.1}
    """


class Site:
    """A person with a project, and their device `pi`.

    Args:
        person: The person; the project is their current folder.
        sshd: The device.
    """

    def __init__(self, person: Person, sshd: Sshd) -> None:
        self.person = person
        self.sshd = sshd
        self.first: Done | None = None
        self._log = sshd.folder / "commands"
        sshd.wrap(f'echo "$SSH_ORIGINAL_COMMAND" >> {shlex.quote(str(self._log))}')
        write(person.cwd, {**PROJECT, "targets/loop-x86.yaml": LOOP_TARGET})
        write_devices(person.cwd, pi=self.device())

    def device(self, target: str = "loop-x86", **options: object) -> Device:
        """The device as an entry of devices.yaml."""
        return dataclasses.replace(self.sshd.device(**options), target=target)

    @property
    def root(self) -> Path:
        """The folder of edgekit's on the device."""
        return self.sshd.home / ".edgekit"

    def current(self, model: str = "corners") -> str | None:
        """The release that programs on the device see."""
        link = self.root / "models" / model / "current"
        return link.readlink().name if link.is_symlink() else None

    def releases(self, model: str = "corners") -> set[str]:
        """All releases that are kept."""
        folder = self.root / "models" / model / "releases"
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def commands(self) -> list[str]:
        """Commands and SFTP sessions that were asked for since the last call."""
        if not self._log.exists():
            return []
        asked = self._log.read_text().splitlines()
        self._log.unlink()
        return asked

    def content(self) -> list[Path]:
        """Models, runtimes and blobs on the device: what a deploy sends besides the agent."""
        return [path for name in ("store", "runtimes", "models") for path in (self.root / name).glob("*")]
