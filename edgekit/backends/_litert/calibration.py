"""Calibration examples as a `.tflite` file takes them, and the file's outputs for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.interface import as_file, moved_axes
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.core.task import Array

    Floats = NDArray[np.float64]

Example = Mapping[str, "Array"]
"""One call's inputs by name, in the float file's types and layout."""


def examples(request: CompileRequest, count: int, batch: int) -> Iterator[Example]:
    """Examples in batches of that size, from the request's calibration folder.

    Raises:
        UnsupportedModelError: There are none, not one whole batch, or one with a value that is not finite.
    """
    import numpy as np

    if request.calibration is None:
        raise UnsupportedModelError(
            f"{request.lowering.precision} needs calibration examples, and there are none.",
            "Give a task whose examples('calibration') yields inputs: edgekit.yaml: task: task.py:NAME",
        )
    arrays = {spec.name: np.load(request.calibration / f"{spec.name}.npy", mmap_mode="r") for spec in request.inputs}
    axes = moved_axes(request.inputs, request.lowering)
    available = min(count, *(len(array) for array in arrays.values()))
    if available < batch:
        raise UnsupportedModelError(
            f"{request.lowering.precision} needs at least one whole batch of {batch} calibration examples; there are"
            f" {available}.",
            "Yield more in examples('calibration'), or raise quantize.calibration in the recipe.",
        )
    for start in range(0, available - batch + 1, batch):
        taken = {name: array[start : start + batch] for name, array in arrays.items()}
        for name, value in taken.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise UnsupportedModelError(
                    f"The input '{name}' of the calibration examples from {start} on has a value that is not finite.",
                    "Mend examples('calibration') of the task.",
                )
        yield {spec.name: as_file(spec.name, taken[spec.name], axes, spec.dtype) for spec in request.inputs}


def interpreter(content: bytes, *, keep_all: bool = False) -> Any:
    """The runtime with one thread; `keep_all` lets every tensor be read after a run."""
    module = require("ai_edge_litert.interpreter", "litert", "quantizing for the backend litert")
    with warnings.catch_warnings():
        # It warns of the memory that this takes, which is that of one example.
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        return module.Interpreter(model_content=content, num_threads=1, experimental_preserve_all_tensors=keep_all)


def outputs(content: bytes, signature: str, samples: Sequence[Example]) -> dict[str, Floats]:
    """Outputs by name, float64, the examples along a new first axis; 8-bit interfaces are driven by floats.

    Args:
        content: The file.
        signature: Which of its signatures is run.
        samples: Inputs, as the float file takes them.
    """
    import numpy as np

    runner = interpreter(content).get_signature_runner(signature)
    given, gives = runner.get_input_details(), runner.get_output_details()
    found: dict[str, list[Floats]] = {name: [] for name in gives}
    for sample in samples:
        results = runner(**{name: as_taken(value, given[name]) for name, value in sample.items()})
        for name, value in results.items():
            scale, zero_point = gives[name]["quantization"]
            real = value.astype(np.float64)
            found[name].append((real - zero_point) * scale if scale else real)
    return {name: np.stack(values) for name, values in found.items()}


def as_taken(value: Array, detail: Mapping[str, Any]) -> Array:
    """A float array in an input's own type: rounded to its steps where that is 8-bit."""
    import numpy as np

    scale, zero_point = detail["quantization"]
    dtype = np.dtype(detail["dtype"])
    if not scale or dtype.kind == "f" or value.dtype.kind != "f":
        return value
    limits = np.iinfo(dtype)
    rounded = np.clip(np.round(value / scale) + zero_point, limits.min, limits.max)
    return np.asarray(rounded, dtype)


def readable(model: Any) -> bytes:
    """The model's file with every result of its signatures read: the runtime does not keep those that nothing reads."""
    main = {signature.subgraphIndex for signature in model.signatureDefs}
    for subgraph in (model.subgraphs[index] for index in sorted(main)):
        read = {int(tensor) for operator in subgraph.operators for tensor in operator.inputs}
        read |= {int(tensor) for tensor in subgraph.outputs}
        results = [int(tensor) for operator in subgraph.operators for tensor in operator.outputs]
        subgraph.outputs = [*map(int, subgraph.outputs), *(tensor for tensor in results if tensor not in read)]
    return flatbuffer.write(model)
