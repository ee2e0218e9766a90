"""Runner: how a run plan is executed on a device and its output read."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core.artifact import Artifact
from edgekit.core.conditions import Held
from edgekit.core.errors import ConfigError
from edgekit.core.progress import Progress
from edgekit.core.registry import Registry
from edgekit.core.run_output import RunOutput
from edgekit.core.workload import RunPlan, WorkloadKind
from edgekit.transports.base import Transport

InputSet = Mapping[str, Path]
"""One `.npy` an input, by input name; the first axis counts examples."""


@dataclass(frozen=True)
class HealthCheck:
    """What a new release must do on the device before it is switched to.

    Attributes:
        inputs: The set of inputs it is given.
        expected: One `.npy` an output: what the artifact gave on the host.
        min_cosine: Least cosine similarity to that.
    """

    inputs: str
    expected: InputSet
    min_cosine: float = 0.99


@dataclass(frozen=True)
class Job:
    """One visit to a device.

    Attributes:
        artifact: What is run there.
        plan: How.
        inputs: The sets of inputs that the plan's workloads and the health check name.
        release: Whether the artifact becomes the model's current release on the device.
        health: The check before that switch.
        keep_releases: How many earlier releases stay.
        host_runtime: Whether the runtime of the interpreter that runs the agent is used, instead of wheels of our own;
            only where the device is this very machine.
        outputs: Folder on the host where the outputs are put.
        conditions: What is held on the device while it is measured, by a runner that `holds`.
        arch: The instruction set that the artifact's target has; a device with another one is refused before anything
            of the job is sent. None where any will do.
    """

    artifact: Artifact
    plan: RunPlan
    outputs: Path
    inputs: Mapping[str, InputSet] = field(default_factory=dict)
    release: bool = False
    health: HealthCheck | None = None
    keep_releases: int = 2
    host_runtime: bool = False
    arch: str | None = None
    conditions: Held = field(default_factory=Held)


@dataclass(frozen=True)
class Rollback:
    """What going back to an earlier release did.

    Attributes:
        current: Digest of the release now in force.
        previous: Digest of the one in force before.
    """

    current: str
    previous: str | None


class Runner(abc.ABC):
    """A way to execute run plans."""

    summary: ClassVar[str]
    needs_transport: ClassVar[bool]
    kinds: ClassVar[frozenset[WorkloadKind]] = frozenset({"latency", "outputs"})
    """The kinds of workload that it executes."""
    holds: ClassVar[bool] = False
    """Whether it holds a job's conditions, and times until a confidence is reached."""

    @abc.abstractmethod
    def execute(self, job: Job, transport: Transport, progress: Progress) -> RunOutput:
        """Do a job on an open transport's device.

        Raises:
            TransientDeviceError: May work when tried again.
            StableDeviceError: Will not.
            VerificationError: The health check failed; the release before is still in force.
        """

    def probe(self, transport: Transport) -> dict[str, Any]:
        """The facts of an open transport's device: processor, memory, system, Python, clock, temperature.

        Raises:
            ConfigError: This runner cannot tell.
            TransientDeviceError: May work when tried again.
            StableDeviceError: Will not.
        """
        raise ConfigError(f"The runner '{type(self).__module__.rpartition('.')[2]}' cannot probe a device.")

    def rollback(self, transport: Transport, model: str, to: str | None = None) -> Rollback:
        """Make an earlier release of a model current again: the one before, or the one with the digest `to`.

        Raises:
            ConfigError: This runner keeps no releases, or the name cannot be one on a device.
            TransientDeviceError: Another run holds the device.
            StableDeviceError: There is no such release there.
        """
        raise ConfigError(f"The runner '{type(self).__module__.rpartition('.')[2]}' keeps no releases on a device.")


registry: Registry[Runner] = Registry("runner", "edgekit.runners", Runner)  # type: ignore[type-abstract]
