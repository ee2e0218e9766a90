"""What the native program prints, and what to make of how it ended. A device is not trusted to be sane."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from edgekit.core import schema
from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, DeviceError, StableDeviceError, TransientDeviceError
from edgekit.core.run_output import ProcessRun
from edgekit.core.workload import Workload
from edgekit.runners import _agent_wire as wire
from edgekit.runners._checks import printable
from edgekit.transports.base import CommandResult

T = TypeVar("T")
_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}
_KILLED = 128 + 9
_ENDED = frozenset({128 + 1, 128 + 2, 128 + 13, 128 + 15})
_NO_MEMORY = re.compile(r"bad_alloc|[Oo]ut of memory|cannot allocate memory")
_NOISE = re.compile(r"^(INFO|WARNING|VERBOSE|edgekit): .*$", re.MULTILINE)


@dataclass(frozen=True)
class Checked:
    """The answer to `check`: the library has the C API that the program speaks.

    Attributes:
        abi: The release family of that API.
        libc: The C library that the program runs with: `glibc 2.36`.
    """

    schema_version: int
    ok: bool
    abi: str
    libc: str


@dataclass(frozen=True)
class Done:
    """The answer to a workload; times in ms, memory in MiB.

    Attributes:
        calls: Calls whose outputs were written.
        clear_refs: Whether the peak is of what came after the runtime was loaded, not of the process's whole life.
        delegated: Whether a delegate took over every operator.
    """

    schema_version: int
    ok: bool
    init_ms: float
    load_ms: float
    first_inference_ms: float
    warmup_ms: tuple[float, ...]
    samples_ms: tuple[float, ...]
    calls: int
    clear_refs: bool
    delegated: bool
    memory: Mapping[str, float] = field(default_factory=dict)


def parse(kind: type[T], result: CommandResult, device: Device) -> T:
    """The program's answer, typed.

    Raises:
        TransientDeviceError: The program was ended from outside, or its error is one that passes.
        StableDeviceError: The answer is an error that stays, or is not one of the program's.
    """
    lines = result.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith(b"{"):
        raise _no_answer(result, device)
    try:
        document = schema.parse_json(lines[-1], f"the answer of '{device.name}'")
        if isinstance(document.value, dict) and document.value.get("ok") is False:
            raise _explained(schema.versioned(wire.Failed, document).error, result, device)
        return schema.versioned(kind, document)
    except ConfigError as error:
        raise StableDeviceError(
            f"'{device.name}' answered what the native runner never answers: {printable(error.message)}",
            f"edgekit devices probe {device.name}",
        ) from error


def process_run(
    done: Done, workload: Workload, process: int, version: str, xnnpack: bool, device: Device, examples: int
) -> ProcessRun:
    """A workload's answer as what the agent would have given.

    Args:
        done: The answer.
        workload: What was asked.
        process: Which repetition.
        version: The release of the library.
        xnnpack: Whether the delegate was asked for.
        device: Where it ran.
        examples: How many examples' outputs it wrote.

    Raises:
        StableDeviceError: There are figures in it that cannot be.
    """
    # Where not every operator was taken over, the C API does not say whether any was.
    applied = None if xnnpack and not done.delegated else xnnpack
    runtime = {
        "runtime": "ai-edge-litert",
        "runtime_version": version,
        "interface": "C API",
        "threads": workload.threads,
        "delegate": "XNNPACK" if applied else None if applied is None else "none",
        "xnnpack_applied": applied,
    }
    run = ProcessRun(
        workload=workload.name,
        kind=workload.kind,
        process=process,
        init_ms=done.init_ms,
        load_ms=done.load_ms,
        first_inference_ms=done.first_inference_ms,
        warmup_ms=done.warmup_ms,
        samples_ms=done.samples_ms,
        examples=examples,
        memory=done.memory,
        runtime=runtime if done.clear_refs else {**runtime, "clear_refs": False},
    )
    wire.check_figures(run, device)
    return run


def _explained(error: wire.ErrorBody, result: CommandResult, device: Device) -> DeviceError:
    """The error with what the runtime itself said of it, which its status alone does not tell."""
    said = _said(result)
    return wire.error_of(wire.ErrorBody(error.kind, f"{error.message}: {said}" if said else error.message), device)


def _said(result: CommandResult) -> str:
    text = _NOISE.sub("", result.stderr[-4000:].decode("utf-8", "replace"))
    return printable(" ".join(text.split()), 400)


def _no_answer(result: CommandResult, device: Device) -> DeviceError:
    code, said = result.returncode, _said(result)
    tail = f": {said}" if said else ""
    if code == 126 or "ermission denied" in said:
        return StableDeviceError(
            f"'{device.name}' does not let programs run below `root: {device.root}`{tail}",
            "Set `root:` of the device in devices.yaml to a folder of a file system that is not mounted noexec.",
        )
    if code == 127:
        return StableDeviceError(
            f"The native runner does not start on '{device.name}'{tail}. It needs glibc 2.28 or newer.",
            f"edgekit devices probe {device.name} shows the C library there.",
        )
    if code == _KILLED or (code == 128 + 6 and _NO_MEMORY.search(said)):
        return wire.error_of(
            wire.ErrorBody("out-of-memory", f"the native runner was killed by lack of memory{tail}"), device
        )
    if code - 128 in _SIGNALS:
        what = f"the native runner died of {_SIGNALS[code - 128]} in LiteRT"
        return wire.error_of(wire.ErrorBody("crashed", what + tail), device)
    if code in _ENDED or code < 0:
        return TransientDeviceError(f"The native runner on '{device.name}' was ended before it answered.", "Try again.")
    return StableDeviceError(
        f"The native runner on '{device.name}' gave no answer (exit status {code}){tail}",
        f"edgekit devices probe {device.name}",
    )
