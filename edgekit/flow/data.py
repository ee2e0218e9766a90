"""The task's data, written down once: inputs of each split as `.npy` files, and scores of outputs.

On disk because inputs travel: to a child process that calibrates, to the agent on this host, to a device. The files
are content-addressed, so that what a device has is not sent again.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.core.files import sha256_file, sha256_text
from edgekit.core.model import TensorSpec
from edgekit.core.progress import Progress
from edgekit.core.task import Direction, Split, Task
from edgekit.core.user_code import blame_user, fresh_modules, load_name
from edgekit.flow.cache import Cache
from edgekit.flow.tracing import Dependencies, tracing
from edgekit.frontends.base import split_source

if TYPE_CHECKING:
    from edgekit.core.task import Array, Batch

RECORDED: tuple[Split, ...] = ("calibration", "validation", "test")
_INDEX = "index.json"


@dataclass(frozen=True)
class SplitIndex:
    """One split on disk.

    Attributes:
        examples: How many.
        batch_sizes: Of the batches that the task yielded, in order.
        digests: SHA-256 of each input's file.
    """

    examples: int
    batch_sizes: tuple[int, ...]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class _Index:
    metric: str
    direction: Direction
    splits: Mapping[str, SplitIndex] = field(default_factory=dict)


@dataclass(frozen=True)
class _TaskRecord:
    dependencies: Dependencies
    data_key: str


@dataclass(frozen=True)
class _Scores:
    dependencies: Dependencies
    scores: Mapping[str, float]


class DataSet:
    """A task whose inputs are on disk.

    Args:
        reference: `task.py:Name`, absolute.
        folder: Where the inputs are.
        cache: Where scores are kept.
    """

    def __init__(self, reference: str, folder: Path, cache: Cache) -> None:
        self.reference = reference
        self.folder = folder
        self._cache = cache
        self._index = schema.convert(_Index, schema.load_json(folder / _INDEX))
        self._task: Task | None = None

    @property
    def label(self) -> str:
        """The reference as people know it, without the folders."""
        return _label(self.reference)

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self._index.metric

    @property
    def direction(self) -> Direction:
        """Whether larger or smaller is better."""
        return self._index.direction

    @property
    def task(self) -> Task:
        """The person's task; imported when first asked for."""
        if self._task is None:
            self._task = load_task(self.reference)
        return self._task

    def split(self, split: str) -> SplitIndex | None:
        """A split, or None where the task has no examples in it."""
        return self._index.splits.get(split)

    def inputs(self, split: str) -> dict[str, Path]:
        """The files of a split's inputs, by input name."""
        index = self._index.splits[split]
        return {name: self.folder / split / f"{name}.npy" for name in index.digests}

    def key(self, split: str) -> str:
        """Identity of a split's inputs."""
        index = self._index.splits.get(split)
        return sha256_text(schema.to_json(index)) if index else ""

    def check_inputs(self, inputs: Sequence[TensorSpec]) -> None:
        """Check that the examples fit a model.

        Raises:
            ConfigError: A name, a shape or a type differs.
        """
        import numpy as np

        for split in self._index.splits:
            files = self.inputs(split)
            missing = [spec.name for spec in inputs if spec.name not in files]
            if missing:
                raise ConfigError(
                    f"The task's examples('{split}') lack the input '{missing[0]}'; they have: {', '.join(files)}.",
                    "Yield a dict with one array for each input of the model.",
                )
            for spec in inputs:
                array = np.load(files[spec.name], mmap_mode="r")
                if tuple(array.shape[1:]) != tuple(spec.shape[1:]):
                    raise ConfigError(
                        f"The task's examples('{split}') give '{spec.name}' the shape (N, "
                        f"{', '.join(map(str, array.shape[1:]))}); the model takes (N, {', '.join(map(str, spec.shape[1:]))}).",
                    )
                if array.dtype != np.dtype(spec.dtype):
                    raise ConfigError(
                        f"The task's examples('{split}') give '{spec.name}' as {array.dtype}; the model takes {spec.dtype}.",
                        f"Yield {spec.name}.astype('{spec.dtype}').",
                    )

    def score(self, outputs: Mapping[str, Path], split: str) -> dict[str, float]:
        """The task's metrics of outputs that lie in `.npy` files, by output name; the same files are scored once.

        Raises:
            ConfigError: The person's `score` raises, or gives something that is no number.
        """
        import numpy as np

        digests = {name: sha256_file(path) for name, path in sorted(outputs.items())}
        key = sha256_text(f"{self.folder.name}:{split}:{sorted(digests.items())}")
        known = self._cache.record("scores", key, _Scores)
        if known is not None and known.dependencies.unchanged():
            return dict(known.scores)
        index = self._index.splits[split]
        arrays = {name: np.load(path, mmap_mode="r") for name, path in outputs.items()}
        batches: list[Batch] = []
        start = 0
        # An output without a batch axis has several rows an example.
        rows = {name: len(array) // index.examples for name, array in arrays.items()}
        for size in index.batch_sizes:
            end = start + size
            batches.append({name: array[start * rows[name] : end * rows[name]] for name, array in arrays.items()})
            start = end
        # The labels may be read only here.
        with tracing(Path(split_source(self.reference)[0])) as traced, blame_user(f"{self.label}.score(…, '{split}')"):
            scores = self.task.score(batches, cast("Split", split))
        checked = _checked_scores(scores, self.label, self.metric)
        self._cache.put_record("scores", key, _Scores(traced[0], checked))
        return checked


def load_task(reference: str) -> Task:
    """The person's task: an instance of the class that `task.py:Name` names.

    Raises:
        ConfigError: It is not a task; says what it lacks.
    """
    file, name = split_source(reference)
    if not name:
        raise ConfigError(f"The task '{reference}' does not name a class.", "Write it as task.py:NAME")
    found = load_name(Path(file), name)
    with blame_user(f"making {name}()"):
        task = found() if isinstance(found, type) else found
    lacking = [part for part in ("metric", "direction", "examples", "score") if not hasattr(task, part)]
    if lacking:
        raise ConfigError(
            f"The task '{name}' in {Path(file).name} lacks: {', '.join(lacking)}.",
            "A task has `metric`, `direction` ('larger' or 'smaller'), examples(split) and score(outputs, split).",
        )
    if task.direction not in ("larger", "smaller"):
        raise ConfigError(f"The task '{name}': direction is 'larger' or 'smaller', not {task.direction!r}.")
    return task  # type: ignore[no-any-return]  # just checked to be a Task


def load_data(reference: str, cache: Cache, progress: Progress) -> DataSet:
    """The data of a task: from the cache where nothing that it depends on has changed, else by running it."""
    key = sha256_text(reference)
    known = cache.record("tasks", key, _TaskRecord)
    if known is not None and known.dependencies.unchanged():
        folder = cache.folder("data", known.data_key)
        if folder is not None:
            return DataSet(reference, folder, cache)
    file, _ = split_source(reference)
    with tempfile.TemporaryDirectory(prefix="edgekit-data-") as work, progress.step("reading the task's data"):
        with fresh_modules(), tracing(Path(file), ignore=Path(work)) as traced:
            task = load_task(reference)
            index = _Index(task.metric, task.direction, _write(task, Path(work), _label(reference)))
        dependencies = traced[0]
        data_key = sha256_text(reference + dependencies.digest() + schema.to_json(index))

        def fill(staging: Path) -> None:
            for entry in Path(work).iterdir():
                shutil.move(str(entry), staging / entry.name)
            (staging / _INDEX).write_text(schema.to_json(index))

        folder = cache.make("data", data_key, fill)
    cache.put_record("tasks", key, _TaskRecord(dependencies, data_key))
    data = DataSet(reference, folder, cache)
    data._task = task
    return data


def _write(task: Task, work: Path, reference: str) -> dict[str, SplitIndex]:
    import numpy as np

    found: dict[str, SplitIndex] = {}
    for split in RECORDED:
        columns: dict[str, list[Array]] = {}
        sizes: list[int] = []
        with blame_user(f"{reference}.examples('{split}')"):
            sizes.extend(_checked_batch(batch, columns, reference, split) for batch in task.examples(split))
        if not sum(sizes):
            continue
        folder = work / split
        folder.mkdir()
        digests = {}
        for name, parts in columns.items():
            shapes, dtypes = {part.shape[1:] for part in parts}, {str(part.dtype) for part in parts}
            if len(shapes) > 1 or len(dtypes) > 1:
                differ = ", ".join(sorted(map(str, shapes if len(shapes) > 1 else dtypes)))
                raise ConfigError(
                    f"{reference}.examples('{split}') yields '{name}' in different shapes or types: {differ}.",
                    "All examples of an input have one shape and one type: resize or pad them.",
                )
            joined = np.concatenate(parts, axis=0)
            _refuse_not_finite(joined, f"{reference}.examples('{split}')", name)
            np.save(folder / f"{name}.npy", joined)
            digests[name] = sha256_file(folder / f"{name}.npy")
        found[split] = SplitIndex(sum(sizes), tuple(sizes), digests)
    return found


def _refuse_not_finite(values: Array, whose: str, name: str) -> None:
    import numpy as np

    if values.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if bad.size:
        others = f" and of {bad.size - 1} more" if bad.size > 1 else ""
        raise ConfigError(
            f"{whose} yields values of '{name}' that are not finite: of example {bad[0]}{others}, counted from 0.",
            "Mend or leave out those examples: a range of activations, or a metric, of NaN or infinity means nothing.",
        )


def _label(reference: str) -> str:
    file, name = split_source(reference)
    return f"{Path(file).name}:{name}"


def _checked_batch(batch: Any, columns: dict[str, list[Array]], reference: str, split: str) -> int:
    import numpy as np

    if not isinstance(batch, Mapping) or not batch:
        raise ConfigError(
            f"{reference}.examples('{split}') yields a {type(batch).__name__}; it should yield dicts of arrays."
        )
    if columns and set(batch) != set(columns):
        raise ConfigError(
            f"{reference}.examples('{split}') yields batches with different inputs: {sorted(columns)}, {sorted(batch)}."
        )
    sizes = set()
    for name, value in batch.items():
        if not isinstance(name, str) or not name or "/" in name or "\\" in name or name.startswith("."):
            raise ConfigError(f"{reference}.examples('{split}'): {name!r} cannot be the name of an input.")
        # A copy: the task may fill the same array again for its next batch.
        array = np.array(value.numpy() if hasattr(value, "numpy") else value, order="C")
        if array.ndim == 0 or array.dtype == object:
            raise ConfigError(f"{reference}.examples('{split}'): '{name}' is not an array with a batch axis.")
        columns.setdefault(name, []).append(array)
        sizes.add(array.shape[0])
    if len(sizes) != 1:
        raise ConfigError(
            f"{reference}.examples('{split}') yields a batch whose arrays have different lengths: {sizes}."
        )
    return int(sizes.pop())


def _checked_scores(scores: Any, reference: str, metric: str) -> dict[str, float]:
    if not isinstance(scores, Mapping):
        raise ConfigError(f"{reference}.score gives a {type(scores).__name__}; it should give a dict of name → number.")
    if metric not in scores:
        raise ConfigError(f"{reference}.score gives {sorted(scores)}, but the task's metric is '{metric}'.")
    checked = {}
    for name, value in scores.items():
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{reference}.score gives {value!r} as '{name}', which is no number.") from error
        if not math.isfinite(number):
            raise ConfigError(f"{reference}.score gives {number} as '{name}'.")
        checked[str(name)] = number
    return checked
