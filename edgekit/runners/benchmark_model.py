"""LiteRT's `benchmark_model` as a runner: devices that have a shell and no Python, Android above all.

The tool gives averages, not samples, so what comes of it are summaries. Where its flags take inputs from files and write
outputs to one, the health check compares outputs and accuracy is measured; elsewhere it is said why not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.core.files import sha256_file
from edgekit.core.measurement import Measurement
from edgekit.core.progress import Progress
from edgekit.core.run_output import Health, RunOutput
from edgekit.core.workload import Workload
from edgekit.runners import _benchmark_binary as binary
from edgekit.runners import _benchmark_log as log
from edgekit.runners._android_facts import READER
from edgekit.runners._benchmark_outputs import Outputs, unavailable
from edgekit.runners._checks import options_of, require_arch, unhealthy
from edgekit.runners._raw_outputs import similarity
from edgekit.runners._shell_visit import ShellVisit, probe, roll_back
from edgekit.runners.base import Job, Rollback, Runner
from edgekit.transports.base import Transport

UNVERIFIED = "edgekit's support of Android was tested against a simulated device only, never yet on a phone"
_PATH = re.compile(r"[A-Za-z0-9._/+-]+")
_QUICK_SECONDS = 120.0


class BenchmarkModelRunner(Runner):
    """Pushes what is missing, lays a release out, checks it, switches to it, and has `benchmark_model` measure it."""

    summary: ClassVar[str] = "LiteRT's benchmark_model over adb: Android devices (unverified on hardware)"
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
class _Tool:
    """The program on the device.

    Attributes:
        path: Where it is there.
        sha256: Which one it is.
        flags: What its help says it takes.
    """

    path: str
    sha256: str
    flags: frozenset[str]


class _Execution(ShellVisit):
    """One job, step by step."""

    def __init__(self, job: Job, transport: Transport, progress: Progress) -> None:
        super().__init__(job, transport, progress, READER)
        _require_kinds(job)
        if not _PATH.fullmatch(self.store.root):
            raise ConfigError(
                f"`root: {self.store.root}` of '{self.device.name}' cannot be given to benchmark_model.",
                "Use letters, digits, `.`, `_`, `-` and `/`.",
            )
        self.options = options_of(binary.BenchmarkOptions, self.device)

    def done(self) -> RunOutput:
        program = binary.find(self.options, self.device.name)
        digest = sha256_file(program)
        begin = time.monotonic()
        with self.progress.step(f"looking at {self.device.name}"):
            seen = self.store.inspect(self.model, [*self.files, digest])
        self.require_unsigned(seen)
        self._require_arch(seen.facts, program)
        begin = self.timed("inspect", begin)
        with self.store.locked():
            self.send(seen, {**self.files, digest: program})
            tool = self._tool(digest)
            begin = self.timed("push", begin)
            model, health, previous = self.release(lambda path: self._health(tool, path))
            measured = self._measure(tool, model)
            found = self._compute(tool, model)
            after = self.store.inspect(self.model).facts
        self.timed("run", begin)
        self.progress.note(f"{self.device.name}: unverified: {UNVERIFIED}")
        return RunOutput(
            facts_before=seen.facts,
            facts_after=after,
            outputs=found,
            health=health,
            released=self.job.release,
            previous=previous,
            bytes_sent=self.sent,
            seconds=self.seconds,
            summaries=self._summaries(measured, seen.facts, after, tool),
        )

    def _require_arch(self, facts: Mapping[str, Any], program: Path) -> None:
        found = facts.get("arch")
        if found is not None:
            require_arch(self.device, self.job.arch, found)
        binary.require_fit(program, found, self.device.name)

    # --- files ------------------------------------------------------------------------------------------------------

    def _tool(self, digest: str) -> _Tool:
        path = self.store.at("store", digest)
        script = 'h=$(sha256sum < "$1"); [ "${h%% *}" = "$2" ] || { rm -f "$1"; exit 5; }; chmod 755 "$1"; "$1" --help'
        done = self.transport.run(["sh", "-c", script, "sh", path, digest], timeout=_QUICK_SECONDS)
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        if done.returncode == 5:
            raise TransientDeviceError(
                f"{self.device.name}: benchmark_model arrived with another hash and was removed.", "Try again."
            )
        flags = frozenset(re.findall(r"--(\w+)", said))
        if "graph" not in flags:
            raise StableDeviceError(
                f"The program given for '{self.device.name}' does not run there as benchmark_model:"
                f" {log.failure(said)[:400] or f'exit status {done.returncode}'}",
                binary.HOW,
            )
        return _Tool(path, digest, flags)

    # --- release ----------------------------------------------------------------------------------------------------

    def _health(self, tool: _Tool, model: str) -> Health:
        quick = Workload("latency", "health", warmup_runs=1, min_runs=1, min_seconds=0.0, max_seconds=30.0)
        try:
            self._benchmark(tool, model, quick)
        except StableDeviceError as error:
            raise unhealthy(self.device, self.job, error.message) from error
        check = self.job.health
        reason = unavailable(self.job, tool.flags) if check is not None else "there is nothing to compare with"
        if check is None or reason:
            self.progress.warn(
                f"{self.device.name}: the health check was hashes and one run; outputs were not compared: {reason}."
            )
            return Health(True, message=f"outputs were not compared: {reason}")
        found = self._outputs(tool, model, check.inputs, "health", _QUICK_SECONDS * 5)
        cosine, largest = similarity(found, check.expected)
        if not cosine >= check.min_cosine:
            raise unhealthy(self.device, self.job, f"cosine {cosine:.4f}, at least {check.min_cosine} is asked for.")
        return Health(True, cosine, largest)

    # --- running ----------------------------------------------------------------------------------------------------

    def _measure(self, tool: _Tool, model: str) -> dict[Workload, list[log.Log]]:
        found: dict[Workload, list[log.Log]] = {}
        for workload in self.job.plan.workloads:
            if workload.kind != "latency":
                continue
            with self.progress.step(f"measuring on {self.device.name}", total=workload.processes) as step:
                for _ in range(workload.processes):
                    found.setdefault(workload, []).append(self._benchmark(tool, model, workload))
                    step.advance()
        for logs in found.values():
            self._warn_of_fallback(logs[-1])
        return found

    def _benchmark(self, tool: _Tool, model: str, workload: Workload) -> log.Log:
        argv = [*self._prefix(), tool.path, *flags(model, workload, self.options)]
        self.store.hold(workload.timeout_seconds)
        done = self.transport.run(argv, timeout=workload.timeout_seconds)
        said = (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")
        found = log.parse(said)
        if done.returncode != 0 or found is None:
            killed = " (killed, most likely because memory ran out)" if done.returncode == 137 else ""
            raise StableDeviceError(
                f"benchmark_model on '{self.device.name}' ended with status {done.returncode}{killed}:"
                f" {log.failure(said)[:600] or 'it printed nothing'}",
                "Try the model on the CPU (runner_options: {delegate: xnnpack}), or another build of benchmark_model.",
            )
        return found

    def _prefix(self) -> list[str]:
        return ["taskset", self.options.taskset] if self.options.taskset else []

    def _warn_of_fallback(self, found: log.Log) -> None:
        asked = {"gpu": "GPU", "nnapi": "NNAPI"}.get(self.options.delegate)
        if asked is not None and found.delegated != "completely":
            how = "does not say whether" if found.delegated is None else f"says that {found.delegated}"
            self.progress.warn(
                f"{self.device.name}: {asked} was asked for, and benchmark_model {how} the model ran there:"
                " the rest ran on the CPU."
            )

    def _compute(self, tool: _Tool, model: str) -> dict[str, dict[str, Path]]:
        found: dict[str, dict[str, Path]] = {}
        for workload in self.job.plan.workloads:
            if workload.kind != "outputs":
                continue
            reason = unavailable(self.job, tool.flags, workload.inputs)
            if reason:
                self.progress.warn(f"{self.device.name}: accuracy on the device is unavailable: {reason}.")
                continue
            found[workload.name] = self._outputs(
                tool, model, workload.inputs, workload.name, workload.timeout_seconds, workload.threads
            )
        return found

    def _outputs(
        self, tool: _Tool, model: str, inputs: str, name: str, seconds: float, threads: int = 1
    ) -> dict[str, Path]:
        outputs = Outputs(self.job, inputs, name)
        with outputs.blob() as (blob, digest):
            if digest in self.store.inspect(blobs=[digest]).missing:
                self.sent += self.store.push(blob, "store", digest)
        once = Workload("outputs", name, threads=threads, warmup_runs=0, min_runs=1, min_seconds=0.0)
        argv = [
            *self._prefix(),
            tool.path,
            *flags(model, once, self.options),
            "--warmup_min_secs=0",
            "--input_layer=in",
            f"--input_layer_shape={outputs.shape}",
        ]
        work = self.store.at("runs", f"{digest[:16]}-{name}")
        total = outputs.calls
        with self.progress.step(f"computing {total} examples on {self.device.name}", total=total) as step:
            computed = self.store.outputs(work, digest, outputs.call_bytes, argv, seconds, lambda _: step.advance())
        if computed != total:
            raise StableDeviceError(f"'{self.device.name}' computed {computed} of {total} calls of '{name}'.")
        raw = self.job.outputs / f".{name}.raw"
        try:
            self.transport.pull(f"{work}/all", raw, outputs.result_bytes)
            return outputs.read(raw, self.device.name)
        finally:
            raw.unlink(missing_ok=True)
            self.transport.run(["rm", "-rf", work], timeout=_QUICK_SECONDS)

    def _summaries(
        self,
        measured: Mapping[Workload, Sequence[log.Log]],
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        tool: _Tool,
    ) -> tuple[Measurement, ...]:
        found: list[Measurement] = []
        for workload, logs in measured.items():
            metadata = {
                "runtime": "LiteRT benchmark_model",
                "runtime_version": f"sha256:{tool.sha256[:12]}",
                "threads": workload.threads,
                "delegate": self.options.delegate,
                "unverified": UNVERIFIED,
            }
            found += log.measurements(logs, before, after, metadata)
        return tuple(found)


def flags(model: str, workload: Workload, options: binary.BenchmarkOptions) -> list[str]:
    """The tool's flags for a workload.

    Args:
        model: Path of the `.tflite` there.
        workload: What to do; the tool knows no largest number of runs, only a least one.
        options: What runs it.
    """
    found = [
        f"--graph={model}",
        f"--num_threads={workload.threads}",
        f"--warmup_runs={workload.warmup_runs}",
        f"--num_runs={workload.min_runs}",
        f"--min_secs={workload.min_seconds:g}",
        f"--max_secs={workload.max_seconds:g}",
        "--report_peak_memory_footprint=true",
        "--memory_footprint_check_interval_ms=50",
    ]
    if options.delegate in ("xnnpack", "cpu"):
        found.append(f"--use_xnnpack={'true' if options.delegate == 'xnnpack' else 'false'}")
    if options.delegate == "gpu":
        found.append("--use_gpu=true")
        found += [f"--gpu_backend={options.gpu_backend}"] if options.gpu_backend else []
    if options.delegate == "nnapi":
        found.append("--use_nnapi=true")
        found += [f"--nnapi_accelerator_name={options.nnapi_accelerator}"] if options.nnapi_accelerator else []
    return found


def _require_kinds(job: Job) -> None:
    kinds = {workload.kind for workload in job.plan.workloads}
    if "intermediates" in kinds:
        raise ConfigError(
            "benchmark_model gives no inner values, so layers cannot be compared on this device.",
            "edgekit verify ARTIFACT --bisect compares them on this host.",
        )
    if job.plan.backend != "litert":
        raise ConfigError(
            f"benchmark_model runs LiteRT's files, not those of the backend '{job.plan.backend}'.",
            "edgekit deploy --backend litert",
        )
