"""The agent runner: one Python process on the device, over any transport, in two commands."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

from edgekit.core import schema, signing
from edgekit.core.conditions import Held
from edgekit.core.errors import StableDeviceError
from edgekit.core.files import sha256_file
from edgekit.core.progress import Progress
from edgekit.core.run_output import RunOutput
from edgekit.core.workload import WorkloadKind
from edgekit.runners import _agent_wire as wire
from edgekit.runners import _wheels
from edgekit.runners._agent_visit import Visit, digest_of, require_all_examples, why_unhealthy
from edgekit.runners._checks import options_of, printable, require_arch, require_name, unhealthy
from edgekit.runners._runtime import choose
from edgekit.runners.base import Job, Rollback, Runner
from edgekit.transports.base import Transport

AGENT = "agent.py"
INSPECT_SECONDS = 120.0
LOCK_SECONDS = 60.0
INSTALL_SECONDS = 900.0
HEALTH_SECONDS = 600.0
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
    return digest_of(agent_files())


def _inspect(visit: Visit, blobs: list[str], model: str | None) -> wire.Inspected:
    request = {"command": "inspect", "blobs": blobs, "model": model}
    return wire.parse(wire.Inspected, visit.first(request, INSPECT_SECONDS), visit.device)


@dataclass(frozen=True)
class AgentOptions:
    """What `runner_options:` of a device may hold.

    Attributes:
        governor: The frequency governor to set while it is measured; the ones before are given back.
        cool_below: Each timed run waits until the processor is below this temperature in °C.
        cool_seconds: But no longer than this.
    """

    governor: str | None = None
    cool_below: float | None = None
    cool_seconds: float = 300.0


class AgentRunner(Runner):
    """Pushes what is missing, then has the agent install, check, switch and measure."""

    summary: ClassVar[str] = "a Python agent over any transport: Linux devices"
    needs_transport: ClassVar[bool] = True
    kinds: ClassVar[frozenset[WorkloadKind]] = frozenset(get_args(WorkloadKind))
    holds: ClassVar[bool] = True

    def execute(self, job: Job, transport: Transport, progress: Progress) -> RunOutput:
        """See `Runner.execute`."""
        return _Execution(job, transport, progress).done()

    def probe(self, transport: Transport) -> dict[str, Any]:
        """See `Runner.probe`."""
        return dict(_inspect(Visit(transport, agent_files()), [], None).facts)

    def rollback(self, transport: Transport, model: str, to: str | None = None) -> Rollback:
        """See `Runner.rollback`."""
        visit = Visit(transport, agent_files())
        _inspect(visit, [], require_name(model))
        request = {"command": "rollback", "model": model, "to": to, "lock_seconds": LOCK_SECONDS}
        done = visit.ask(wire.RolledBack, request, INSPECT_SECONDS + LOCK_SECONDS)
        return Rollback(done.current, done.previous)


class _Execution:
    """One job, step by step."""

    def __init__(self, job: Job, transport: Transport, progress: Progress) -> None:
        self.job, self.progress, self.visit = job, progress, Visit(transport, agent_files())
        self.device = transport.device
        self.seconds: dict[str, float] = {}
        self.held = _held(job.conditions, options_of(AgentOptions, self.device))
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
            seen = _inspect(self.visit, sorted(self.blobs), self.job.artifact.manifest.name)
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
            held=ran.held,
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
            chosen = choose(self.job.plan.runtime, seen.facts)
        if chosen.note:
            self.progress.note(f"{self.device.name}: {chosen.note}")
        return chosen.wheels

    def _push(self, seen: wire.Inspected, wheels: _wheels.WheelSet | None) -> None:
        unknown = set(seen.missing) - self.blobs.keys()
        if unknown:
            raise StableDeviceError(f"'{self.device.name}' asks for blobs that are not of this job.")
        missing = {sha256: self.blobs[sha256] for sha256 in seen.missing}
        unpacked = 0
        if wheels is not None and wheels.digest not in seen.runtimes:
            # Asked only now, for which wheels fit follows from the facts; a visit that changes nothing never comes here.
            files = {wheel.sha256: wheels.path(wheel) for wheel in wheels.wheels}
            seen = _inspect(self.visit, sorted(files), None)
            missing |= {sha256: path for sha256, path in files.items() if sha256 in seen.missing}
            unpacked = wheels.unpacked
        self.visit.send(missing, seen.free_bytes, unpacked, self.progress)

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
            "conditions": schema.to_plain(self.held),
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
        cooling = self.held.cool_seconds if self.held.cool_below_c is not None else 0.0
        limit = sum((workload.timeout_seconds + cooling) * workload.processes for workload in plan.workloads)
        seconds = limit + LOCK_SECONDS + INSTALL_SECONDS + HEALTH_SECONDS
        with self.progress.step(f"running on {self.device.name}") as step:
            ran = self.visit.ask(wire.Ran, request, seconds, step)
        wire.check_runs(ran, {w.name: (w.kind, w.processes) for w in plan.workloads}, self.device)
        self._judge(ran)
        if ran.signed is not None and ran.signed.pinned:
            self.progress.note(
                f"{self.device.name}: from now on it takes releases signed by {ran.signed.key[:16]} only"
            )
        self._tell_held(ran)
        return ran

    def _tell_held(self, ran: wire.Ran) -> None:
        """What was asked to be held and could not be: the figures stand, and a person should know."""
        governor = ran.held.get("governor") or {}
        if governor.get("trouble"):
            self.progress.warn(
                f"{self.device.name}: the governor {printable(str(governor.get('asked')), 40)} was not set everywhere:"
                f" {printable(str(governor['trouble']), 200)}"
            )
        if governor.get("not_restored"):
            self.progress.warn(
                f"{self.device.name}: the governor before could not be given back; edgekit devices probe"
                f" {self.device.name} tries again"
            )
        late = [run.cooled for run in ran.runs if run.cooled and not run.cooled.get("reached")]
        if late:
            found = "tells no temperature" if late[0].get("to_c") is None else f"was still at {late[0]['to_c']} °C"
            self.progress.warn(
                f"{self.device.name}: asked to cool below {late[0].get('below_c')} °C, the device {found}"
            )

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
        trouble = why_unhealthy(self.job, ran, self.device)
        if trouble:
            raise unhealthy(self.device, self.job, trouble)
        if self.job.release and not ran.released:
            raise StableDeviceError(f"'{self.device.name}' did not switch to the new release and does not say why.")
        if ran.hook is not None and ran.hook.returncode != 0:
            self.progress.warn(
                f"{self.device.name}: the hook on-switch failed (exit status {ran.hook.returncode})"
                f" {printable(ran.hook.message)}".rstrip()
            )

    def _pull(self, ran: wire.Ran) -> dict[str, dict[str, Path]]:
        found: dict[str, dict[str, Path]] = {}
        kinds = {run.workload: run.kind for run in ran.runs}
        for name, examples in require_all_examples(self.job, ran, self.device).items():
            if kinds[name] == "intermediates":
                found[name] = {INTERMEDIATES: self._pull_intermediates(name)}
            else:
                found[name] = self.visit.outputs(self.job, self.run_id, name, examples, self.progress)
        return found

    def _pull_intermediates(self, workload: str) -> Path:
        local = self.job.outputs / workload / INTERMEDIATES
        with self.progress.step(f"fetching inner values from {self.device.name}"):
            remote = self.visit.remote("runs", self.run_id, workload, INTERMEDIATES)
            self.visit.transport.pull(remote, local, _INTERMEDIATES_BYTES)
        return local


def _held(asked: Held, options: AgentOptions) -> Held:
    """What a person asked for, else what the device's entry says."""
    if asked.cool_below_c is None and options.cool_below is not None:
        asked = replace(asked, cool_below_c=options.cool_below, cool_seconds=options.cool_seconds)
    return replace(asked, governor=asked.governor or options.governor)


def _runtime(wheels: _wheels.WheelSet) -> dict[str, Any]:
    named = [{"name": wheel.name, "sha256": wheel.sha256} for wheel in wheels.wheels]
    return {"kind": "wheels", "digest": wheels.digest, "wheels": named}
