"""Workload and run plan: which files, inputs and settings make one run on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WorkloadKind = Literal["latency", "sustained", "load", "outputs", "intermediates"]


@dataclass(frozen=True)
class Workload:
    """One thing to do with a model on a device, each in a fresh process.

    Attributes:
        kind: `latency` times repeated inferences on one example; `outputs` computes the outputs of all examples;
            `intermediates` gives what every operator of the file computes for them; `sustained` is as `latency` without a
            pause for `max_seconds`, told as windows; `load` only loads, with the model's files out of the page cache.
        name: What the result is filed under.
        threads: Threads the runtime may use.
        inputs: Which set of inputs, by its name in the run request.
        warmup_runs: Inferences before timing starts, at least one.
        warmup_seconds: The warm-up goes on until its pace is steady, this long at most; 0 for exactly `warmup_runs`.
        ci: Timing goes on until half the confidence interval of the median is this share of it; None for no such wish.
        min_runs: Timed inferences at least.
        max_runs: Timed inferences at most.
        min_seconds: Timing goes on at least this long, unless `max_runs` is reached.
        max_seconds: Timing stops after this long, even with fewer than `min_runs`.
        processes: How many fresh processes repeat it; samples of each are kept apart.
        timeout_seconds: One process is killed after this long.
    """

    kind: WorkloadKind
    name: str
    threads: int = 1
    inputs: str = "golden"
    warmup_runs: int = 5
    min_runs: int = 30
    max_runs: int = 1000
    min_seconds: float = 1.0
    max_seconds: float = 10.0
    processes: int = 1
    timeout_seconds: float = 600.0
    warmup_seconds: float = 0.0
    ci: float | None = None


@dataclass(frozen=True)
class OlderRuntime:
    """An earlier runtime that reads the same files: for devices that the present one has no wheel for.

    Attributes:
        package: Pinned requirement (`tflite-runtime==2.14.0`).
        needs: What it depends on: by distribution, the least version and the first that is too new. Where there is no
            wheel of it either, the device's own will do.
        lacks: What the model uses and this runtime has not, each in words; where there is any it cannot run the model.
    """

    package: str
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuntimeRequirement:
    """What a device needs beside the artifact.

    Attributes:
        packages: Pinned requirements (`ai-edge-litert==2.3.0`), installed as wheels with what they depend on.
        exclude: Distributions that those name as dependencies but that running a model never imports.
        min_glibc: The oldest C library the wheels' own libraries load with.
        older: Earlier runtimes, in the order in which they are tried where no wheels of `packages` fit.
    """

    packages: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    min_glibc: str | None = None
    older: tuple[OlderRuntime, ...] = ()


@dataclass(frozen=True)
class RunPlan:
    """Everything that one run on a device is made of; made by a backend without touching a device.

    Attributes:
        backend: The backend whose artifact it runs.
        driver: File name, in `edgekit/agent/`, of what loads and runs the model there.
        model_file: The artifact's main file, relative to the artifact.
        runtime: What the device needs beside the artifact.
        workloads: What to do, in order.
        bindings: The runtime's own name of an input or output, where it is not ours: `inputs.image` → `args_0`.
        options: Settings for the driver.
    """

    backend: str
    driver: str
    model_file: str
    runtime: RuntimeRequirement
    workloads: tuple[Workload, ...]
    bindings: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
