"""Verify: an artifact is run on this host and its outputs are compared with those of the model it was made from."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.backends.base import registry as backends
from edgekit.core import schema
from edgekit.core.artifact import Artifact, Parity
from edgekit.core.device import LOCAL, Device
from edgekit.core.errors import MissingExtraError, VerificationError
from edgekit.core.files import sha256_text
from edgekit.core.progress import Progress
from edgekit.core.run_output import RunOutput
from edgekit.core.target import Target
from edgekit.core.workload import Workload, WorkloadKind
from edgekit.flow.cache import Cache
from edgekit.flow.evaluate import RANDOM, InputFiles, array_file, arrays_in
from edgekit.flow.recipe import Verify
from edgekit.flow.reference import evaluate
from edgekit.runners.base import Job
from edgekit.runners.base import registry as runners
from edgekit.transports.base import connect

if TYPE_CHECKING:
    from edgekit.core.task import Array

_RECORD = "verification.json"
_EQUAL_DB = 999.0
_SILENCE = 1e-6


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact's outputs may be from the model's.

    Attributes:
        min_cosine: Least cosine similarity of all values of an output together.
        min_snr_db: Least signal-to-noise ratio.
    """

    min_cosine: float
    min_snr_db: float


TOLERANCES: Mapping[str, Tolerance] = {
    # float32: runtimes reorder sums; 60 dB is a relative error of a thousandth, far above that and far below a wrong layer.
    "float32": Tolerance(0.99999, 60.0),
    "float16": Tolerance(0.999, 35.0),
    "weight_only_wi8_afp32": Tolerance(0.98, 14.0),
    "dynamic_wi8_afp32": Tolerance(0.95, 10.0),
    # Plain 8-bit activations gave a cosine of 0.973 on a pretrained ImageNet network; below 0.95 something is broken.
    "static_wi8_ai8": Tolerance(0.95, 10.0),
    "weight_only_wi4_afp32": Tolerance(0.85, 5.0),
    "palette_4": Tolerance(0.95, 10.0),
    "palette_2": Tolerance(0.6, 2.0),
    "palette_1": Tolerance(0.3, 0.0),
}


def tolerance_of(precision: str, *said: Verify) -> Tolerance:
    """The tolerance of a precision, with what a recipe or a flag says in its place; the last word counts."""
    found = TOLERANCES[precision]
    for each in said:
        snr, cosine = each.min_snr_db, each.min_cosine
        found = Tolerance(found.min_cosine if cosine is None else cosine, found.min_snr_db if snr is None else snr)
    return found


@dataclass(frozen=True)
class Verification:
    """What comparing an artifact with its model gave.

    Attributes:
        precision: Which tolerance it was judged by.
        tolerance: That tolerance.
        parity: How close each output was, by set of inputs.
        runtime: What executed the artifact here.
        by: Whether the runtime itself executed it, or a reference evaluation did: that one shows that graph and weights
            are right, and says nothing of the maker's runtime.
    """

    precision: str
    tolerance: Tolerance
    parity: Mapping[str, tuple[Parity, ...]] = field(default_factory=dict)
    runtime: Mapping[str, object] = field(default_factory=dict)
    by: Literal["runtime", "reference evaluation"] = "runtime"

    def failures(self) -> list[str]:
        """What is outside the tolerance, each in a sentence.

        Random inputs are not judged where the task's own examples set the ranges of activations.
        """
        shown_only = {RANDOM} if self.precision.startswith("static") else set()
        return [
            f"output '{p.output}' on {name}: cosine {p.cosine:.6f} (at least {self.tolerance.min_cosine}), SNR"
            f" {p.snr_db:.1f} dB (at least {self.tolerance.min_snr_db:.0f} dB), largest difference {p.max_abs:.3g}"
            for name, parities in self.parity.items()
            for p in parities
            if name not in shown_only
            if not (p.cosine >= self.tolerance.min_cosine and p.snr_db >= self.tolerance.min_snr_db)
        ]


@dataclass(frozen=True)
class HostRun:
    """An artifact run on this host.

    Attributes:
        verification: How close its outputs are.
        outputs: Files of its outputs, by set of inputs and output name.
    """

    verification: Verification
    outputs: Mapping[str, Mapping[str, Path]]


def compare(name: str, reference: Array, got: Array) -> Parity:
    """How close one output is to the reference.

    Args:
        name: The output's name.
        reference: Shape (N, …).
        got: The same shape.

    Raises:
        VerificationError: The shapes differ, or a value is not finite where the reference is.
    """
    import numpy as np

    if reference.shape != got.shape:
        raise VerificationError(f"The output '{name}' has the shape {got.shape}; the model gives {reference.shape}.")
    want, have = np.asarray(reference, dtype=np.float64), np.asarray(got, dtype=np.float64)
    # An infinity that the model itself gives (a masked score) is right where both have it.
    same = want == have
    finite = np.isfinite(want)
    if not np.isfinite(have[finite]).all() or not same[~finite & ~np.isnan(want)].all():
        bad = int((np.isfinite(have) != finite).sum() or (~same & ~finite).sum())
        raise VerificationError(
            f"The output '{name}' has {bad} values that are not finite where the model's are, or the other way round."
        )
    want, have = want[finite], have[finite]
    noise = have - want
    signal_power, noise_power = float(np.sum(want**2)), float(np.sum(noise**2))
    if noise_power == 0:
        snr, cosine = _EQUAL_DB, 1.0
    else:
        # Where the model gives nothing but zeros there is no signal to measure noise by; a rounding error is no noise.
        silent = signal_power == 0 and float(np.max(np.abs(noise))) <= _SILENCE
        nothing = _EQUAL_DB if silent else -_EQUAL_DB
        snr = 10 * np.log10(signal_power / noise_power) if signal_power else nothing
        norms = np.sqrt(signal_power) * np.sqrt(float(np.sum(have**2)))
        cosine = float(np.sum(want * have) / norms) if norms else float(silent)
    largest = float(np.max(np.abs(want))) if want.size else 0.0
    max_abs = float(np.max(np.abs(noise))) if noise.size else 0.0
    return Parity(
        output=name,
        examples=len(reference),
        max_abs=max_abs,
        max_rel=max_abs / largest if largest else max_abs,
        cosine=min(cosine, 1.0),
        snr_db=float(min(snr, _EQUAL_DB)),
        agreement=agreement(reference, got),
    )


def agreement(reference: Array, got: Array) -> float | None:
    """Share of examples with the same largest entry along the last axis; None where the output is no set of scores."""
    import numpy as np

    if reference.ndim < 2 or reference.shape[-1] < 2 or reference.dtype.kind != "f":
        return None
    return float(np.mean(np.argmax(reference, axis=-1) == np.argmax(got, axis=-1)))


def run_on_host(
    artifact: Artifact,
    target: Target,
    sets: Sequence[InputFiles],
    references: Mapping[str, Mapping[str, Path]],
    cache: Cache,
    progress: Progress,
    tolerance: Tolerance | None = None,
) -> HostRun:
    """Run an artifact on this host, in a process of its own, and compare its outputs with the references.

    Args:
        artifact: What to run.
        target: What it was compiled for.
        sets: The sets of inputs.
        references: For each set, the model's outputs as `.npy` files by output name.
        cache: Where the outputs are kept.
        progress: Told what is done.
        tolerance: What the outputs must keep; the precision's own by default.

    Raises:
        MissingExtraError: This host cannot run such an artifact.
        VerificationError: An output has values that are not finite, or another shape.
    """
    backend = backends.create(artifact.manifest.backend)
    if not backend.can_run() and backend.reference_driver is None:
        raise MissingExtraError(
            f"Verifying a {backend.name} artifact needs its runtime, which is not installed.",
            f"pip install 'edgekit[{backend.runtime_extra}]'    (or --no-verify, at your own risk)",
        )
    precision = backend.computed_precision(artifact.manifest.lowering, target)
    key = sha256_text(
        schema.canonical_json(
            {
                "artifact": artifact.digest,
                "sets": {s.name: s.key for s in sets},
                "runtime": backend.toolchain_versions(),
            }
        ).decode()
    )

    def fill(staging: Path) -> None:
        output = execute_here(artifact, target, sets, staging / "outputs", progress)
        parity = {s.name: tuple(_compare_files(references[s.name], output.outputs[s.name]).values()) for s in sets}
        runtime = dict(output.runs[0].runtime) if output.runs else {}
        for name, files in output.outputs.items():
            for output_name, path in files.items():
                final = staging / name / array_file(output_name)
                final.parent.mkdir(exist_ok=True)
                shutil.move(path, final)
        shutil.rmtree(staging / "outputs", ignore_errors=True)
        by: Literal["runtime", "reference evaluation"] = "runtime" if backend.can_run() else "reference evaluation"
        found = Verification(precision, TOLERANCES[precision], parity, runtime, by)
        (staging / _RECORD).write_text(schema.to_json(found))

    folder = cache.make("verifications", key, fill)
    recorded = schema.convert(Verification, schema.load_json(folder / _RECORD))
    verification = replace(recorded, tolerance=tolerance or TOLERANCES[precision])
    outputs = {s.name: arrays_in(folder / s.name) for s in sets}
    return HostRun(verification, outputs)


def require_parity(artifact: Artifact, verification: Verification) -> None:
    """Stop for an artifact that does not compute what its model computes.

    Raises:
        VerificationError: It does not.
    """
    failures = verification.failures()
    if failures:
        raise VerificationError(
            f"The {artifact.manifest.backend} artifact of '{artifact.manifest.name}' ({verification.precision}) does not"
            " compute what the model computes: " + "; ".join(failures) + ".",
            "edgekit verify shows every output; a milder quantization scheme, or float32, loses less.",
        )


def local_device(target: Target) -> Device:
    """This machine as a device."""
    return Device(LOCAL, target.name, "local", python=sys.executable)


def execute_here(
    artifact: Artifact,
    target: Target,
    sets: Sequence[InputFiles],
    outputs: Path,
    progress: Progress,
    kind: WorkloadKind = "outputs",
) -> RunOutput:
    """Run an artifact on this host by the agent, in processes of their own: a bad file may crash its runtime.

    Where no runtime here can, it is evaluated operator by operator by what its backend has for that.

    Args:
        artifact: What to run.
        target: What it was compiled for.
        sets: The sets of inputs; one workload each.
        outputs: Folder that gets the outputs.
        progress: Told what is done.
        kind: What is computed of each set.
    """
    backend = backends.create(artifact.manifest.backend)
    if not backend.can_run() and backend.reference_driver is not None:
        return evaluate(artifact, backend.reference_driver, sets, outputs, progress, kind)
    return _run_here(artifact, target, [Workload(kind, s.name, inputs=s.name) for s in sets], sets, outputs, progress)


def time_here(
    artifact: Artifact, target: Target, inputs: InputFiles, seconds: float, outputs: Path, progress: Progress
) -> tuple[float, ...]:
    """Latencies in ms of an artifact in its runtime on this host, of one fresh process that is timed for `seconds`."""
    workload = Workload("latency", "latency", target.threads, inputs.name, min_seconds=seconds, max_seconds=2 * seconds)
    output = _run_here(artifact, target, [workload], [inputs], outputs, progress)
    return output.runs[0].samples_ms


def _run_here(
    artifact: Artifact,
    target: Target,
    workloads: Sequence[Workload],
    sets: Sequence[InputFiles],
    outputs: Path,
    progress: Progress,
) -> RunOutput:
    backend = backends.create(artifact.manifest.backend)
    job = Job(
        artifact=backend.driven(artifact),
        plan=backend.run_plan(artifact.manifest, target, workloads),
        outputs=outputs,
        inputs={s.name: s.files for s in sets},
        host_runtime=True,
    )
    with connect(local_device(target)) as transport:
        return runners.create("agent").execute(job, transport, progress)


def _compare_files(reference: Mapping[str, Path], got: Mapping[str, Path]) -> dict[str, Parity]:
    import numpy as np

    missing = sorted(reference.keys() - got.keys())
    if missing:
        raise VerificationError(f"The artifact gives no output '{missing[0]}'.")
    return {name: compare(name, np.load(path), np.load(got[name])) for name, path in reference.items()}
