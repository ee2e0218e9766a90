"""Outputs of a model in its own framework, kept on disk: what every artifact is compared with."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.files import sha256_text
from edgekit.core.model import Model, TensorSpec
from edgekit.core.progress import Progress
from edgekit.core.task import Split
from edgekit.flow.cache import Cache
from edgekit.flow.data import DataSet

if TYPE_CHECKING:
    import numpy as np

    from edgekit.core.task import Array

GOLDEN_EXAMPLES = 8
RANDOM_EXAMPLES = 4
RANDOM = "random"


@dataclass(frozen=True)
class InputFiles:
    """A set of inputs on disk.

    Attributes:
        name: `golden`, or the split's name.
        files: One `.npy` an input.
        key: Identity of their contents.
    """

    name: str
    files: Mapping[str, Path]
    key: str


def run_batches(model: Model, inputs: Mapping[str, Array], progress: Progress, what: str = "") -> dict[str, Array]:
    """The model's outputs for any number of examples, in its own framework.

    Args:
        model: The model; its inputs have a fixed batch size.
        inputs: Arrays by input name, shape (N, …).
        progress: Told how many examples are done.
        what: What the examples are, for people.

    Returns:
        Arrays by output name, shape (N, …).

    Raises:
        UnsupportedModelError: The batch is larger than one, and an output has no axis for it.
    """
    import numpy as np

    batch = model.inputs[0].batch_size
    count = len(next(iter(inputs.values())))
    collected: dict[str, list[Array]] = {spec.name: [] for spec in model.outputs}
    with progress.step(f"{model.name} in its own framework{f': {what}' if what else ''}", total=count) as step:
        for start in range(0, count, batch):
            real = min(batch, count - start)
            chunk = {}
            for spec in model.inputs:
                part = np.asarray(inputs[spec.name][start : start + real])
                if real < batch:
                    # The last batch is filled up with its last example; the outputs of the copies are dropped.
                    part = np.concatenate([part, np.repeat(part[-1:], batch - real, axis=0)])
                chunk[spec.name] = np.ascontiguousarray(part)
            for name, value in model.program.run(chunk).items():
                collected[name].append(_real_rows(name, np.atleast_1d(value), batch, real))
            step.advance(real)
    return {name: np.concatenate(parts, axis=0) for name, parts in collected.items()}


def _real_rows(name: str, value: Array, batch: int, real: int) -> Array:
    """The rows of the examples that are no filling; all of them where a batch is one example, whatever the axes mean."""
    if batch == 1:
        return value.copy()
    if len(value) != batch:
        raise UnsupportedModelError(
            f"The output '{name}' has the shape {list(value.shape)}, but the batch is {batch}: its first axis is not the"
            " batch.",
            "Give the source example inputs with a batch of 1, or an output whose first axis is the batch.",
        )
    return value[:real].copy()


def array_file(name: str) -> str:
    """The file name of the array `name`: names of ONNX graphs have slashes in them."""
    return f"{urllib.parse.quote(name, safe='')}.npy"


def arrays_in(folder: Path) -> dict[str, Path]:
    """The arrays in a folder, by name; see `array_file`."""
    return {urllib.parse.unquote(path.stem): path for path in sorted(folder.glob("*.npy"))}


def reference_outputs(
    digest: str, model: Callable[[], Model], inputs: InputFiles, cache: Cache, progress: Progress
) -> dict[str, Path]:
    """Files with the outputs of the model of that digest; the model is made only where they are not known yet."""
    import numpy as np

    def fill(staging: Path) -> None:
        arrays = {name: np.load(path, mmap_mode="r") for name, path in inputs.files.items()}
        for name, value in run_batches(model(), arrays, progress, inputs.name).items():
            np.save(staging / array_file(name), value)

    folder = cache.make("outputs", sha256_text(f"{digest}:{inputs.key}"), fill)
    return arrays_in(folder)


def split_inputs(data: DataSet, split: str) -> InputFiles | None:
    """The inputs of a split, or None where it is empty."""
    return InputFiles(split, data.inputs(split), data.key(split)) if data.split(split) else None


def golden_inputs(
    specs: tuple[TensorSpec, ...],
    examples: Callable[[], Mapping[str, Array]],
    key: str,
    data: DataSet | None,
    cache: Cache,
) -> InputFiles:
    """A few inputs that travel with an artifact: the first of the validation split, else made up from the examples.

    Args:
        specs: The model's inputs.
        examples: The model's example inputs.
        key: The model's digest.
        data: The task's data, where there is a task.
        cache: Where the files are kept.
    """
    import numpy as np

    split: Split | None = None
    if data is not None:
        split = next((s for s in ("validation", "test", "calibration") if data.split(s)), None)
    origin = data.key(split) if data is not None and split is not None else f"examples of {key}"

    def fill(staging: Path) -> None:
        for spec in specs:
            if data is not None and split is not None:
                value = np.load(data.inputs(split)[spec.name], mmap_mode="r")[:GOLDEN_EXAMPLES]
            else:
                value = _made_up(spec, examples()[spec.name])
            np.save(staging / array_file(spec.name), value)

    golden_key = sha256_text(f"golden:{GOLDEN_EXAMPLES}:{origin}")
    folder = cache.make("outputs", golden_key, fill)
    return InputFiles("golden", {spec.name: folder / array_file(spec.name) for spec in specs}, golden_key)


def random_inputs(specs: tuple[TensorSpec, ...], seen: InputFiles, cache: Cache) -> InputFiles:
    """Seeded random values in the range that is declared for each input, else in the range of values seen.

    Args:
        specs: The model's inputs.
        seen: Inputs from the task; integers never leave their range: they may be places in a table.
        cache: Where the files are kept.
    """
    import numpy as np

    ranges = {spec.name: _range_of(spec, np.load(seen.files[spec.name], mmap_mode="r")) for spec in specs}
    shapes = {spec.name: (RANDOM_EXAMPLES, *spec.shape[1:]) for spec in specs}
    key = sha256_text(f"random:{[(s.name, s.dtype, ranges[s.name], shapes[s.name]) for s in specs]}")

    def fill(staging: Path) -> None:
        generator = np.random.default_rng(0)
        for spec in specs:
            values = _uniform(generator, *ranges[spec.name], shapes[spec.name], np.dtype(spec.dtype))
            np.save(staging / array_file(spec.name), values)

    folder = cache.make("outputs", key, fill)
    return InputFiles(RANDOM, {spec.name: folder / array_file(spec.name) for spec in specs}, key)


def as_taken(inputs: InputFiles, specs: Sequence[TensorSpec], cache: Cache) -> InputFiles:
    """The inputs in the integer types that an artifact takes: converters make 64-bit integers 32-bit ones.

    Args:
        inputs: The inputs in the model's own types.
        specs: The artifact's inputs.
        cache: Where changed files are kept.

    Raises:
        ConfigError: A value does not fit the artifact's type.
    """
    import numpy as np

    arrays = {spec.name: np.load(inputs.files[spec.name], mmap_mode="r") for spec in specs}
    narrowed = {
        spec.name: spec.dtype
        for spec in specs
        if arrays[spec.name].dtype.kind == "i"
        and spec.dtype.startswith("int")
        and arrays[spec.name].dtype != spec.dtype
    }
    if not narrowed:
        return inputs
    for name, dtype in narrowed.items():
        limits, values = np.iinfo(dtype), arrays[name]
        if values.size and (values.min() < limits.min or values.max() > limits.max):
            raise ConfigError(
                f"The input '{name}' has values from {values.min()} to {values.max()} in the set '{inputs.name}'; the"
                f" artifact takes {dtype}."
            )

    def fill(staging: Path) -> None:
        for name, dtype in narrowed.items():
            np.save(staging / array_file(name), arrays[name].astype(dtype))

    key = sha256_text(f"{inputs.key}:{sorted(narrowed.items())}")
    folder = cache.make("outputs", key, fill)
    return InputFiles(inputs.name, {**inputs.files, **arrays_in(folder)}, key)


def _made_up(spec: TensorSpec, example: Array) -> Array:
    """The example itself and seeded random values between its extremes, or in the declared range."""
    import numpy as np

    count = max(GOLDEN_EXAMPLES - len(example), 0)
    shape = (count, *example.shape[1:])
    values = _uniform(np.random.default_rng(0), *_range_of(spec, example), shape, example.dtype)
    return np.concatenate([example, values])


def _range_of(spec: TensorSpec, seen: Array) -> tuple[float, float]:
    import numpy as np

    low, high = spec.value_range or (float(np.min(seen)), float(np.max(seen)))
    return (low - 1.0, high + 1.0) if low == high and seen.dtype.kind == "f" else (low, high)


def _uniform(generator: np.random.Generator, low: float, high: float, shape: tuple[int, ...], dtype: Any) -> Array:
    if dtype.kind == "f":
        return generator.uniform(low, high, shape).astype(dtype)
    return generator.integers(int(low), int(high) + 1, shape).astype(dtype)
