"""What the agent and the host say to each other, and what to make of an answer. A device is not trusted to be sane."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from edgekit.core import schema
from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, DeviceError, StableDeviceError, TransientDeviceError
from edgekit.core.run_output import Health, ProcessRun
from edgekit.runners._checks import harmless, printable
from edgekit.transports.base import CommandResult

T = TypeVar("T")
Facts = Mapping[str, str | int | float | bool | None]

_TRANSIENT = frozenset({"busy", "blob", "timeout", "stopped"})
HINTS = {
    "disk-full": "Free some space there, or set `root:` of the device in devices.yaml to a larger disk.",
    "permission": "Let the login write below `root:` of the device in devices.yaml, or choose another root there.",
    "out-of-memory": "Use a smaller model or a quantized one, or free memory on the device.",
    "crashed": "The runtime itself died: try another version under `runtimes:` of the target, or another --backend.",
    "runtime": "Pin a version that loads there under `runtimes:` of the target, or compile with another --backend.",
    "model": "edgekit compile makes the artifact anew for the runtime that is pinned for the target.",
    "timeout": "Ask for fewer runs or examples, or for a longer time-out.",
    "busy": "Wait for the other run to end, then try again.",
    "blob": "Try again: what arrived wrong has been removed and is sent anew.",
    "release": "edgekit deploy puts a release there.",
    "signature": "Sign with the key that the device knows: EDGEKIT_SIGNING_KEY=FILE (edgekit keys show). To let the device"
    " take another key, its owner removes the file trusted-key in its folder of edgekit.",
}
# What Python 2.7 to 3.8 say of the agent's files.
_TOO_OLD = ("SyntaxError", "IndentationError", "'type' object is not subscriptable")
_MAX_SAMPLES = 10_000_000
_WINDOW = {"t", "count", "p50_ms", "p90_ms", "max_ms"}


@dataclass(frozen=True)
class ErrorBody:
    """Why the agent could not do what was asked."""

    kind: str
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The answer to a request that failed."""

    schema_version: int
    ok: bool
    error: ErrorBody


@dataclass(frozen=True)
class Inspected:
    """The answer to `inspect`."""

    schema_version: int
    ok: bool
    facts: Facts
    missing: tuple[str, ...]
    runtimes: tuple[str, ...]
    free_bytes: int
    current: str | None
    trusted_key: str | None = None


@dataclass(frozen=True)
class Hook:
    """How the device's own `on-switch` program ended."""

    returncode: int | None
    message: str


@dataclass(frozen=True)
class Signed:
    """Whose signature the device accepted, and whether it will take no other from now on."""

    key: str
    pinned: bool


@dataclass(frozen=True)
class Ran:
    """The answer to `run`."""

    schema_version: int
    ok: bool
    facts_before: Facts
    facts_after: Facts
    health: Health | None
    released: bool
    previous: str | None
    runs: tuple[ProcessRun, ...]
    outputs: str
    hook: Hook | None
    signed: Signed | None = None
    held: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RolledBack:
    """The answer to `rollback`."""

    schema_version: int
    ok: bool
    current: str
    previous: str | None
    hook: Hook | None


def parse(kind: type[T], result: CommandResult, device: Device) -> T:
    """The agent's answer, typed.

    Raises:
        TransientDeviceError: The command was ended from outside, or the agent's error is one that passes.
        StableDeviceError: The answer is an error that stays, or is not one of the agent's.
    """
    # A login script may print a greeting before it; the document is the last line.
    lines = result.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith(b"{"):
        raise no_answer(result, device)
    try:
        document = schema.parse_json(lines[-1], f"the answer of '{device.name}'")
        document = replace(document, value=harmless(document.value))
        if isinstance(document.value, dict) and document.value.get("ok") is False:
            raise error_of(schema.versioned(Failed, document).error, device)
        return schema.versioned(kind, document)
    except ConfigError as error:
        raise StableDeviceError(
            f"'{device.name}' answered what the agent never answers: {printable(error.message)}",
            f"Remove the folder {device.root}/agent there, then: edgekit devices probe {device.name}",
        ) from error


def error_of(error: ErrorBody, device: Device) -> DeviceError:
    """The error for what the agent says went wrong."""
    message = f"{device.name}: {printable(error.message, 800)}"
    hint = HINTS.get(error.kind, f"edgekit devices probe {device.name}")
    peak = error.detail.get("peak_rss_mib")
    if error.kind == "out-of-memory" and isinstance(peak, int | float):
        message += f" (it had taken {peak:.0f} MiB)"
    if error.kind == "runtime" and "GLIBC" in error.message:
        hint = "The system there is too old for this runtime: use a newer one, or pin an older runtime for the target."
    if error.kind == "runtime" and "wrong ELF class" in error.message:
        hint = "The runtime is for another processor: edgekit devices probe shows what the device is."
    if error.detail.get("released") is True:
        hint += f"\nThe new release is already in force; edgekit rollback MODEL --device {device.name} goes back."
    kind = TransientDeviceError if error.kind in _TRANSIENT else StableDeviceError
    return kind(message, hint)


def no_answer(result: CommandResult, device: Device) -> DeviceError:
    """The error for a command that printed no document."""
    if is_absent(result):
        return TransientDeviceError(f"The agent on '{device.name}' was removed while it was in use.")
    said = printable(result.stderr.decode("utf-8", "replace")[-600:])
    code = result.returncode
    older = any(trace in said for trace in _TOO_OLD)
    if code == 127 or (code in (1, 126) and "not found" in said) or older:
        what = f"Python at '{device.python}' is too old" if older else f"There is no Python at '{device.python}'"
        return StableDeviceError(
            f"{what} on '{device.name}'; the agent needs 3.9 or newer.",
            "Install Python 3.9 or newer there (apt install python3), or name the one it has as `python:` of the device"
            " in devices.yaml. For LiteRT models there is a way without Python: `runner: native` of the device.",
        )
    if code == 128 + 9:
        return StableDeviceError(
            f"The agent on '{device.name}' was killed, most likely because memory ran out.", HINTS["out-of-memory"]
        )
    if code < 0 or code in (128 + 1, 128 + 13, 128 + 15):
        return TransientDeviceError(f"The agent on '{device.name}' was ended before it answered.")
    tail = f": {said}" if said else ""
    return StableDeviceError(
        f"The agent on '{device.name}' gave no answer (exit status {code}){tail}",
        f"edgekit devices probe {device.name}",
    )


def is_absent(result: CommandResult) -> bool:
    """Whether Python ran but the agent's file is not there."""
    return result.returncode == 2 and b"can't open file" in result.stderr and not result.stdout.strip()


def check_runs(ran: Ran, expected: Mapping[str, tuple[str, int]], device: Device) -> None:
    """Refuse runs that were not asked for and numbers that cannot be.

    Args:
        ran: The answer.
        expected: Kind and number of processes by workload.
        device: The device that answered.

    Raises:
        StableDeviceError: The answer cannot be true.
    """
    counts = dict.fromkeys(expected, 0)
    for run in ran.runs:
        if run.workload not in expected or run.kind != expected[run.workload][0]:
            raise _impossible(device, f"a run of '{printable(run.workload, 60)}', which was not asked for")
        counts[run.workload] += 1
        check_figures(run, device)
    wrong = [name for name, (_, processes) in expected.items() if counts[name] != processes]
    if wrong and (ran.health is None or ran.health.ok):
        raise _impossible(device, f"not as many runs of '{wrong[0]}' as were asked for")


def check_figures(run: ProcessRun, device: Device) -> None:
    """Refuse numbers that cannot be.

    Raises:
        StableDeviceError: The answer cannot be true.
    """
    sizes = [size for stage in run.stages.values() for size in stage.values()]
    windows = [value for window in run.windows for value in window.values()]
    times = [run.init_ms, run.load_ms, *run.warmup_ms, *run.samples_ms, *run.memory.values(), *sizes, *windows]
    if run.first_inference_ms is not None:
        times.append(run.first_inference_ms)
    sensed = run.sensed or {}
    rows = [*run.watched, *(sensed.get("active") or ()), *(sensed.get("idle") or ())]
    if not all(_is_row(row) for row in rows) or not all(_is_number(at) for at in run.timing.get("window", ())):
        raise _impossible(device, f"readings of '{run.workload}' that are no numbers against time")
    if len(times) > _MAX_SAMPLES or not all(math.isfinite(value) for value in times):
        raise _impossible(device, f"figures of '{run.workload}' that are not numbers")
    if min([run.init_ms, run.load_ms, *run.warmup_ms, *run.samples_ms]) < 0 or run.examples < 0:
        raise _impossible(device, f"a negative time or count in '{run.workload}'")
    if run.kind == "latency" and not run.samples_ms:
        raise _impossible(device, f"no samples of '{run.workload}'")
    if any(not window.keys() >= _WINDOW for window in run.windows) or (run.kind == "sustained" and not run.windows):
        raise _impossible(device, f"windows of '{run.workload}' that lack a figure")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_row(row: object) -> bool:
    """Whether it is a moment with what was read then: numbers, or nothing where nothing could be."""
    if not isinstance(row, Mapping) or not _is_number(row.get("t")):
        return False
    return all(value is None or _is_number(value) for value in row.values())


def _impossible(device: Device, what: str) -> StableDeviceError:
    return StableDeviceError(
        f"'{device.name}' answered {what}.",
        f"Remove the folder {device.root}/agent there, then: edgekit devices probe {device.name}",
    )
