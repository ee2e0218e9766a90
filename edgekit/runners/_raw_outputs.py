"""Inputs as raw bytes for programs that know no `.npy`, and `.npy` files of the raw outputs that come back."""

from __future__ import annotations

import contextlib
import math
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.core.errors import ConfigError, StableDeviceError
from edgekit.core.files import sha256_file
from edgekit.core.model import TensorSpec
from edgekit.runners.base import InputSet, Job


class RawOutputs:
    """One set of inputs as raw bytes, and the outputs that come back.

    A call's bytes are its inputs one after the other, in the manifest's order; so are those of its outputs. Arrays of
    exactly the model's shapes are one call; any others are cut into calls of the model's batch size, the last one filled
    up with its last example, whose outputs are dropped: the agent's rule.

    Args:
        job: The job.
        inputs: The set's name.
        name: What the outputs are filed under.

    Raises:
        ConfigError: The set does not fit the model.
    """

    def __init__(self, job: Job, inputs: str, name: str) -> None:
        import numpy as np

        self._job, self._name = job, name
        self._specs, self._outs = job.artifact.manifest.inputs, job.artifact.manifest.outputs
        files, names = job.inputs[inputs], [spec.name for spec in self._specs]
        if sorted(files) != sorted(names):
            raise ConfigError(f"The model's inputs are {', '.join(names)}; the set '{inputs}' has {', '.join(files)}.")
        self._arrays: list[Any] = [np.load(files[one], mmap_mode="r", allow_pickle=False) for one in names]
        self._axes = [
            self._axes_of(spec.name, array.ndim) for spec, array in zip(self._specs, self._arrays, strict=True)
        ]
        self._whole = all(
            tuple(array.shape[axis] for axis in axes) == tuple(spec.shape)
            for spec, array, axes in zip(self._specs, self._arrays, self._axes, strict=True)
        )
        self._batch = self._specs[0].batch_size
        counts = {len(array) if array.ndim else 1 for array in self._arrays}
        if not self._whole and len(counts) > 1:
            raise ConfigError(f"The inputs of the set '{inputs}' do not have the same number of examples.")
        self.examples = self._batch if self._whole else counts.pop()
        self.calls = 1 if self._whole else -(-self.examples // self._batch)

    def _axes_of(self, name: str, rank: int) -> tuple[int, ...]:
        """The axes by which the data's layout becomes the file's."""
        axes = self._job.plan.options.get("permute", {}).get(name)
        return tuple(axes) if axes else tuple(range(rank))

    @property
    def shapes(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, element type and shape of each input of one call, as the bytes are."""
        found = []
        for spec, array, axes in zip(self._specs, self._arrays, self._axes, strict=True):
            shape = array.shape if self._whole else (self._batch, *array.shape[1:])
            found.append((spec.name, array.dtype.name, tuple(shape[axis] for axis in axes)))
        return found

    @property
    def call_bytes(self) -> int:
        """Bytes of the inputs of one call."""
        sizes = [array.dtype.itemsize for array in self._arrays]
        return sum(math.prod(shape) * size for (_, _, shape), size in zip(self.shapes, sizes, strict=True))

    @property
    def result_bytes(self) -> int:
        """Bytes of the outputs of all calls."""
        return self.calls * sum(map(_bytes_of, self._outs))

    @contextlib.contextmanager
    def blob(self) -> Iterator[tuple[Path, str]]:
        """A file with the inputs of all calls, and its hash."""
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="edgekit-inputs-") as folder:
            path = Path(folder) / "inputs"
            with path.open("wb") as stream:
                for call in range(self.calls):
                    for array, axes in zip(self._arrays, self._axes, strict=True):
                        stream.write(np.ascontiguousarray(self._rows(array, call).transpose(axes)).tobytes())
            yield path, sha256_file(path)

    def _rows(self, array: Any, call: int) -> Any:
        import numpy as np

        if self._whole:
            return np.asarray(array)
        rows = np.asarray(array[call * self._batch : (call + 1) * self._batch])
        short = self._batch - len(rows)
        return np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else rows

    def read(self, raw: Path, device: str) -> dict[str, Path]:
        """The outputs as `.npy`, without those of the filling.

        Raises:
            StableDeviceError: They are not as many bytes as they must be.
        """
        import numpy as np

        names = ", ".join(f"'{spec.name}'" for spec in self._outs)
        if raw.stat().st_size != self.result_bytes:
            raise StableDeviceError(
                f"'{device}' gave {raw.stat().st_size} bytes for {names}; the manifest's shapes and types make"
                f" {self.result_bytes}.",
                "edgekit compile makes the artifact anew.",
            )
        calls = np.fromfile(raw, dtype=np.uint8).reshape(self.calls, -1)
        found, start = {}, 0
        for spec in self._outs:
            end = start + _bytes_of(spec)
            found[spec.name] = self._saved(spec, np.ascontiguousarray(calls[:, start:end]).view(spec.dtype))
            start = end
        return found

    def _saved(self, spec: TensorSpec, values: Any) -> Path:
        import numpy as np

        rows = values.reshape(self.calls * spec.shape[0], *spec.shape[1:]) if spec.shape else values.reshape(-1)
        if not self._whole and self._batch > 1:
            rows = rows[: self.examples]
        path = self._job.outputs / self._name / f"{urllib.parse.quote(spec.name, safe='')}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows)
        return path


def _bytes_of(spec: TensorSpec) -> int:
    import numpy as np

    return int(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)


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
