"""Core ML through a Mac: on an iPhone that is attached to it, or on the Mac itself.

Files of ours are pushed to the Mac and asked there, over any transport: SSH as a rule, `local` on a Mac. It measures and
checks; nothing becomes a release, neither on the Mac nor on the phone, so there is no switch and no rollback.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgekit.core import schema
from edgekit.core.errors import ConfigError, DeviceError, StableDeviceError, VerificationError
from edgekit.core.files import sha256_file
from edgekit.core.measurement import Measurement
from edgekit.core.places import find_root
from edgekit.core.progress import Progress
from edgekit.core.run_output import ProcessRun, RunOutput, measurements_of
from edgekit.core.target import find_targets, read_target
from edgekit.core.workload import Workload
from edgekit.runners import _agent_wire as wire
from edgekit.runners._agent_visit import Visit, examples_of, require_all_examples, why_unhealthy
from edgekit.runners._checks import options_of, printable, require_arch, require_name
from edgekit.runners._coreml_mac import phones
from edgekit.runners._coreml_mac.phones import Listing, Phone
from edgekit.runners.base import Job, Runner
from edgekit.transports.base import Transport

UNVERIFIED = (
    "edgekit's way through a Mac was tested with stand-ins for Xcode and Core ML only, never yet on a Mac or a phone"
)
THE_MAC = "mac"
"""`runner_options: {device: mac}`: no phone but the Mac itself."""
MAX_CALLS = 500
"""More calls than this are not made to a phone: each is a file there and one back, a second or two."""
_LOOK_SECONDS = 300.0
_LOCK_SECONDS = 60.0
_START_SECONDS = 900.0
_HEALTH_SECONDS = 900.0
_COREMLTOOLS = 9
_INSTALL = "In the Python there: pip install 'coremltools>=9,<10'; or name another as `python:` of the device"
_OF_A_PHONE = {"latency", "outputs"}
# What else is measured is of coremltools' process on the Mac.
_OF_THE_PHONE = {"latency_ms", "first_inference_ms", "load_ms", "throughput_ips"}


@dataclass(frozen=True)
class CoreMLOptions:
    """What `runner_options:` of a device may hold.

    Attributes:
        device: The phone's udid or name, or `mac`. Left out: the Mac itself for a target whose system is macOS, else the
            one phone that is attached.
        compute_units: What Core ML may use.
        development_team: Who signs coremltools' app for the phone.
        provisioning_profile: Its UUID, in place of a team.
        bundle_identifier: What the app is called, where the profile asks for it.
    """

    device: str | None = None
    compute_units: Literal["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"] = "all"
    development_team: str = ""
    provisioning_profile: str | None = None
    bundle_identifier: str | None = None


@dataclass(frozen=True)
class Tools:
    """What a Mac has; None for what it has not.

    Attributes:
        macos: Name and version of its system; None where it is no Mac.
        python: The interpreter that answered.
        coremltools: Version in that interpreter.
        numpy: Version in that interpreter.
        xcrun: Where it is.
        xcode: Name and version.
        devicectl: Where it is.
    """

    macos: str | None
    python: str
    coremltools: str | None
    numpy: str | None
    xcrun: str | None
    xcode: str | None
    devicectl: str | None


@dataclass(frozen=True)
class Looked:
    """The answer to `look`."""

    schema_version: int
    ok: bool
    facts: wire.Facts
    missing: tuple[str, ...]
    free_bytes: int
    tools: Tools
    listing: Listing | None


class CoreMLMac(Runner):
    """Has coremltools on a Mac run an artifact: on an attached iPhone, or on the Mac."""

    summary: ClassVar[str] = "Core ML through a Mac: iPhones attached to it, or the Mac (unverified on hardware)"
    needs_transport: ClassVar[bool] = True

    def execute(self, job: Job, transport: Transport, progress: Progress) -> RunOutput:
        """See `Runner.execute`."""
        return _Execution(job, transport, progress).done()

    def probe(self, transport: Transport) -> dict[str, Any]:
        """See `Runner.probe`: the Mac's facts, its tools, and the phones that its Xcode knows."""
        looked = _look(Visit(transport, mac_files(), "mac"), [], with_phones=True)
        known = phones.parse(looked.listing, transport.device) if looked.listing else []
        tools = {name: getattr(looked.tools, name) for name in ("coremltools", "numpy", "xcode", "devicectl")}
        more = {"python_path": looked.tools.python, **tools, "phones": "; ".join(map(str, known)) or None}
        return {**looked.facts, **more}


def mac_files() -> tuple[Path, ...]:
    """The files that are pushed to a Mac: the agent's and those for a Mac alone, the one that is called last."""
    agent = Path(__file__).resolve().parent.parent / "agent"
    found = sorted(path for folder in (agent, agent / "mac") for path in folder.glob("*.py") if path.stem != "__init__")
    return (*(path for path in found if path.name != "visit.py"), agent / "mac" / "visit.py")


def _look(visit: Visit, blobs: list[str], *, with_phones: bool) -> Looked:
    device = visit.device
    result = visit.first({"command": "look", "blobs": blobs, "phones": with_phones}, _LOOK_SECONDS)
    if result.returncode in (126, 127) and not result.stdout.strip():
        raise StableDeviceError(
            f"There is no Python at '{device.python}' on the Mac '{device.name}'.",
            f"devices.yaml: {device.name}: python: /path/to/the/venv/bin/python, with coremltools in it",
        )
    looked = wire.parse(Looked, result, device)
    if looked.tools.macos is None:
        system = looked.facts.get("os") or looked.facts.get("kernel") or "not known"
        raise StableDeviceError(
            f"'{device.name}' is no Mac: it has no sw_vers, and its system is {printable(str(system), 60)}.",
            "Core ML and Xcode are on macOS only: give the address of a Mac in devices.yaml.",
        )
    return looked


class _Execution:
    """One job, step by step."""

    def __init__(self, job: Job, transport: Transport, progress: Progress) -> None:
        self.progress, self.visit = progress, Visit(transport, mac_files(), "mac")
        self.device = transport.device
        self.options = options_of(CoreMLOptions, self.device)
        self.wanted = self._wanted()
        self.job = self._fitted(job)
        self.seconds: dict[str, float] = {}
        self.run_id = uuid.uuid4().hex
        self.blobs = {entry.sha256: job.artifact.path / entry.path for entry in job.artifact.manifest.files}
        self.inputs = {name: self._hashed(chosen) for name, chosen in self.job.inputs.items()}
        self.expected = self._hashed(self.job.health.expected) if self.job.health else {}

    def _wanted(self) -> str:
        """`mac`, or the phone's udid or name; empty for the only one."""
        if self.options.device is not None:
            return self.options.device
        files = find_targets(find_root(Path.cwd()))
        target = read_target(files[self.device.target]) if self.device.target in files else None
        return THE_MAC if target is not None and target.os.family == "macos" else ""

    def _fitted(self, job: Job) -> Job:
        """The job, with workloads as a phone can do them."""
        require_name(job.artifact.manifest.name)
        if job.plan.backend != "coreml":
            raise ConfigError(
                f"A Mac runs Core ML's packages here, not those of the backend '{job.plan.backend}'.",
                "edgekit deploy --backend coreml",
            )
        kinds = {workload.kind for workload in job.plan.workloads}
        if "intermediates" in kinds:
            raise ConfigError(
                "Core ML gives no inner values, so layers cannot be compared on this device.",
                "edgekit verify ARTIFACT --bisect compares them on this host.",
            )
        if self.wanted == THE_MAC:
            return job
        other = sorted(kinds - _OF_A_PHONE)
        if other:
            raise ConfigError(
                f"A phone behind a Mac cannot do the workload '{other[0]}': a second or two lies between two inferences.",
                f"It can do: {', '.join(sorted(_OF_A_PHONE))}. The Mac itself can do more: runner_options: {{device: mac}}",
            )
        kept = tuple(_by_number(workload) for workload in job.plan.workloads if not self._is_too_long(job, workload))
        return replace(job, plan=replace(job.plan, workloads=kept))

    def _is_too_long(self, job: Job, workload: Workload) -> bool:
        calls = -(-examples_of(job, workload.inputs) // job.artifact.manifest.inputs[0].batch_size)
        if workload.kind != "outputs" or calls <= MAX_CALLS:
            return False
        self.progress.warn(
            f"{self.device.name}: accuracy on the phone is unavailable: it would take {calls} calls, each a file to the"
            f" phone and one back; at most {MAX_CALLS} are made."
        )
        return True

    def _hashed(self, files: Mapping[str, Path]) -> dict[str, str]:
        hashes = {name: sha256_file(path) for name, path in files.items()}
        self.blobs |= {hashes[name]: path for name, path in files.items()}
        return hashes

    def done(self) -> RunOutput:
        begin = time.monotonic()
        with self.progress.step(f"looking at {self.device.name}"):
            looked = _look(self.visit, sorted(self.blobs), with_phones=self.wanted != THE_MAC)
        phone = self._chosen(looked)
        begin = self._timed("inspect", begin)
        self._send(looked)
        begin = self._timed("push", begin)
        ran = self._run(phone)
        begin = self._timed("run", begin)
        computed = require_all_examples(self.job, ran, self.device)
        outputs = {
            name: self.visit.outputs(self.job, self.run_id, name, examples, self.progress)
            for name, examples in computed.items()
        }
        self._timed("pull", begin)
        self._tell(phone, ran)
        return self._output(phone, ran, outputs)

    def _timed(self, step: str, begin: float) -> float:
        now = time.monotonic()
        self.seconds[step] = now - begin
        return now

    def _chosen(self, looked: Looked) -> Phone | None:
        """The phone, or None for the Mac itself; either can do the job as far as is known."""
        tools, name = looked.tools, self.device.name
        if tools.coremltools is None or tools.numpy is None:
            lacking = "coremltools" if tools.coremltools is None else "numpy"
            raise StableDeviceError(
                f"{printable(tools.python)} on '{name}' has no {lacking}.", f"{_INSTALL} in devices.yaml."
            )
        if self.wanted == THE_MAC:
            require_arch(self.device, self.job.arch, looked.facts.get("arch"))
            return None
        if not tools.coremltools.startswith(f"{_COREMLTOOLS}."):
            raise StableDeviceError(
                f"{printable(tools.python)} on '{name}' has coremltools {printable(tools.coremltools, 20)}; a phone needs 9.",
                f"{_INSTALL} in devices.yaml.",
            )
        if tools.devicectl is None or tools.xcode is None or looked.listing is None:
            lacking = "no xcrun" if tools.xcrun is None else "no devicectl" if tools.devicectl is None else "no Xcode"
            raise StableDeviceError(
                f"The Mac '{name}' has {lacking}: phones are reached through Xcode 15 or newer.",
                "Install Xcode there, open it once, then: sudo xcode-select -s /Applications/Xcode.app",
            )
        phone = phones.choose(phones.parse(looked.listing, self.device), self.wanted, self.device)
        require_arch(self.device, self.job.arch, phone.arch)
        return phone

    def _send(self, looked: Looked) -> None:
        if set(looked.missing) - self.blobs.keys():
            raise StableDeviceError(f"'{self.device.name}' asks for blobs that are not of this job.")
        missing = {sha256: self.blobs[sha256] for sha256 in looked.missing}
        self.visit.send(missing, looked.free_bytes, 0, self.progress)

    def _run(self, phone: Phone | None) -> wire.Ran:
        job, plan, manifest = self.job, self.job.plan, self.job.artifact.manifest
        options: dict[str, Any] = {"compute_units": self.options.compute_units}
        if phone is not None:
            signing = ("development_team", "provisioning_profile", "bundle_identifier")
            options |= {"udid": phone.udid}
            options |= {key: value for key in signing if (value := getattr(self.options, key))}
        files = [schema.to_plain(entry) for entry in manifest.files]
        request: dict[str, Any] = {
            "command": "run",
            "run_id": self.run_id,
            "runtime": {"kind": "host"},
            "model": {"name": manifest.name, "digest": job.artifact.digest, "main": plan.model_file, "files": files},
            "driver": plan.driver if phone is None else "device_iphone.py",
            "bindings": plan.bindings,
            "options": options,
            "inputs": self.inputs,
            "health": None,
            "release": False,
            "keep_releases": 0,
            "lock_seconds": _LOCK_SECONDS,
            # No warm-up by time either: see `_by_number`.
            "workloads": [schema.to_plain(w) | ({"warmup_seconds": 0.0} if phone else {}) for w in plan.workloads],
        }
        if job.health is not None:
            request["health"] = {
                "inputs": job.health.inputs,
                "expected": self.expected,
                "min_cosine": job.health.min_cosine,
                "timeout_seconds": _HEALTH_SECONDS,
            }
        limit = sum(workload.timeout_seconds * workload.processes for workload in plan.workloads)
        seconds = limit + _LOCK_SECONDS + _START_SECONDS + _HEALTH_SECONDS
        where = f"'{phone.name}' through {self.device.name}" if phone else self.device.name
        try:
            with self.progress.step(f"running on {where}") as step:
                ran = self.visit.ask(wire.Ran, request, seconds, step)
        except DeviceError as error:
            raise phones.advised(error) from error
        wire.check_runs(ran, {w.name: (w.kind, w.processes) for w in plan.workloads}, self.device)
        trouble = why_unhealthy(job, ran, self.device)
        if trouble:
            raise VerificationError(
                f"The health check on {where} failed: {trouble}",
                f"Nothing was left there. Compare on this host: edgekit verify {job.artifact.path}",
            )
        return ran

    def _tell(self, phone: Phone | None, ran: wire.Ran) -> None:
        name = self.device.name
        if phone is None:
            self.progress.note(f"{name}: measured only: the model was removed again, no release was made")
        else:
            self.progress.note(
                f"{name}: measured only: the model does not stay on '{phone.name}', coremltools' app ModelRunner does"
            )
        operations = next((run.runtime.get("operations") for run in ran.runs if run.kind == "latency"), None)
        if isinstance(operations, dict) and (said := _said(operations)):
            self.progress.note(f"{name}: {said}")
        self.progress.note(f"{name}: unverified: {UNVERIFIED}")

    def _output(self, phone: Phone | None, ran: wire.Ran, outputs: dict[str, dict[str, Path]]) -> RunOutput:
        runs = tuple(replace(run, runtime={**run.runtime, "unverified": UNVERIFIED}) for run in ran.runs)
        before, after = (_facts(phone, found) for found in (ran.facts_before, ran.facts_after))
        output = RunOutput(
            facts_before=before,
            facts_after=after,
            runs=runs,
            outputs=outputs,
            health=ran.health,
            bytes_sent=self.visit.sent,
            seconds=self.seconds,
        )
        if phone is None:
            return output
        return replace(output, runs=tuple(r for r in runs if r.kind != "latency"), summaries=_of_phone(output, runs))


def _by_number(workload: Workload) -> Workload:
    """The workload, ended by its number of runs: most of the time goes into the way to the phone, which is not timed."""
    return replace(workload, min_seconds=0.0, max_seconds=workload.timeout_seconds, max_runs=workload.min_runs)


def _of_phone(output: RunOutput, runs: tuple[ProcessRun, ...]) -> tuple[Measurement, ...]:
    """The measurements that are the phone's own."""
    return tuple(found for found in measurements_of(replace(output, runs=runs)) if found.metric in _OF_THE_PHONE)


def _facts(phone: Phone | None, mac: wire.Facts) -> dict[str, Any]:
    """What was measured on: the Mac, or the phone with the Mac it is attached to."""
    if phone is None:
        return dict(mac)
    through = ", ".join(str(mac[key]) for key in ("machine_model", "os") if mac.get(key))
    return {
        "hostname": phone.name,
        "machine_model": phone.model,
        "os": phone.os,
        "arch": phone.arch,
        "udid": phone.udid,
        "through": through,
    }


def _said(operations: Mapping[str, Any]) -> str:
    """Where operations run, in words."""
    if "unavailable" in operations:
        return f"where operations ran is not known: {printable(str(operations['unavailable']))}"
    units = operations.get("units")
    if not isinstance(units, dict) or not units:
        return ""
    shares = ", ".join(f"{printable(str(unit), 30)} {printable(str(count), 10)}" for unit, count in units.items())
    return f"operations by unit, as Core ML plans them: {shares}"
