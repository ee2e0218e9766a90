"""The agent runner: one Python process on the device, over any transport, in two commands."""

from __future__ import annotations

import hashlib
import time
import urllib.parse
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from edgekit.core import schema, signing
from edgekit.core.device import Device
from edgekit.core.errors import StableDeviceError
from edgekit.core.files import sha256_file, size_of
from edgekit.core.model import TensorSpec
from edgekit.core.progress import Progress, Step
from edgekit.core.run_output import RunOutput
from edgekit.core.units import format_bytes
from edgekit.runners import _agent_wire as wire
from edgekit.runners import _wheels
from edgekit.runners._checks import printable, require_arch, require_name, require_space, unhealthy
from edgekit.runners.base import Job, Rollback, Runner
from edgekit.transports.base import Transport

T = TypeVar("T")
AGENT = "agent.py"
INSPECT_SECONDS = 120.0
LOCK_SECONDS = 60.0
INSTALL_SECONDS = 900.0
HEALTH_SECONDS = 600.0
_HEADER_BYTES = 4096
INTERMEDIATES = "intermediates.npz"
"""The one file that a workload of this kind leaves; see `docs/agent-protocol.md`."""
_INTERMEDIATES_BYTES = 8 << 30


def agent_files() -> tuple[Path, ...]:
    """The files that are pushed, the one that is called last: where it is, the others are too."""
    folder = Path(__file__).resolve().parent.parent / "agent"
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    return (*(path for path in files if path.name != AGENT), folder / AGENT)


def agent_digest() -> str:
    """Identity of the agent's files: names and bytes, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(agent_files()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class AgentRunner(Runner):
    """Pushes what is missing, then has the agent install, check, switch and measure."""

    summary: ClassVar[str] = "a Python agent over any transport: Linux devices"
    needs_transport: ClassVar[bool] = True

    def execute(self, job: Job, transport: Transport, progress: Progress) -> RunOutput:
        """See `Runner.execute`."""
        return _Execution(job, transport, progress).done()

    def probe(self, transport: Transport) -> dict[str, Any]:
        """See `Runner.probe`."""
        return dict(_Visit(transport).inspect([], None).facts)

    def rollback(self, transport: Transport, model: str, to: str | None = None) -> Rollback:
        """See `Runner.rollback`."""
        visit = _Visit(transport)
        visit.inspect([], require_name(model))
        request = {"command": "rollback", "model": model, "to": to, "lock_seconds": LOCK_SECONDS}
        done = visit.ask(wire.RolledBack, request, INSPECT_SECONDS + LOCK_SECONDS)
        return Rollback(done.current, done.previous)


@dataclass
class _Visit:
    """Talks with the agent of one device."""

    transport: Transport
    sent: int = 0

    @property
    def device(self) -> Device:
        return self.transport.device

    def remote(self, *parts: str) -> str:
        return "/".join((self.device.root.rstrip("/"), *parts))

    def call(self, request: Mapping[str, Any], seconds: float, step: Step | None = None) -> Any:
        def tell(line: str) -> None:
            if step is not None and line.startswith("edgekit: "):
                step.say(printable(line.removeprefix("edgekit: "), 100))

        body = {"schema_version": schema.SCHEMA_VERSION, "root": self.device.root, **request}
        argv = [self.device.python, self.remote("agent", agent_digest(), AGENT)]
        data = schema.canonical_json(body)
        return self.transport.run(argv, timeout=seconds, stdin=data, on_stderr=tell)

    def ask(self, kind: type[T], request: Mapping[str, Any], seconds: float, step: Step | None = None) -> T:
        return wire.parse(kind, self.call(request, seconds, step), self.device)

    def inspect(self, blobs: list[str], model: str | None) -> wire.Inspected:
        request = {"command": "inspect", "blobs": blobs, "model": model}
        result = self.call(request, INSPECT_SECONDS)
        if wire.is_absent(result):
            for path in agent_files():
                self.push(path, self.remote("agent", agent_digest(), path.name), None)
            result = self.call(request, INSPECT_SECONDS)
        return wire.parse(wire.Inspected, result, self.device)

    def push(self, local: Path, remote: str, step: Step | None) -> None:
        self.transport.push(local, remote, None if step is None else step.advance)
        self.sent += local.stat().st_size


class _Execution:
    """One job, step by step."""

    def __init__(self, job: Job, transport: Transport, progress: Progress) -> None:
        self.job, self.progress, self.visit = job, progress, _Visit(transport)
        self.device = transport.device
        self.seconds: dict[str, float] = {}
        manifest, plan = job.artifact.manifest, job.plan
        require_name(manifest.name)
        for workload in plan.workloads:
            require_name(workload.name)
        self.model = {
            "name": manifest.name,
            "digest": job.artifact.digest,
            "main": plan.model_file,
            "files": [schema.to_plain(entry) for entry in manifest.files],
        }
        self.blobs = {entry.sha256: job.artifact.path / entry.path for entry in manifest.files}
        self.inputs = {name: self._hashed(chosen) for name, chosen in job.inputs.items()}
        self.expected = self._hashed(job.health.expected) if job.health else {}

    def _hashed(self, files: Mapping[str, Path]) -> dict[str, str]:
        hashes = {name: sha256_file(path) for name, path in files.items()}
        self.blobs |= {hashes[name]: path for name, path in files.items()}
        return hashes

    def done(self) -> RunOutput:
        begin = time.monotonic()
        with self.progress.step(f"looking at {self.device.name}"):
            seen = self.visit.inspect(sorted(self.blobs), self.job.artifact.manifest.name)
        require_arch(self.device, self.job.arch, seen.facts.get("arch"))
        signer = self._signer(seen.trusted_key)
        begin = self._timed("inspect", begin)
        wheels = self._choose(seen)
        self._push(seen, wheels)
        begin = self._timed("push", begin)
        ran = self._run(wheels, signer)
        begin = self._timed("run", begin)
        outputs = self._pull(ran)
        self._timed("pull", begin)
        return RunOutput(
            facts_before=ran.facts_before,
            facts_after=ran.facts_after,
            runs=ran.runs,
            outputs=outputs,
            health=ran.health,
            released=ran.released,
            previous=ran.previous,
            bytes_sent=self.visit.sent,
            seconds=self.seconds,
        )

    def _timed(self, step: str, begin: float) -> float:
        now = time.monotonic()
        self.seconds[step] = now - begin
        return now

    def _signer(self, trusted: str | None) -> signing.Signer | None:
        """What the release is signed with, where it is: said before anything is sent, if the device will not take it."""
        if not self.job.release:
            return None
        signer = signing.signer()
        if trusted is not None and (signer is None or signer.public != trusted):
            found = "there is no signing key here" if signer is None else f"the signing key here is {signer.short}"
            raise StableDeviceError(
                f"'{self.device.name}' takes releases signed by {printable(trusted, 16)} only, and {found}: nothing was"
                " sent.",
                wire.HINTS["signature"],
            )
        return signer

    def _choose(self, seen: wire.Inspected) -> _wheels.WheelSet | None:
        """The runtime's wheels; None where the interpreter there has the runtime itself."""
        if self.job.host_runtime:
            return None
        with self.progress.step(f"choosing the runtime for {self.device.name}"):
            return _wheels.resolve(self.job.plan.runtime, seen.facts)

    def _push(self, seen: wire.Inspected, wheels: _wheels.WheelSet | None) -> None:
        unknown = set(seen.missing) - self.blobs.keys()
        if unknown:
            raise StableDeviceError(f"'{self.device.name}' asks for blobs that are not of this job.")
        missing = {sha256: self.blobs[sha256] for sha256 in seen.missing}
        unpacked = 0
        if wheels is not None and wheels.digest not in seen.runtimes:
            # Asked only now, for which wheels fit follows from the facts; a visit that changes nothing never comes here.
            files = {wheel.sha256: wheels.path(wheel) for wheel in wheels.wheels}
            seen = self.visit.inspect(sorted(files), None)
            missing |= {sha256: path for sha256, path in files.items() if sha256 in seen.missing}
            unpacked = wheels.unpacked
        if not missing:
            return
        total = sum(size_of(path) for path in missing.values())
        require_space(self.device, self.device.root, seen.free_bytes, total + unpacked)
        with self.progress.step(f"sending {format_bytes(total)} to {self.device.name}", total=total) as step:
            for sha256, path in sorted(missing.items()):
                step.say(path.name)
                self.visit.push(path, self.visit.remote("store", sha256), step)

    def _run(self, wheels: _wheels.WheelSet | None, signer: signing.Signer | None) -> wire.Ran:
        job, plan = self.job, self.job.plan
        self.run_id = uuid.uuid4().hex
        request = {
            "command": "run",
            "run_id": self.run_id,
            "runtime": {"kind": "host"} if wheels is None else _runtime(wheels),
            "model": self.model,
            "driver": plan.driver,
            "bindings": plan.bindings,
            "options": plan.options,
            "inputs": self.inputs,
            "health": None,
            "release": job.release,
            "keep_releases": job.keep_releases,
            "lock_seconds": LOCK_SECONDS,
            "workloads": [schema.to_plain(workload) for workload in plan.workloads],
        }
        if job.health is not None:
            least = job.health.min_cosine
            request["health"] = {
                "inputs": job.health.inputs,
                "expected": self.expected,
                "min_cosine": least,
                "timeout_seconds": HEALTH_SECONDS,
            }
        if signer is not None:
            request["signature"] = signer.signature(self._release(request))
        limit = sum(workload.timeout_seconds * workload.processes for workload in plan.workloads)
        seconds = limit + LOCK_SECONDS + INSTALL_SECONDS + HEALTH_SECONDS
        with self.progress.step(f"running on {self.device.name}") as step:
            ran = self.visit.ask(wire.Ran, request, seconds, step)
        wire.check_runs(ran, {w.name: (w.kind, w.processes) for w in plan.workloads}, self.device)
        self._judge(ran)
        if ran.signed is not None and ran.signed.pinned:
            self.progress.note(
                f"{self.device.name}: from now on it takes releases signed by {ran.signed.key[:16]} only"
            )
        return ran

    def _release(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What is signed: the record that the agent makes of the same request."""
        runtime = request["runtime"]
        return {
            **self.model,
            **{key: request[key] for key in ("driver", "bindings", "options")},
            "runtime": runtime.get("digest"),
            "wheels": sorted(wheel["sha256"] for wheel in runtime.get("wheels", ())),
            "agent": agent_digest(),
        }

    def _judge(self, ran: wire.Ran) -> None:
        health, release = ran.health, self.job.release
        if self.job.health is not None and health is None:
            raise StableDeviceError(f"'{self.device.name}' left out the health check.")
        if health is not None and not health.ok:
            cosine = "none" if health.cosine is None else f"{health.cosine:.4f}"
            least = self.job.health.min_cosine if self.job.health else 0.0
            raise unhealthy(
                self.device,
                self.job,
                f"cosine {cosine}, at least {least} is asked for. {printable(health.message)}".rstrip(),
            )
        if health is not None and self.job.health and not (health.cosine or 0.0) >= self.job.health.min_cosine:
            raise StableDeviceError(f"'{self.device.name}' calls a release healthy whose outputs are not.")
        if release and not ran.released:
            raise StableDeviceError(f"'{self.device.name}' did not switch to the new release and does not say why.")
        if ran.hook is not None and ran.hook.returncode != 0:
            self.progress.warn(
                f"{self.device.name}: the hook on-switch failed (exit status {ran.hook.returncode})"
                f" {printable(ran.hook.message)}".rstrip()
            )

    def _pull(self, ran: wire.Ran) -> dict[str, dict[str, Path]]:
        specs = self.job.artifact.manifest.outputs
        found: dict[str, dict[str, Path]] = {}
        chosen = {workload.name: workload.inputs for workload in self.job.plan.workloads}
        kinds = {run.workload: run.kind for run in ran.runs}
        for name, examples in {run.workload: run.examples for run in ran.runs if run.kind != "latency"}.items():
            if examples != self._examples(chosen[name]):
                raise StableDeviceError(
                    f"'{self.device.name}' computed {examples} examples of '{name}', not all of them."
                )
            found[name] = {}
            if kinds[name] == "intermediates":
                found[name][INTERMEDIATES] = self._pull_intermediates(name)
                continue
            with self.progress.step(f"fetching outputs from {self.device.name}", total=len(specs)) as step:
                for spec in specs:
                    found[name][spec.name] = self._pull_one(name, spec, examples)
                    step.advance()
        return found

    def _pull_intermediates(self, workload: str) -> Path:
        local = self.job.outputs / workload / INTERMEDIATES
        with self.progress.step(f"fetching inner values from {self.device.name}"):
            remote = self.visit.remote("runs", self.run_id, workload, INTERMEDIATES)
            self.visit.transport.pull(remote, local, _INTERMEDIATES_BYTES)
        return local

    def _pull_one(self, workload: str, spec: TensorSpec, examples: int) -> Path:
        import numpy as np

        file = f"{urllib.parse.quote(spec.name, safe='')}.npy"
        local = self.job.outputs / workload / file
        calls = -(-examples // self.job.artifact.manifest.inputs[0].batch_size)
        size = calls * int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        self.visit.transport.pull(self.visit.remote("runs", self.run_id, workload, file), local, size + _HEADER_BYTES)
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

    def _examples(self, inputs: str) -> int:
        """How many examples a set has; the agent counts one that has exactly the model's shapes as one call."""
        import numpy as np

        spec = self.job.artifact.manifest.inputs[0]
        shape = np.load(self.job.inputs[inputs][spec.name], mmap_mode="r", allow_pickle=False).shape
        return int(shape[0]) if shape else 1


def _runtime(wheels: _wheels.WheelSet) -> dict[str, Any]:
    named = [{"name": wheel.name, "sha256": wheel.sha256} for wheel in wheels.wheels]
    return {"kind": "wheels", "digest": wheels.digest, "wheels": named}
