"""One program for several batch sizes: it is traced once for each, by torch's own vectorization.

A `.pt2` has its batch size in every shape. `torch.func.vmap` runs it on several such batches at once and turns each
operator into its batched form, so that nothing in the program needs to be guessed or rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.backends.base import CompileRequest
from edgekit.core.errors import BackendError, UnsupportedModelError
from edgekit.core.extras import require

_WHY = "several batch sizes in the backend litert"
_TOLERANCE = 1e-3


def require_batches(request: CompileRequest, sizes: Sequence[int]) -> None:
    """Check that the model can be had in those batch sizes.

    Raises:
        UnsupportedModelError: A size is no multiple of the model's own, or a tensor has no batch axis.
    """
    own = request.inputs[0].batch_size
    wrong = [size for size in sizes if size < 1 or size % own]
    if wrong:
        raise UnsupportedModelError(
            f"`batch_sizes` asks for {wrong[0]}; the model's own batch size is {own}, and only its multiples can be had.",
            "Give the model with batch size 1.",
        )
    for kind, specs in (("input", request.inputs), ("output", request.outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] != own:
                raise UnsupportedModelError(
                    f"`batch_sizes` cannot be: the {kind} '{spec.name}' {list(spec.shape)} has no batch of {own} along its"
                    " first axis.",
                    "Leave out `batch_sizes`, or give the model with the batch along the first axis of every input and"
                    " output.",
                )


def batched(inner: Any, own: int, size: int) -> Any:
    """A module that computes `inner`, whose batch size is `own`, on a batch of `size`."""
    torch = require("torch", "litert-convert", _WHY)
    count = size // own

    class Batched(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: Any) -> Any:
            parts = [tensor.reshape(count, own, *tensor.shape[1:]) for tensor in tensors]
            results = torch.func.vmap(self.inner)(*parts)
            several = isinstance(results, tuple | list)
            joined = [one.reshape(size, *one.shape[2:]) for one in (results if several else (results,))]
            return tuple(joined) if several else joined[0]

    return Batched()


def require_equal(content: bytes, signatures: Mapping[str, int]) -> None:
    """Check that every signature of a float32 file computes the same, on made-up inputs.

    Quantized, each has ranges of its own, and the last bits differ.

    Raises:
        BackendError: One does not.
    """
    if len(signatures) < 2:
        return
    import numpy as np

    module = require("ai_edge_litert.interpreter", "litert", _WHY)
    interpreter = module.Interpreter(model_content=content, num_threads=1)
    first, *others = signatures
    base = interpreter.get_signature_runner(first)
    generator = np.random.default_rng(0)
    for name in others:
        runner = interpreter.get_signature_runner(name)
        count = int(np.lcm(signatures[first], signatures[name]))
        inputs = {
            key: _made_up(generator, (count, *map(int, detail["shape"][1:])), np.dtype(detail["dtype"]))
            for key, detail in base.get_input_details().items()
        }
        want = _in_batches(base, inputs, signatures[first])
        found = _in_batches(runner, inputs, signatures[name])
        for key, value in want.items():
            scale = max(float(np.max(np.abs(value.astype(np.float64)), initial=0.0)), 1e-6)
            off = float(np.max(np.abs(found[key].astype(np.float64) - value.astype(np.float64)), initial=0.0))
            if not off <= _TOLERANCE * scale:
                raise BackendError(
                    f"The signatures '{first}' and '{name}' do not compute the same: the output '{key}' differs by {off:.3g}."
                )


def _made_up(generator: Any, shape: Sequence[int], dtype: Any) -> Any:
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _in_batches(runner: Any, inputs: Mapping[str, Any], batch: int) -> dict[str, Any]:
    import numpy as np

    count = len(next(iter(inputs.values())))
    parts: dict[str, list[Any]] = {}
    for start in range(0, count, batch):
        results = runner(**{key: value[start : start + batch] for key, value in inputs.items()})
        for key, value in results.items():
            parts.setdefault(key, []).append(value)
    return {key: np.concatenate(values) for key, values in parts.items()}
