"""The native runner: a small C program over LiteRT's own library, for Linux devices that have no Python.

The program is compiled here, once for each kind of processor, and the library comes out of the wheel that the target
pins; both are pushed once. Releases are kept by scripts for the device's shell. It measures what the agent measures,
with a fraction of its memory.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core import signing
from edgekit.core.errors import ConfigError, StableDeviceError
from edgekit.core.files import sha256_file
from edgekit.core.progress import Progress, Step
from edgekit.core.run_output import Health, ProcessRun, RunOutput
from edgekit.core.workload import Workload
from edgekit.runners import _native_answer as answers
from edgekit.runners import _native_build, _native_library
from edgekit.runners._checks import options_of, printable, require_arch, require_name, require_space, unhealthy
from edgekit.runners._linux_facts import READER
from edgekit.runners._raw_outputs import RawOutputs, similarity
from edgekit.runners._shell_store import Seen
from edgekit.runners._shell_visit import ShellVisit, probe, roll_back
from edgekit.runners.base import Job, Rollback, Runner
from edgekit.transports.base import Transport

HEALTH_SECONDS = 600.0
_CHECK_SECONDS = 60.0
_GRACE_SECONDS = 15.0
"""What a run gets beyond its own limit, so that the program can still say that it took too long."""
_QUICK_SECONDS = 30.0
_OPTIONS = frozenset({"signature", "xnnpack", "permute", "float_io"})


@dataclass(frozen=True)
class NativeOptions:
    """What `runner_options:` of a device may hold: nothing."""


class Native(Runner):
    """Pushes what is missing, lays a release out, checks it, switches to it, measures; with no Python on the device."""

    summary: ClassVar[str] = "a small C program over LiteRT's library: Linux devices without Python"
    needs_transport: ClassVar[bool] = True

    def execute(self, job: Job, transport: Transport, progress: Progress) -> RunOutput:
        """See `Runner.execute`."""
        return _Execution(job, transport, progress).done()

    def probe(self, transport: Transport) -> dict[str, Any]:
        """See `Runner.probe`."""
        return probe(transport, READER)

    def rollback(self, transport: Transport, model: str, to: str | None = None) -> Rollback:
        """See `Runner.rollback`."""
        return roll_back(transport, READER, model, to)


@dataclass(frozen=True)
class _Blob:
    """A set of inputs on the device.

    Attributes:
        sha256: Of its bytes, which is its name in the store.
        path: The file on this host.
        raw: What its bytes are.
    """

    sha256: str
    path: Path
    raw: RawOutputs


class _Execution(ShellVisit):
    """One job, step by step."""

    def __init__(self, job: Job, transport: Transport, progress: Progress) -> None:
        super().__init__(job, transport, progress, READER)
        options_of(NativeOptions, self.device)
        _require_possible(job)
        for workload in job.plan.workloads:
            require_name(workload.name)
        _native_library.pinned_version(job.plan.runtime)
        self.run_id = uuid.uuid4().hex

    def done(self) -> RunOutput:
        begin = time.monotonic()
        with self.progress.step(f"looking at {self.device.name}"):
            seen = self.store.inspect(self.model)
        require_arch(self.device, self.job.arch, seen.facts.get("arch"))
        self.require_unsigned(seen)
        self._warn_of_what_is_not_done()
        begin = self.timed("inspect", begin)
        with self._inputs() as blobs, self.store.locked():
            self.blobs = blobs
            self._prepare(seen)
            begin = self.timed("push", begin)
            model, health, previous = self.release(self._health)
            runs, outputs = self._work(model)
            after = self.store.inspect(self.model).facts
        self.timed("run", begin)
        return RunOutput(
            facts_before=seen.facts,
            facts_after=after,
            runs=tuple(runs),
            outputs=outputs,
            health=health,
            released=self.job.release,
            previous=previous,
            bytes_sent=self.sent,
            seconds=self.seconds,
        )

    def _warn_of_what_is_not_done(self) -> None:
        held = self.job.conditions
        if held.governor is not None or held.cool_below_c is not None:
            self.progress.warn(
                f"{self.device.name}: the native runner holds no conditions: governor and heat are as found."
            )
        if self.job.release and signing.signer() is not None:
            self.progress.warn(
                f"{self.device.name}: the release is not signed: without Python a device cannot check a signature."
            )

    # --- files ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _inputs(self) -> Iterator[dict[str, _Blob]]:
        """The sets of inputs that anything needs, as raw bytes, by name."""
        wanted = [workload.inputs for workload in self.job.plan.workloads]
        if self.job.release and self.job.health is not None:
            wanted.append(self.job.health.inputs)
        with ExitStack() as stack:
            found = {}
            for name in dict.fromkeys(wanted):
                raw = RawOutputs(self.job, name, name)
                path, sha256 = stack.enter_context(raw.blob())
                found[name] = _Blob(sha256, path, raw)
            yield found

    def _prepare(self, seen: Seen) -> None:
        """Have everything on the device, whole, and know that the program and the library go together there."""
        with self.progress.step(f"preparing the native runner for {self.device.name}"):
            program = _native_build.program(seen.facts.get("arch"), self.device.name)
            library = _native_library.find(self.job.plan.runtime, seen.facts)
        self.version = library.version
        hashes = sha256_file(program), sha256_file(library.path)
        self.program, self.library = (self.store.at("store", sha256) for sha256 in hashes)
        files = {**self.files, **dict(zip(hashes, (program, library.path), strict=True))}
        files |= {blob.sha256: blob.path for blob in self.blobs.values()}
        self.send(self.store.inspect(self.model, sorted(files)), files)
        self.free_bytes = self.store.inspect(self.model).free_bytes
        self.store.verify(sorted(files))
        self._run(answers.Checked, "check", [], _CHECK_SECONDS)

    # --- running ----------------------------------------------------------------------------------------------------

    def _run(
        self, kind: type[answers.T], mode: str, arguments: Sequence[str], seconds: float, step: Step | None = None
    ) -> answers.T:
        def tell(line: str) -> None:
            if step is not None and line.startswith("edgekit: "):
                step.say(printable(line.removeprefix("edgekit: "), 100))

        self.store.hold(seconds + _GRACE_SECONDS)
        argv = [self.program, mode, "--library", self.library, "--release", self.version]
        argv += ["--time-limit", str(math.ceil(seconds)), *arguments]
        done = self.transport.run(argv, timeout=seconds + _GRACE_SECONDS, on_stderr=tell)
        return answers.parse(kind, done, self.device)

    def _arguments(self, workload: Workload, model: str) -> list[str]:
        plan, blob = self.job.plan, self.blobs[workload.inputs]
        found = ["--model", model, "--data", self.store.at("store", blob.sha256), "--threads", str(workload.threads)]
        if "signature" in plan.options:
            found += ["--signature", str(plan.options["signature"])]
        found += ["--xnnpack", str(int(self._xnnpack)), "--float-io", str(int(bool(plan.options.get("float_io"))))]
        for name, dtype, shape in blob.raw.shapes:
            found += ["--input", _tensor(dtype, shape, plan.bindings.get(f"inputs.{name}", name))]
        for spec in self.job.artifact.manifest.outputs:
            native = plan.bindings.get(f"outputs.{spec.name}", spec.name)
            found += ["--output", _tensor(spec.dtype, spec.shape, native)]
        return found

    @property
    def _xnnpack(self) -> bool:
        return bool(self.job.plan.options.get("xnnpack", True))

    def _work(self, model: str) -> tuple[list[ProcessRun], dict[str, dict[str, Path]]]:
        runs: list[ProcessRun] = []
        outputs: dict[str, dict[str, Path]] = {}
        for workload in self.job.plan.workloads:
            if workload.kind == "outputs":
                for process in range(workload.processes):
                    run, outputs[workload.name] = self._outputs(workload, model, process)
                    runs.append(run)
                continue
            with self.progress.step(f"measuring on {self.device.name}", total=workload.processes) as step:
                for process in range(workload.processes):
                    runs.append(self._latency(workload, model, process))
                    step.advance()
        return runs, outputs

    def _latency(self, workload: Workload, model: str, process: int) -> ProcessRun:
        arguments = self._arguments(workload, model)
        for name in ("warmup_runs", "min_runs", "max_runs", "min_seconds", "max_seconds"):
            arguments += [f"--{name.replace('_', '-')}", f"{getattr(workload, name)}"]
        done = self._run(answers.Done, "latency", arguments, workload.timeout_seconds)
        return self._process_run(done, workload, process)

    def _process_run(self, done: answers.Done, workload: Workload, process: int) -> ProcessRun:
        raw = self.blobs[workload.inputs].raw
        return answers.process_run(
            done,
            workload,
            process,
            self.version,
            self._xnnpack,
            self.device,
            0 if workload.kind == "latency" else raw.examples,
        )

    def _outputs(self, workload: Workload, model: str, process: int) -> tuple[ProcessRun, dict[str, Path]]:
        """The outputs of all examples, pulled and as `.npy`."""
        raw = RawOutputs(self.job, workload.inputs, workload.name)
        if self.free_bytes is not None:
            require_space(self.device, self.store.root, self.free_bytes, raw.result_bytes)
        folder = self.store.at("runs", self.run_id)
        remote, local = f"{folder}/{workload.name}", self.job.outputs / f".{workload.name}.raw"
        self.transport.run(["mkdir", "-p", folder], timeout=_QUICK_SECONDS)
        arguments = [*self._arguments(workload, model), "--calls", str(raw.calls), "--out", remote]
        try:
            with self.progress.step(f"computing {raw.examples} examples on {self.device.name}") as step:
                done = self._run(answers.Done, "outputs", arguments, workload.timeout_seconds, step)
            if done.calls != raw.calls:
                raise StableDeviceError(
                    f"'{self.device.name}' computed {done.calls} of {raw.calls} calls of '{workload.name}'."
                )
            self.transport.pull(remote, local, raw.result_bytes)
            return self._process_run(done, workload, process), raw.read(local, self.device.name)
        finally:
            local.unlink(missing_ok=True)
            self.transport.run(["rm", "-rf", folder], timeout=_QUICK_SECONDS)

    def _health(self, model: str) -> Health | None:
        check = self.job.health
        if check is None:
            return None
        workload = Workload("outputs", "health", inputs=check.inputs, timeout_seconds=HEALTH_SECONDS)
        try:
            _, found = self._outputs(workload, model, 0)
        except StableDeviceError as error:
            raise unhealthy(self.device, self.job, error.message) from error
        cosine, largest = similarity(found, check.expected)
        if not cosine >= check.min_cosine:
            raise unhealthy(self.device, self.job, f"cosine {cosine:.4f}, at least {check.min_cosine} is asked for.")
        return Health(True, cosine, largest)


def _tensor(dtype: str, shape: Sequence[int], name: str) -> str:
    return f"{dtype}:{'x'.join(map(str, shape))}:{name}"


def _require_possible(job: Job) -> None:
    """Refuse what the program cannot do before anything is sent.

    Raises:
        ConfigError: It is that.
    """
    if job.plan.backend != "litert":
        raise ConfigError(
            f"The native runner runs LiteRT's files, not those of the backend '{job.plan.backend}'.",
            "edgekit deploy --backend litert",
        )
    refused = sorted({workload.kind for workload in job.plan.workloads} - Native.kinds)
    if refused:
        raise ConfigError(
            f"The native runner does not do '{refused[0]}'; it does {', '.join(sorted(Native.kinds))}.",
            "Take `runner: agent` of the device in devices.yaml, where it has Python.",
        )
    unknown = sorted(job.plan.options.keys() - _OPTIONS)
    if unknown:
        raise ConfigError(f"The native runner has no option '{unknown[0]}'; it has: {', '.join(sorted(_OPTIONS))}.")
