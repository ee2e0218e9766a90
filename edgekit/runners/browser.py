"""The browser runner: the artifact in a real Chromium on this machine, by LiteRT.js.

Each process of a workload is a fresh browser with one page, served from loopback with the headers that give it threads
and a fine clock. Nothing stays in a browser: it keeps no releases, so there is no switch and no rollback; the health
check and the measurements are those of every other device.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import quote

from edgekit.core.errors import ConfigError, StableDeviceError, UnsupportedModelError, VerificationError
from edgekit.core.progress import Progress
from edgekit.core.run_output import Health, ProcessRun, RunOutput
from edgekit.core.workload import RunPlan, Workload
from edgekit.runners._browser import answers, chromium, packages
from edgekit.runners._browser.chromium import Page
from edgekit.runners._browser.server import Server
from edgekit.runners._checks import options_of
from edgekit.runners.base import HealthCheck, Job, Runner
from edgekit.transports.base import Transport

_LOAD_SECONDS = 300.0
_MAX_RUNS_BYTES = 8 << 30
_TYPES = ("float32", "int32", "uint8")


@dataclass(frozen=True)
class BrowserOptions:
    """What `runner_options:` of a device may hold.

    Attributes:
        accelerator: `wasm` is the processor; `webgpu` the graphics processor, where the browser has one.
        browser: The program; `EDGEKIT_BROWSER`, else the first Chromium on PATH, where none is given.
    """

    accelerator: Literal["wasm", "webgpu"] = "wasm"
    browser: str | None = None


class Browser(Runner):
    """Runs LiteRT artifacts in Chromium."""

    summary: ClassVar[str] = "LiteRT.js in a Chromium on this machine"
    needs_transport: ClassVar[bool] = False

    def execute(self, job: Job, transport: Transport, progress: Progress) -> RunOutput:
        """See `Runner.execute`; the transport is this machine's own.

        Raises:
            ConfigError: No Chromium, no npm, or an option that is none.
            UnsupportedModelError: LiteRT.js cannot run such an artifact.
        """
        return _Visit(job, options_of(BrowserOptions, transport.device), progress).done()

    def probe(self, transport: Transport) -> dict[str, Any]:
        """See `Runner.probe`: this machine's facts, and the browser."""
        return {**_facts(), "browser_path": chromium.binary(options_of(BrowserOptions, transport.device).browser)}


class _Visit:
    """One job."""

    def __init__(self, job: Job, options: BrowserOptions, progress: Progress) -> None:
        self.job, self.options, self.progress = job, options, progress
        _require_supported(job)
        self.axes: Mapping[str, Sequence[int]] = job.plan.options.get("permute", {})
        self.raw = job.outputs / "browser"
        self.seconds: dict[str, float] = {}

    def done(self) -> RunOutput:
        begin = time.monotonic()
        with self.progress.step("getting LiteRT.js"):
            self.packages = packages.litertjs()
        self.seconds["push"] = time.monotonic() - begin
        before, begin = _facts(), time.monotonic()
        health = self._health(self.job.health) if self.job.health is not None else None
        runs = [run for workload in self.job.plan.workloads for run in self._workload(workload)]
        self.seconds["run"] = time.monotonic() - begin
        outputs = {
            workload.name: {
                spec.name: self.job.outputs / workload.name / f"{_quoted(spec.name)}.npy"
                for spec in self.job.artifact.manifest.outputs
            }
            for workload in self.job.plan.workloads
            if workload.kind == "outputs"
        }
        return RunOutput(before, _facts(), tuple(runs), outputs, health, seconds=self.seconds)

    def _health(self, check: HealthCheck) -> Health:
        workload = Workload("outputs", "health check", inputs=check.inputs)
        with self.progress.step("health check in the browser"):
            _, driver, task = self._computed(workload)
            expected = {name: str(path) for name, path in check.expected.items()}
            found = Health(
                **answers.worker().health(driver, {**task, "expected": expected, "min_cosine": check.min_cosine})
            )
        if not found.ok:
            raise VerificationError(
                f"The health check in the browser failed: {found.message}.",
                "edgekit verify ARTIFACT --bisect names the first layer that differs on this host.",
            )
        return found

    def _workload(self, workload: Workload) -> list[ProcessRun]:
        if workload.kind == "intermediates":
            raise ConfigError("A browser does not show what lies between a model's inputs and outputs.")
        runs = []
        with self.progress.step(f"running {workload.name} in the browser", total=workload.processes) as step:
            for process in range(workload.processes):
                if workload.kind == "latency":
                    runs.append(self._timed(workload, process))
                else:
                    run, driver, task = self._computed(workload, process)
                    answers.worker().outputs(driver, {**task, "out": str(self.job.outputs / workload.name)})
                    runs.append(run)
                step.advance()
        return runs

    def _timed(self, workload: Workload, process: int) -> ProcessRun:
        with self._page(workload) as visit:
            task = {
                "set": workload.inputs,
                "warmup_runs": workload.warmup_runs,
                "min_runs": workload.min_runs,
                "max_runs": workload.max_runs,
                "min_seconds": workload.min_seconds,
                "max_seconds": workload.max_seconds,
            }
            found = visit.page.call("latency", task, workload.timeout_seconds)
            return visit.run(
                workload,
                process,
                first_inference_ms=found["first_inference_ms"],
                warmup_ms=tuple(found["warmup_ms"]),
                samples_ms=tuple(found["samples_ms"]),
            )

    def _computed(self, workload: Workload, process: int = 0) -> tuple[ProcessRun, answers.Answers, dict[str, Any]]:
        """The run, its outputs as a driver has them, and the task for the agent's loop."""
        files = self.job.inputs[workload.inputs]
        with self._page(workload) as visit:
            found = visit.page.call("outputs", {"set": workload.inputs}, workload.timeout_seconds)
            if visit.server.refused:
                raise StableDeviceError(f"The page sent {visit.server.refused}.")
            paths = [visit.server.file_of(workload.inputs, spec["native"]) for spec in visit.outputs]
            driver = answers.Answers(visit.inputs, visit.outputs, paths)
            run = visit.run(
                workload,
                process,
                first_inference_ms=found["first_inference_ms"],
                examples=visit.examples,
            )
        return run, driver, {"inputs": {name: str(path) for name, path in files.items()}}

    def _page(self, workload: Workload) -> _Opened:
        return _Opened(self, workload)


class _Opened:
    """A fresh browser with the model of a job loaded; use it as a context manager."""

    def __init__(self, visit: _Visit, workload: Workload) -> None:
        self.visit, self.workload = visit, workload
        folder = visit.raw / _quoted(workload.name)
        self.folder = folder
        model = visit.job.artifact.path / visit.job.plan.model_file
        self.served: dict[str, dict[str, Path]] = {}
        self.server = Server(model, visit.packages, self.served, folder / "outputs")

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.server)
            self.page: Page = stack.enter_context(
                chromium.opened(self.server.url, chromium.binary(self.visit.options.browser))
            )
            self._load()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _load(self) -> None:
        worker = answers.worker()
        accelerator = self.visit.options.accelerator
        self.runtime = self.page.call("runtime", {"threads": self.workload.threads}, _LOAD_SECONDS)
        if accelerator == "webgpu" and not self.runtime["webgpu"]:
            raise ConfigError(
                "This browser has no WebGPU adapter.",
                "runner_options: {accelerator: wasm} has the processor compute.",
            )
        self.process = self.page.renderer()
        self.baseline = worker.status_mib("VmRSS", self.process) if self.process else None
        self.cleared = bool(self.process) and worker.reset_peak(self.process)
        task = {"threads": self.runtime["threads"], "accelerator": accelerator}
        self.loaded = self.page.call("load", task, _LOAD_SECONDS)
        plan = self.visit.job.plan
        self.inputs = answers.named(self.loaded["inputs"], "inputs", plan.bindings, self.visit.axes)
        self.outputs = answers.named(self.loaded["outputs"], "outputs", plan.bindings, self.visit.axes)
        chosen = self.workload.inputs
        files = self.visit.job.inputs[chosen]
        calls, self.examples = answers.write_inputs(files, self.inputs, self.visit.axes, self.folder / "inputs")
        self.served[chosen] = {
            spec["native"]: self.folder / "inputs" / f"{place}.bin" for place, spec in enumerate(self.inputs)
        }
        self.server.allowed.update(
            {(chosen, spec["native"]): min(calls * _bytes(spec), _MAX_RUNS_BYTES) for spec in self.outputs}
        )

    def run(self, workload: Workload, process: int, **found: Any) -> ProcessRun:
        """What the agent would tell of this process."""
        worker = answers.worker()
        peak = worker.status_mib("VmHWM", self.process) if self.process else None
        sizes = {
            "peak_rss_mib": peak,
            "peak_pss_mib": worker.pss_mib(self.process) if self.process else None,
            "runtime_baseline_mib": self.baseline,
            "model_delta_mib": peak - self.baseline if peak is not None and self.baseline is not None else None,
        }
        on_processor = self.visit.options.accelerator == "wasm"
        runtime = {
            "runtime": "LiteRT.js",
            "runtime_version": packages.VERSION,
            "threads": self.runtime["threads"],
            "delegate": "XNNPACK (WebAssembly)" if on_processor else "WebGPU",
            "xnnpack_applied": bool(self.loaded["accelerated"]) if on_processor else False,
            "fully_accelerated": self.loaded["accelerated"],
            "browser": f"Chromium {self.page.version}",
            "cross_origin_isolated": self.runtime["isolated"],
            "relaxed_simd": self.runtime["relaxed_simd"],
        }
        if not self.cleared:
            runtime["clear_refs"] = False
        return ProcessRun(
            workload=workload.name,
            kind=workload.kind,
            process=process,
            init_ms=self.runtime["init_ms"],
            load_ms=self.loaded["load_ms"],
            memory={name: round(value, 3) for name, value in sizes.items() if value is not None},
            runtime=runtime,
            **found,
        )


def _require_supported(job: Job) -> None:
    """Said before a browser is started.

    Raises:
        UnsupportedModelError: The artifact is not for LiteRT.js, or has what it does not take.
    """
    manifest, plan = job.artifact.manifest, job.plan
    if plan.backend != "litert":
        raise UnsupportedModelError(
            f"A browser runs LiteRT artifacts, not {plan.backend}'s.", "edgekit compile --target web --backend litert"
        )
    wrong = [spec for spec in (*manifest.inputs, *manifest.outputs) if spec.dtype not in _TYPES]
    if wrong or plan.options.get("float_io"):
        named = f"'{wrong[0].name}' is {wrong[0].dtype}" if wrong else "its inputs and outputs are quantized"
        raise UnsupportedModelError(
            f"LiteRT.js takes and gives {', '.join(_TYPES)} only; of this artifact {named}.",
            "In the recipe: quantize: {io: float32}",
        )
    _require_default_kernels(plan)


def _require_default_kernels(plan: RunPlan) -> None:
    if not plan.options.get("xnnpack", True):
        raise UnsupportedModelError(
            "This artifact needs LiteRT without XNNPACK, which LiteRT.js cannot do.", "In the recipe: sparse: size"
        )


def _facts() -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module("edgekit.agent.facts").read()
    return found


def _bytes(spec: Mapping[str, Any]) -> int:
    return int(math.prod(spec["shape"])) * (1 if spec["dtype"] == "uint8" else 4)


def _quoted(name: str) -> str:
    return quote(name, safe="")
