"""A talk with files of ours that run on a device: they are pushed where they are missing, asked, and their outputs fetched."""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekit.core import schema
from edgekit.core.device import Device
from edgekit.core.errors import StableDeviceError
from edgekit.core.files import size_of
from edgekit.core.model import TensorSpec
from edgekit.core.progress import Progress, Step
from edgekit.core.units import format_bytes
from edgekit.runners import _agent_wire as wire
from edgekit.runners._checks import printable, require_space
from edgekit.runners.base import Job
from edgekit.transports.base import CommandResult, Transport

T = TypeVar("T")
_HEADER_BYTES = 4096
_WITH_OUTPUTS = ("outputs", "intermediates")
"""Kinds of workload that leave files to fetch."""


def digest_of(files: Sequence[Path]) -> str:
    """Identity of files that belong together: names and bytes, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass
class Visit:
    """Talks with the files of one device.

    Attributes:
        transport: Open.
        files: What is pushed, the one that is called last: where it is, the others are too.
        folder: Below the device's root, where they go.
        sent: Bytes that had to be sent so far.
    """

    transport: Transport
    files: tuple[Path, ...]
    folder: str = "agent"
    sent: int = 0

    @property
    def device(self) -> Device:
        """Whose turn it is."""
        return self.transport.device

    def remote(self, *parts: str) -> str:
        """A path below the device's root."""
        return "/".join((self.device.root.rstrip("/"), *parts))

    def call(self, request: Mapping[str, Any], seconds: float, step: Step | None = None) -> CommandResult:
        """What the called file printed for a request."""

        def tell(line: str) -> None:
            if step is not None and line.startswith("edgekit: "):
                step.say(printable(line.removeprefix("edgekit: "), 100))

        body = {"schema_version": schema.SCHEMA_VERSION, "root": self.device.root, **request}
        argv = [self.device.python, self.remote(self.folder, digest_of(self.files), self.files[-1].name)]
        data = schema.canonical_json(body)
        return self.transport.run(argv, timeout=seconds, stdin=data, on_stderr=tell)

    def ask(self, kind: type[T], request: Mapping[str, Any], seconds: float, step: Step | None = None) -> T:
        """The answer to a request; see `wire.parse` for what it raises."""
        return wire.parse(kind, self.call(request, seconds, step), self.device)

    def first(self, request: Mapping[str, Any], seconds: float) -> CommandResult:
        """What the called file printed for the first request of a visit: the files are pushed if they are not there."""
        result = self.call(request, seconds)
        if wire.is_absent(result):
            for path in self.files:
                self.push(path, self.remote(self.folder, digest_of(self.files), path.name), None)
            result = self.call(request, seconds)
        return result

    def push(self, local: Path, remote: str, step: Step | None) -> None:
        """Copy one file there; only what had to be sent counts."""

        def told(count: int) -> None:
            self.sent += count
            if step is not None:
                step.advance(count)

        self.transport.push(local, remote, told)

    def send(self, missing: Mapping[str, Path], free_bytes: int, more_bytes: int, progress: Progress) -> None:
        """Push blobs.

        Args:
            missing: Files by SHA-256.
            free_bytes: What is free there.
            more_bytes: What they will take beside their own size.
            progress: Told of it.

        Raises:
            StableDeviceError: They do not fit.
        """
        if not missing:
            return
        total = sum(size_of(path) for path in missing.values())
        require_space(self.device, self.device.root, free_bytes, total + more_bytes)
        with progress.step(f"sending {format_bytes(total)} to {self.device.name}", total=total) as step:
            for sha256, path in sorted(missing.items()):
                step.say(path.name)
                self.push(path, self.remote("store", sha256), step)

    def outputs(self, job: Job, run_id: str, workload: str, examples: int, progress: Progress) -> dict[str, Path]:
        """The outputs that a workload of a run left, fetched into the job's folder and looked at.

        Raises:
            StableDeviceError: One is not what the artifact's manifest says.
        """
        specs, found = job.artifact.manifest.outputs, {}
        with progress.step(f"fetching outputs from {self.device.name}", total=len(specs)) as step:
            for spec in specs:
                found[spec.name] = self._output(job, run_id, workload, spec, examples)
                step.advance()
        return found

    def _output(self, job: Job, run_id: str, workload: str, spec: TensorSpec, examples: int) -> Path:
        import numpy as np

        file = f"{urllib.parse.quote(spec.name, safe='')}.npy"
        local = job.outputs / workload / file
        calls = -(-examples // job.artifact.manifest.inputs[0].batch_size)
        size = calls * int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        self.transport.pull(self.remote("runs", run_id, workload, file), local, size + _HEADER_BYTES)
        try:
            array = np.load(local, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise StableDeviceError(
                f"The output '{spec.name}' from '{self.device.name}' is not an .npy file: {error}."
            ) from error
        if array.dtype.name != spec.dtype or array.shape[1:] != tuple(spec.shape[1:]):
            raise StableDeviceError(
                f"The output '{spec.name}' from '{self.device.name}' is {array.dtype.name} {list(array.shape)}; its"
                f" manifest says {spec.dtype} {list(spec.shape)}.",
                "edgekit compile makes the artifact anew.",
            )
        return local


def examples_of(job: Job, inputs: str) -> int:
    """How many examples a set has; the agent counts one that has exactly the model's shapes as one call."""
    import numpy as np

    spec = job.artifact.manifest.inputs[0]
    shape = np.load(job.inputs[inputs][spec.name], mmap_mode="r", allow_pickle=False).shape
    return int(shape[0]) if shape else 1


def require_all_examples(job: Job, ran: wire.Ran, device: Device) -> dict[str, int]:
    """How many examples each workload that computes outputs or inner values did.

    Raises:
        StableDeviceError: Not all that it was given.
    """
    chosen = {workload.name: workload.inputs for workload in job.plan.workloads}
    done = {run.workload: run.examples for run in ran.runs if run.kind in _WITH_OUTPUTS}
    for name, examples in done.items():
        if examples != examples_of(job, chosen[name]):
            raise StableDeviceError(f"'{device.name}' computed {examples} examples of '{name}', not all of them.")
    return done


def why_unhealthy(job: Job, ran: wire.Ran, device: Device) -> str:
    """What a failed health check found; empty where it went well, or where none was asked for.

    Raises:
        StableDeviceError: The device left it out, or calls outputs good that are not.
    """
    health = ran.health
    if job.health is None:
        return ""
    if health is None:
        raise StableDeviceError(f"'{device.name}' left out the health check.")
    least = job.health.min_cosine
    if not health.ok:
        cosine = "none" if health.cosine is None else f"{health.cosine:.4f}"
        return f"cosine {cosine}, at least {least} is asked for. {printable(health.message)}".rstrip()
    if not (health.cosine or 0.0) >= least:
        raise StableDeviceError(f"'{device.name}' calls a release healthy whose outputs are not.")
    return ""
