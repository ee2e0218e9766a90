"""Backend: Model → Artifact, and the plan by which a device runs it.

A conversion reads files and writes files, so that it runs in a child process of its own: torch's exporter is not
safe to use from several threads, converters keep global state and print a lot, and a child can be timed, limited and
killed. `run_plan` and `parse` are pure: they are tested with no device.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.core import schema
from edgekit.core.artifact import MANIFEST, Artifact, Manifest, describe_files, load_artifact
from edgekit.core.errors import BackendError, UnsupportedModelError
from edgekit.core.extras import is_installed, version_of, versions_of
from edgekit.core.files import staged_directory, write_atomic
from edgekit.core.lowering import Lowering
from edgekit.core.measurement import Measurement
from edgekit.core.model import PassRecord, TensorSpec
from edgekit.core.registry import Registry
from edgekit.core.run_output import RunOutput, measurements_of
from edgekit.core.target import Target
from edgekit.core.workload import OlderRuntime, RunPlan, RuntimeRequirement, Workload

if TYPE_CHECKING:
    from edgekit.core.task import Array


@dataclass(frozen=True)
class CompileRequest:
    """One conversion: only files and data, so that it can cross into a child process.

    Attributes:
        program: The `.pt2` or `.onnx` file.
        name: The model's name.
        inputs: Specs of the program's inputs, in calling order.
        outputs: Specs of its outputs, in order.
        lowering: Typed options.
        target: What it is compiled for.
        source: Where the model came from, as the person wrote it.
        source_digest: Digest of the model.
        history: The passes it went through.
        calibration: Folder with one `.npy` an input, the examples along the first axis; None where nothing needs it.
    """

    program: Path
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lowering: Lowering
    target: Target
    source: str
    source_digest: str
    history: tuple[PassRecord, ...] = ()
    calibration: Path | None = None


@dataclass(frozen=True)
class Converted:
    """What a backend's conversion left in the output folder.

    Attributes:
        main: The file that a runtime loads, relative to the folder.
        inputs: Specs as the converted file takes them.
        outputs: Specs as it gives them.
        bindings: The runtime's own name of each input and output, where it is not ours: `inputs.image` → `args_0`.
        changed: What the conversion changed in the interface, each in a sentence.
    """

    main: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bindings: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Issue:
    """Something that stands in the way of a compilation, found before any work.

    Attributes:
        what: The operator, option or scheme.
        reason: Why it cannot be.
        where: Module path or source line, where it has one.
        hint: What can be done instead.
    """

    what: str
    reason: str
    where: str = ""
    hint: str = ""


def listed(issues: Sequence[Issue]) -> str:
    """Issues as lines of a message."""
    return "\n".join(f"{one.what}{f' ({one.where})' if one.where else ''}: {one.reason}." for one in issues)


def hints(issues: Sequence[Issue]) -> str:
    """What can be done about issues, each hint in a line and once."""
    return "\n".join(dict.fromkeys(one.hint for one in issues if one.hint))


class Backend(abc.ABC):
    """One vendor's toolchain, from a program to an artifact and to the plan of its run."""

    summary: ClassVar[str]
    extra: ClassVar[str]
    """The extra of edgekit that installs its converter."""
    runtime_extra: ClassVar[str]
    """The extra that installs what runs its artifacts on the host."""
    reads: ClassVar[tuple[str, ...]]
    """Program formats that it converts: `pt2`, `onnx`."""
    schemes: ClassVar[tuple[str, ...]]
    """Quantization schemes that it can do."""
    lays_out: ClassVar[bool] = False
    """Whether its artifacts can take an input in another layout than the model does."""
    batches: ClassVar[bool] = False
    """Whether its artifacts can take other batch sizes than the model does."""
    converter_modules: ClassVar[tuple[str, ...]]
    """Modules whose presence means that it can convert."""
    toolchain: ClassVar[tuple[str, ...]]
    """Distributions whose versions decide what a conversion yields."""
    runtime_package: ClassVar[str]
    """Distribution that runs its artifacts."""
    runtime_module: ClassVar[str]
    """The module of it that a host must be able to import."""
    runtime_exclude: ClassVar[tuple[str, ...]] = ()
    """What `runtime_package` depends on but never imports when it runs a model."""
    min_glibc: ClassVar[str | None] = None
    """The oldest C library that the runtime's own libraries load with."""
    driver: ClassVar[str]
    """File in `edgekit/agent/` that loads and runs its artifacts."""
    reference_driver: ClassVar[str | None] = None
    """Module with a driver that evaluates its artifacts on a host where their runtime does not exist."""

    @property
    def name(self) -> str:
        """The name it is known by: its module's stem."""
        return type(self).__module__.rpartition(".")[2]

    def can_convert(self) -> bool:
        """Whether its converter is installed; imports nothing."""
        return all(is_installed(module) for module in self.converter_modules)

    def can_run(self) -> bool:
        """Whether this host can run its artifacts; imports nothing."""
        return is_installed(self.runtime_module)

    def toolchain_versions(self) -> dict[str, str]:
        """Versions of what decides the result of a conversion; part of the cache's key."""
        return versions_of(self.toolchain)

    def runtime_version(self, target: Target) -> str | None:
        """The version of the runtime pinned for a target: the target file's, else the one installed here."""
        return target.runtimes.get(self.runtime_package) or version_of(self.runtime_package)

    def unsupported(
        self, program_format: str, outputs: Sequence[TensorSpec], lowering: Lowering, target: Target
    ) -> list[Issue]:
        """What stands in the way, found before any work; empty where nothing is known to."""
        issues = []
        if program_format not in self.reads:
            issues.append(
                Issue(
                    f"programs of the format {program_format}",
                    f"the backend '{self.name}' reads {', '.join(self.reads)}",
                    hint="Use a backend that reads it, or the torch source.",
                )
            )
        if lowering.quantize and lowering.quantize.scheme not in self.schemes:
            can = ", ".join(self.schemes) or "float32 only"
            issues.append(
                Issue(
                    f"scheme {lowering.quantize.scheme}",
                    f"the backend '{self.name}' cannot do it for target '{target.name}'",
                    hint=f"It can do: {can}.",
                )
            )
        if lowering.layout and not self.lays_out:
            issues.append(
                Issue(
                    f"layout: {', '.join(lowering.layout)}",
                    f"artifacts of the backend '{self.name}' take inputs in the model's own layout",
                    hint="Leave out `layout`, or use the backend litert.",
                )
            )
        if lowering.batch_sizes and not self.batches:
            issues.append(
                Issue(
                    f"batch_sizes: {', '.join(map(str, lowering.batch_sizes))}",
                    f"artifacts of the backend '{self.name}' have the model's own batch size",
                    hint="Leave out `batch_sizes`, and give the model with the batch size it shall have.",
                )
            )
        return issues

    def unsupported_operators(self, exported: Any, lowering: Lowering) -> list[Issue]:
        """Operators of an exported program that the converter cannot take, found before it is called.

        Args:
            exported: The `torch.export.ExportedProgram`.
            lowering: The options of the compilation.

        Returns:
            One issue a place, with the module's path and the source line; empty where nothing is known to stand in the
            way, or where a converter cannot be asked.
        """
        return []

    def computed_precision(self, lowering: Lowering, target: Target) -> str:
        """The precision that an artifact computes in: what its outputs are judged by."""
        return lowering.precision

    def refuse_unsupported(
        self, program_format: str, outputs: Sequence[TensorSpec], lowering: Lowering, target: Target
    ) -> None:
        """Raise for what `unsupported` finds.

        Raises:
            UnsupportedModelError: It found something.
        """
        issues = self.unsupported(program_format, outputs, lowering, target)
        if issues:
            raise UnsupportedModelError(listed(issues), hints(issues))

    def refuse_operators(self, exported: Any, request: CompileRequest) -> None:
        """Raise for what `unsupported_operators` finds, before the converter is called.

        Raises:
            UnsupportedModelError: It found something: each operator is named with its module's path and source line.
        """
        issues = self.unsupported_operators(exported, request.lowering)
        if issues:
            raise UnsupportedModelError(
                f"The backend '{self.name}' cannot take {request.source} as it is:\n{listed(issues)}", hints(issues)
            )

    @abc.abstractmethod
    def convert(self, request: CompileRequest, out: Path) -> Converted:
        """Write the converted files into the empty folder `out`. Runs in a child process."""

    def compile(self, request: CompileRequest, out: Path) -> Artifact:
        """Convert, and write the artifact's folder whole or not at all.

        Raises:
            BackendError: The vendor's converter failed.
            UnsupportedModelError: The program cannot be converted.
        """
        with staged_directory(out) as staging:
            converted = self.convert(request, staging)
            if not (staging / converted.main).exists():
                raise BackendError(f"The backend '{self.name}' left no file '{converted.main}'.")
            version = self.runtime_version(request.target)
            manifest = Manifest(
                schema_version=schema.SCHEMA_VERSION,
                name=request.name,
                backend=self.name,
                target=request.target.name,
                main=converted.main,
                files=describe_files(staging),
                inputs=converted.inputs,
                outputs=converted.outputs,
                bindings=converted.bindings,
                lowering=request.lowering,
                history=request.history,
                source=request.source,
                source_digest=request.source_digest,
                toolchain=self.toolchain_versions(),
                runtime={self.runtime_package: version} if version else {},
                changed=converted.changed,
            )
            write_atomic(staging / MANIFEST, schema.to_json(manifest))
        return load_artifact(out)

    def run_plan(
        self,
        manifest: Manifest,
        target: Target,
        workloads: Sequence[Workload],
        options: Mapping[str, Any] | None = None,
    ) -> RunPlan:
        """The plan by which the agent runs an artifact; pure."""
        packages = tuple(f"{name}=={version}" for name, version in manifest.runtime.items())
        settings = dict(target.options.get(self.name, {})) | dict(options or {})
        return RunPlan(
            backend=self.name,
            driver=self.driver,
            model_file=manifest.main,
            runtime=RuntimeRequirement(packages, self.runtime_exclude, self.min_glibc),
            workloads=tuple(workloads),
            bindings=manifest.bindings,
            options=settings,
        )

    def older_runtimes(self, artifact: Artifact) -> tuple[OlderRuntime, ...]:
        """Earlier runtimes for devices that the present one has no wheel for, and what they lack for this artifact."""
        return ()

    def device_plan(self, artifact: Artifact, target: Target, workloads: Sequence[Workload]) -> RunPlan:
        """The plan for a device that is not this machine: `run_plan`, with the runtimes that it may need instead."""
        plan = self.run_plan(artifact.manifest, target, workloads)
        return replace(plan, runtime=replace(plan.runtime, older=self.older_runtimes(artifact)))

    def driven(self, artifact: Artifact) -> Artifact:
        """The artifact as its driver shows it to programs, where that differs from the file's own interface.

        A driver may take and give plain float values where the file has integers: the outputs' types are then those
        that come back from a device.
        """
        return artifact

    def parse(self, output: RunOutput) -> list[Measurement]:
        """Measurements from what a run left; pure. The agent's document is one form for all backends."""
        return measurements_of(output)


def calibration_batches(request: CompileRequest) -> Iterator[Mapping[str, Array]]:
    """Calibration examples in the program's own batch size, from the request's folder; a rest is left out.

    Raises:
        UnsupportedModelError: There are none, or fewer than one batch.
    """
    import numpy as np

    if request.calibration is None or request.lowering.quantize is None:
        raise UnsupportedModelError(
            f"{request.lowering.precision} needs calibration examples, and there are none.",
            "Give a task whose examples('calibration') yields inputs: edgekit.yaml: task: task.py:NAME",
        )
    arrays = {spec.name: np.load(request.calibration / f"{spec.name}.npy", mmap_mode="r") for spec in request.inputs}
    batch = request.inputs[0].batch_size
    available = min(request.lowering.quantize.calibration, *(len(array) for array in arrays.values()))
    if available < batch:
        raise UnsupportedModelError(
            f"There are {available} calibration examples; the model takes {batch} at a time.",
            "Give more of them in examples('calibration').",
        )
    starts = range(0, available - batch + 1, batch)
    return (
        {s.name: np.ascontiguousarray(arrays[s.name][start : start + batch]).astype(s.dtype) for s in request.inputs}
        for start in starts
    )


registry: Registry[Backend] = Registry("backend", "edgekit.backends", Backend)  # type: ignore[type-abstract]
