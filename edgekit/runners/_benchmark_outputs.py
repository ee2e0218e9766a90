"""Outputs by way of `benchmark_model`: inputs as raw files, one process a call, outputs as one raw file."""

from __future__ import annotations

import contextlib
import math
import tempfile
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.core.errors import StableDeviceError
from edgekit.core.files import sha256_file
from edgekit.runners.base import InputSet, Job

MAX_CALLS = 2000
"""More calls than this are not made: each starts a process and loads the model."""
_NEEDED = ("input_layer", "input_layer_shape", "input_layer_value_files", "output_filepath")


def unavailable(job: Job, flags: Collection[str], inputs: str | None = None) -> str:
    """Why outputs cannot be had of this artifact by this program; empty where they can.

    Args:
        job: The job.
        flags: What the program's help says it takes.
        inputs: The set of inputs, where its number of examples matters.
    """
    manifest, options = job.artifact.manifest, job.plan.options
    missing = [flag for flag in _NEEDED if flag not in flags]
    if missing:
        return f"this build of benchmark_model has no --{missing[0]}"
    if len(manifest.inputs) != 1 or len(manifest.outputs) != 1:
        return "benchmark_model tells neither inputs nor outputs apart by name, and the model has several"
    if options.get("float_io"):
        return "the file takes and gives integers, which benchmark_model does not convert"
    if not manifest.inputs[0].shape:
        return "the input is a scalar"
    if len(manifest.lowering.batch_sizes) > 1:
        return "the file has several batch sizes"
    if inputs is not None and Outputs(job, inputs, "").calls > MAX_CALLS:
        return f"it would take more than {MAX_CALLS} processes, one a call"
    return ""


class Outputs:
    """One set of inputs, as the tool takes them, and the outputs that come back.

    Args:
        job: The job.
        inputs: The set's name.
        name: What the outputs are filed under.
    """

    def __init__(self, job: Job, inputs: str, name: str) -> None:
        import numpy as np

        manifest = job.artifact.manifest
        self._job, self._name = job, name
        self._spec, self._out = manifest.inputs[0], manifest.outputs[0]
        self._array = np.load(job.inputs[inputs][self._spec.name], mmap_mode="r", allow_pickle=False)
        self._batch = self._spec.batch_size
        axes = job.plan.options.get("permute", {}).get(self._spec.name)
        self._axes: tuple[int, ...] = tuple(axes) if axes else tuple(range(self._array.ndim))
        shape = (self._batch, *self._array.shape[1:])
        self._shape = tuple(shape[axis] for axis in self._axes)
        self.examples = len(self._array)
        self.calls = -(-self.examples // self._batch)

    @property
    def shape(self) -> str:
        """The input's shape as the tool takes it: `1,224,224,3`."""
        return ",".join(map(str, self._shape))

    @property
    def call_bytes(self) -> int:
        """Bytes of the input of one call."""
        return int(math.prod(self._shape) * self._array.dtype.itemsize)

    @property
    def result_bytes(self) -> int:
        """Bytes of the outputs of all calls."""
        import numpy as np

        return int(self.calls * math.prod(self._out.shape) * np.dtype(self._out.dtype).itemsize)

    @contextlib.contextmanager
    def blob(self) -> Iterator[tuple[Path, str]]:
        """A file with the inputs of all calls, the last one filled up with its last example; and its hash."""
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="edgekit-inputs-") as folder:
            path = Path(folder) / "inputs"
            with path.open("wb") as stream:
                for start in range(0, self.examples, self._batch):
                    piece = np.asarray(self._array[start : start + self._batch])
                    short = self._batch - len(piece)
                    if short:
                        piece = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)])
                    stream.write(np.ascontiguousarray(piece.transpose(self._axes)).tobytes())
            yield path, sha256_file(path)

    def read(self, raw: Path, device: str) -> dict[str, Path]:
        """The outputs as `.npy`, without those of the filling.

        Raises:
            StableDeviceError: They are not as many bytes as they must be.
        """
        import numpy as np

        if raw.stat().st_size != self.result_bytes:
            raise StableDeviceError(
                f"'{device}' gave {raw.stat().st_size} bytes for '{self._out.name}'; the manifest's shape and type make"
                f" {self.result_bytes}.",
                "edgekit compile makes the artifact anew.",
            )
        values = np.fromfile(raw, dtype=self._out.dtype).reshape(self.calls * self._out.shape[0], *self._out.shape[1:])
        target = self._job.outputs / self._name / f"{urllib.parse.quote(self._out.name, safe='')}.npy"
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, values[: self.examples])
        return {self._out.name: target}


def similarity(found: Mapping[str, Path], expected: InputSet) -> tuple[float, float]:
    """Cosine similarity and largest absolute difference to what was expected, the worst of all outputs."""
    import numpy as np

    worst, largest = 1.0, 0.0
    for name, path in expected.items():
        ours: Any = np.load(found[name]).astype(np.float64).ravel()
        theirs: Any = np.load(path).astype(np.float64).ravel()
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            return -1.0, math.inf
        norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
        same = bool(np.array_equal(ours, theirs))
        worst = min(worst, 1.0 if same else float(ours @ theirs) / norm if norm else 0.0)
        largest = max(largest, float(np.abs(ours - theirs).max(initial=0.0)))
    return worst, largest
