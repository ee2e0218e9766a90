"""Measure: what an artifact does on a device: latency, throughput, memory, and the task's metric there."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from edgekit.backends.base import registry as backends
from edgekit.core import schema, stats
from edgekit.core.artifact import Parity
from edgekit.core.conditions import Held
from edgekit.core.device import LOCAL, Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError, unknown_name
from edgekit.core.progress import Progress
from edgekit.core.result import Accuracy, Conversion, Result
from edgekit.core.run_output import RunOutput
from edgekit.core.target import Target
from edgekit.core.task import Split
from edgekit.core.workload import Workload, WorkloadKind
from edgekit.flow.accuracy import accuracy_of, agreements
from edgekit.flow.build import Built
from edgekit.flow.energy import with_energy
from edgekit.instruments import base as instruments
from edgekit.runners.base import HealthCheck, Job
from edgekit.runners.base import registry as runners
from edgekit.transports.base import Transport, connect

T = TypeVar("T")
_ATTEMPTS = 3
_MAX_RUNS = 1_000_000
"""Where a confidence is asked for, it or the time ends the timing, not a count."""
_REPORTED: Split = "test"


@dataclass(frozen=True)
class Settings:
    """How a device is measured.

    Attributes:
        threads: Threads of the runtime; None for the target's own number.
        processes: Fresh processes that repeat the latency measurement.
        warmup_runs: Inferences before timing starts, at least.
        warmup_seconds: The warm-up goes on until its pace is steady, this long at most; 0 for exactly `warmup_runs`.
        min_runs: Timed inferences at least, in each process.
        min_seconds: Timing goes on at least this long, in each process.
        max_seconds: Timing stops after this long, in each process.
        accuracy: Whether the task's test split is run on the device.
        ci: Timing goes on until half the confidence interval of the median is this share of it, in each process.
        held: What is held on the device meanwhile.
        sweep_threads: Throughput is measured with each of these numbers of threads too.
        sustained_seconds: Latency against time is measured for so long; 0 for not at all.
    """

    threads: int | None = None
    processes: int = 3
    warmup_runs: int = 5
    min_runs: int = 30
    min_seconds: float = 1.0
    max_seconds: float = 10.0
    accuracy: bool = True
    warmup_seconds: float = 3.0
    ci: float | None = None
    held: Held = field(default_factory=Held)
    sweep_threads: tuple[int, ...] = ()
    sustained_seconds: float = 0.0


def visit(
    built: Built,
    device: Device,
    settings: Settings,
    progress: Progress,
    *,
    run: str,
    release: bool,
    command: str = "",
    tags: tuple[str, ...] = (),
) -> Result:
    """One visit to one device: put the artifact there, check it, measure it; with `release` it becomes current.

    A failure that may pass by itself is tried again, from the start of the visit; what the device has by then is not
    sent again.

    Raises:
        TransientDeviceError: The device failed each time.
        StableDeviceError: It will fail again.
        VerificationError: The health check failed; the release before is still in force.
    """
    runner = runner_of(built.target, device)
    _tell_ignored(runner, device, settings, progress)
    with tempfile.TemporaryDirectory(prefix="edgekit-outputs-") as work:
        job = _job(built, device, settings, Path(work), release, runners.get(runner).kinds)

        def attempt() -> RunOutput:
            shutil.rmtree(work, ignore_errors=True)
            with connect(device) as transport:
                return _execute(runner, job, transport, progress)

        output = _retried(attempt, device, progress)
        return _result(built, device, runner, output, run, command, tags)


def reference_result(built: Built, run: str, command: str) -> Result:
    """The result of an artifact that was evaluated operator by operator on this host: parity and accuracy, no speed."""
    nowhere = Device("reference evaluation", built.target.name, "none")
    output = RunOutput({}, {}, outputs=built.host.outputs if built.host else {})
    result = _result(built, nowhere, "reference evaluation", output, run, command, ())
    if result.accuracy is None:
        return result
    # What was computed here is the host's; nothing is known of a device.
    return replace(result, accuracy=replace(result.accuracy, device={}, standard_error=None))


def new_run() -> str:
    """An identity for the results of one command: the time, then something random."""
    now = dt.datetime.now(dt.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def runner_of(target: Target, device: Device | None = None) -> str:
    """The name of the runner that executes on a device: its own, else the first of its target's that there is.

    Raises:
        ConfigError: The device names one that there is not.
        StableDeviceError: There is none of the target's.
    """
    if device is not None and device.runner is not None:
        if device.runner not in runners:
            raise unknown_name("runner", device.runner, runners.names(), f"Correct `runner:` of '{device.name}'.")
        return device.runner
    for name in target.runners:
        if name in runners:
            return name
    raise StableDeviceError(
        f"Running on '{target.name}' needs the runner {' or '.join(target.runners)}, which this edgekit does not have"
        " yet.",
        "edgekit targets",
    )


def _execute(runner: str, job: Job, transport: Transport, progress: Progress) -> RunOutput:
    return runners.create(runner).execute(job, transport, progress)


def _retried(attempt: Callable[[], T], device: Device, progress: Progress) -> T:
    for number in range(1, _ATTEMPTS):
        try:
            return attempt()
        except TransientDeviceError as error:
            pause = 0.5 * 4 ** (number - 1)
            progress.warn(f"{device.name}: {error.message} Trying again in {pause:g} s ({number} of {_ATTEMPTS - 1}).")
            time.sleep(pause)
    return attempt()


def _tell_ignored(runner: str, device: Device, settings: Settings, progress: Progress) -> None:
    """What was asked for and this device's runner does not do: the figures stand, and a person should know."""
    asked = {
        "--ci": settings.ci is not None,
        "--governor": settings.held.governor is not None,
        "--cool-below": settings.held.cool_below_c is not None,
    }
    ignored = [name for name, given in asked.items() if given]
    if ignored and not runners.get(runner).holds:
        progress.warn(f"{device.name}: {', '.join(ignored)} of no effect: the runner '{runner}' does not do that")


def _workloads(settings: Settings, threads: int, kinds: frozenset[WorkloadKind]) -> list[Workload]:
    """What is timed: the measurement proper first, then what else was asked for.

    Raises:
        ConfigError: The runner cannot do what was asked for.
    """
    proper = Workload(
        "latency",
        "latency",
        threads=threads,
        inputs="golden",
        warmup_runs=settings.warmup_runs,
        warmup_seconds=settings.warmup_seconds,
        min_runs=settings.min_runs,
        max_runs=Workload.max_runs if settings.ci is None else _MAX_RUNS,
        min_seconds=settings.min_seconds,
        max_seconds=settings.max_seconds,
        processes=settings.processes,
        ci=settings.ci,
        timeout_seconds=Workload.timeout_seconds + settings.max_seconds,
    )
    found = [proper]
    if "load" in kinds:
        # Cold first: the processes after it find the files in memory.
        found.insert(0, replace(proper, kind="load", name="load"))
    found += [replace(proper, name=f"threads-{count}", threads=count) for count in settings.sweep_threads]
    if settings.sustained_seconds:
        if "sustained" not in kinds:
            raise ConfigError(
                "Latency against time is measured by the agent only, and this device's runner is another.",
                "Measure without --sustained there, or on a device that is reached by SSH.",
            )
        seconds = settings.sustained_seconds
        more = Workload.timeout_seconds + 1.1 * seconds
        found.append(replace(proper, kind="sustained", name="sustained", max_seconds=seconds, timeout_seconds=more))
        found[-1] = replace(found[-1], processes=1)
    return found


def _job(
    built: Built, device: Device, settings: Settings, outputs: Path, release: bool, kinds: frozenset[WorkloadKind]
) -> Job:
    artifact = built.artifact
    backend = backends.create(artifact.manifest.backend)
    threads = settings.threads or built.target.threads
    sets = {s.name: s.files for s in built.sets}
    workloads = _workloads(settings, threads, kinds)
    wanted = {"golden"}
    if settings.accuracy and _REPORTED in sets:
        workloads.append(Workload("outputs", _REPORTED, threads=threads, inputs=_REPORTED, timeout_seconds=3600))
        wanted.add(_REPORTED)
    health = None
    if release and built.host is not None:
        health = HealthCheck("golden", built.host.outputs["golden"])
    return Job(
        artifact=backend.driven(artifact),
        plan=backend.device_plan(artifact, built.target, workloads),
        outputs=outputs,
        inputs={name: files for name, files in sets.items() if name in wanted},
        release=release,
        health=health,
        keep_releases=built.target.limits.keep_releases,
        host_runtime=device.name == LOCAL,
        arch=None if device.name == LOCAL else built.target.cpu.arch,
        conditions=replace(settings.held, sensors=instruments.sensors()),
    )


def _result(
    built: Built, device: Device, runner: str, output: RunOutput, run: str, command: str, tags: tuple[str, ...]
) -> Result:
    artifact = built.artifact
    manifest = artifact.manifest
    build = artifact.build
    return Result(
        schema_version=schema.SCHEMA_VERSION,
        id=uuid.uuid4().hex,
        run=run,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        model=manifest.name,
        source=manifest.source,
        backend=manifest.backend,
        precision=backends.create(manifest.backend).computed_precision(manifest.lowering, built.target),
        target=built.target.name,
        device=device.name,
        transport=device.transport,
        runner=runner,
        emulated=device.emulated,
        artifact_digest=artifact.digest,
        artifact_bytes=artifact.bytes,
        download_bytes=build.download_bytes if build else 0,
        conversion=Conversion(build.seconds, build.peak_rss_mib, built.cached) if build else None,
        history=manifest.history,
        parity=_parity(built),
        accuracy=_accuracy(built, output),
        measurements=tuple(with_energy(backends.create(manifest.backend).parse(output), output)),
        released=output.released,
        bytes_sent=output.bytes_sent,
        seconds=output.seconds,
        command=command,
        tags=tags,
    )


def _parity(built: Built) -> tuple[Parity, ...]:
    if built.host is None:
        return ()
    parity = built.host.verification.parity
    return tuple(parity.get("validation") or parity.get("golden") or ())


def _accuracy(built: Built, output: RunOutput) -> Accuracy | None:
    on_host = accuracy_of(built, _REPORTED)
    if on_host is None or built.data is None:
        return None
    files = output.outputs.get(_REPORTED, {})
    device = built.data.score(files, _REPORTED) if files else {}
    return replace(
        on_host,
        device=device,
        agreement=agreements(built.source_outputs.get(_REPORTED, {}), files),
        standard_error=stats.share_error(device.get(on_host.metric), on_host.examples),
    )
