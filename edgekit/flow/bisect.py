"""Bisect: the first layer at which an artifact leaves its source model.

The artifact itself is looked into, not a conversion made anew: a file that was damaged afterwards is found as well as a
converter's mistake. See `docs/verification.md` for how layers and tensors are brought together.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.backends.base import registry as backends
from edgekit.core.artifact import Artifact, describe_files
from edgekit.core.errors import ConfigError
from edgekit.core.model import Model, PassRecord, TensorSpec
from edgekit.core.progress import Progress
from edgekit.core.target import Target
from edgekit.flow.build import Builder
from edgekit.flow.divergence import Bisection, bisect
from edgekit.flow.evaluate import InputFiles
from edgekit.flow.imported import as_torch
from edgekit.flow.layers import layers_of
from edgekit.flow.matching import as_arrays
from edgekit.flow.state import ModelInfo
from edgekit.flow.verify import Tolerance, execute_here

if TYPE_CHECKING:
    from edgekit.core.task import Array

_CALLS = 2
_SET = "bisect"


def source_of(artifact: Artifact, builder: Builder, target: Target) -> Model:
    """The model that an artifact was made from, made anew: the project's source after its recipe's passes.

    Raises:
        ConfigError: What the project gives now is another model; says what differs.
    """
    state = builder.compressed(builder.project.recipe_for(target))
    manifest = artifact.manifest
    read = backends.create(manifest.backend).reads
    converted = state if state.info.format in read else as_torch(state, builder.tools)
    if converted.info.digest != manifest.source_digest:
        raise ConfigError(
            f"The artifact was made from another model than {builder.source_label} gives now:"
            f" {_difference(artifact, builder.source_label, state.info)}.",
            "Give the source that it was made from with --source (and --recipe), or make it anew: edgekit compile",
        )
    # Of a program that was imported for the backend the original is compared: its names are those that people know.
    return state.live()


def _difference(artifact: Artifact, source: str, now: ModelInfo) -> str:
    manifest = artifact.manifest
    if manifest.source != source:
        return f"it came from {manifest.source}"
    was_passes, now_passes = _passes(manifest.history), _passes(now.history)
    if was_passes != now_passes:
        return f"its passes were {', '.join(was_passes) or 'none'}; now they are {', '.join(now_passes) or 'none'}"
    was, given = _interface(manifest.inputs), _interface(now.inputs)
    if was.keys() != given.keys():
        return f"its inputs are {', '.join(was)}; now they are {', '.join(given)}"
    return f"its graph or its weights differ (digest {manifest.source_digest[:12]}, now {now.digest[:12]})"


def _passes(history: Sequence[PassRecord]) -> list[str]:
    return [f"{record.name} {dict(sorted(record.options.items()))}" for record in history]


def _interface(specs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in specs}


def bisect_artifact(
    artifact: Artifact,
    target: Target,
    golden: InputFiles,
    model: Model,
    tolerance: Tolerance,
    progress: Progress,
) -> Bisection:
    """Find where an artifact leaves the model that it was made from.

    Args:
        artifact: What is looked into, in a process of its own; its files may differ from what its manifest says.
        target: What it was compiled for.
        golden: Inputs, in the model's types; one or two calls of them are computed.
        model: The model, as it was when it was compiled.
        tolerance: What a tensor must keep to be a layer.
        progress: Told what is done.

    Raises:
        ConfigError: A file of the artifact is missing.
        StableDeviceError: The runtime refuses the file, or died of it.
    """
    import numpy as np

    calls = _calls(model.inputs, golden)
    with tempfile.TemporaryDirectory(prefix="edgekit-bisect-") as folder:
        work = Path(folder)
        files: dict[str, Path] = {}
        for was, spec in zip(model.inputs, artifact.manifest.inputs, strict=True):
            values = np.concatenate([_narrowed(call[was.name], spec) for call in calls])
            files[spec.name] = work / f"{len(files)}.npy"
            np.save(files[spec.name], values)
        inputs = InputFiles(_SET, files, "")
        present = _as_it_is(artifact, work / "artifact")
        output = execute_here(present, target, [inputs], work / "outputs", progress, "intermediates")
        with np.load(next(iter(output.outputs[_SET].values())), allow_pickle=False) as archive:
            tensors = as_arrays(archive)
    with progress.step("computing the source's layers"):
        layers = layers_of(model.program, calls)
    with progress.step(f"comparing {len(layers)} layers with {len(tensors)} tensors"):
        return bisect(layers, tensors, tolerance)


def _calls(specs: Sequence[TensorSpec], golden: InputFiles) -> list[dict[str, Array]]:
    """Whole batches of the golden inputs, the last example repeated where they do not fill one."""
    import numpy as np

    arrays = {spec.name: np.load(golden.files[spec.name]) for spec in specs}
    sizes = {spec.batch_size for spec in specs}
    batch = max(sizes)
    examples = min(len(array) for array in arrays.values())
    count = _CALLS if len(sizes) == 1 and examples >= _CALLS * batch else 1
    found: list[dict[str, Array]] = []
    for start in range(count):
        call = {}
        for spec in specs:
            rows = np.arange(start * spec.batch_size, (start + 1) * spec.batch_size)
            picked = arrays[spec.name][np.minimum(rows, len(arrays[spec.name]) - 1)]
            call[spec.name] = np.ascontiguousarray(picked.astype(spec.dtype, copy=False))
        found.append(call)
    return found


def _narrowed(value: Array, spec: TensorSpec) -> Array:
    """Integers in the width that the file takes; floats and layouts are the driver's business."""
    import numpy as np

    integers = value.dtype.kind in "iu" and np.dtype(spec.dtype).kind in "iu"
    return value.astype(spec.dtype) if integers else value


def _as_it_is(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact with a manifest of the files as they are now: damaged ones are what a bisection is for.

    Raises:
        ConfigError: A file is missing.
    """
    for entry in artifact.manifest.files:
        source = artifact.path / entry.path
        if not source.is_file():
            raise ConfigError(
                f"The artifact '{artifact.path}' lacks its file '{entry.path}'.", "edgekit compile makes it anew."
            )
        copy = folder / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    files = describe_files(folder)
    return Artifact(folder, replace(artifact.manifest, files=files), artifact.digest)
