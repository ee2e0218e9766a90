"""A visit to a device that keeps releases by its shell alone, whatever runs models there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.core.errors import StableDeviceError
from edgekit.core.files import size_of
from edgekit.core.progress import Progress
from edgekit.core.run_output import Health
from edgekit.core.units import format_bytes
from edgekit.runners._checks import printable, require_name, require_space
from edgekit.runners._shell_facts import FactsReader
from edgekit.runners._shell_store import Seen, ShellStore
from edgekit.runners.base import Job, Rollback
from edgekit.transports.base import Transport

_PUSH_SECONDS = 600.0
_BYTES_PER_SECOND = 128 << 10


class ShellVisit:
    """What such a visit is made of.

    Args:
        job: The job.
        transport: An open transport.
        progress: Told what is done.
        facts: How the device is asked what it is.

    Raises:
        ConfigError: The model's name cannot be one on a device.
    """

    def __init__(self, job: Job, transport: Transport, progress: Progress, facts: FactsReader) -> None:
        self.job, self.transport, self.progress = job, transport, progress
        self.device, self.store = transport.device, ShellStore(transport, facts)
        self.model = require_name(job.artifact.manifest.name)
        self.files = {entry.sha256: job.artifact.path / entry.path for entry in job.artifact.manifest.files}
        self.seconds: dict[str, float] = {}
        self.sent = 0

    def timed(self, step: str, begin: float) -> float:
        """Write down how long a step took; the time now."""
        now = time.monotonic()
        self.seconds[step] = now - begin
        return now

    def send(self, seen: Seen, files: Mapping[str, Path]) -> None:
        """Send what is missing of some files, by their hashes.

        Raises:
            StableDeviceError: They do not fit.
        """
        missing = {sha: path for sha, path in files.items() if sha in seen.missing}
        if not missing:
            return
        total = sum(size_of(path) for path in missing.values())
        if seen.free_bytes is not None:
            require_space(self.device, self.store.root, seen.free_bytes, total)
        self.store.hold(_PUSH_SECONDS + total / _BYTES_PER_SECOND)
        with self.progress.step(f"sending {format_bytes(total)} to {self.device.name}", total=total) as step:
            for sha, path in sorted(missing.items()):
                step.say(path.name)
                self.sent += self.store.push(path, "store", sha)
                step.advance(path.stat().st_size)

    def require_unsigned(self, seen: Seen) -> None:
        """Refuse a device that takes signed releases only: a shell cannot check a signature.

        Raises:
            StableDeviceError: It is one.
        """
        if self.job.release and seen.trusted_key is not None:
            raise StableDeviceError(
                f"'{self.device.name}' takes releases signed by {printable(seen.trusted_key, 16)} only, and without Python"
                " it cannot check a signature: nothing was sent.",
                "Deploy there with the runner agent, or have the device's owner remove the file trusted-key in its folder"
                " of edgekit.",
            )

    def release(self, check: Callable[[str], Health | None]) -> tuple[str, Health | None, str | None]:
        """Lay the release out, have it checked, switch to it.

        Args:
            check: Given the path of the model's file there; raises where the release must not be switched to.

        Returns:
            The path of the model's file there, how its health check ended, and the release in force before.
        """
        job, main = self.job, self.job.plan.model_file
        if not job.release:
            entry = next(entry for entry in job.artifact.manifest.files if entry.path == main)
            return self.store.at("store", entry.sha256), None, None
        with self.progress.step(f"checking the release on {self.device.name}"):
            model = f"{self.store.install(job.artifact, main)}/{main}"
            health = check(model)
            switched = self.store.switch(self.model, job.artifact.digest, job.keep_releases)
        if switched.values.get("hook", "0") != "0":
            self.progress.warn(f"{self.device.name}: the hook on-switch failed (exit status {switched.values['hook']})")
        return model, health, switched.values.get("previous")


def roll_back(transport: Transport, facts: FactsReader, model: str, to: str | None) -> Rollback:
    """See `Runner.rollback`."""
    require_name(model)
    if to is not None:
        require_name(to)
    store = ShellStore(transport, facts)
    store.inspect(model)
    with store.locked():
        done = store.rollback(model, to)
    return Rollback(done.values["current"], done.values.get("previous"))


def probe(transport: Transport, facts: FactsReader) -> dict[str, Any]:
    """See `Runner.probe`."""
    seen = ShellStore(transport, facts).inspect()
    return {**seen.facts, "free_mib": None if seen.free_bytes is None else seen.free_bytes >> 20}
