"""From a `.pt2` to a `.tflite`: litert-torch, with recurrent layers kept whole and equal constants stored once."""

from __future__ import annotations

from typing import Any

from edgekit.backends._litert import batches, flatbuffer, loops, operators, ordering, recurrent
from edgekit.backends._litert.interface import moved_axes
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.program import first_line

EXTRA = "litert-convert"
SIGNATURE = "serving_default"


def to_flatbuffer(request: CompileRequest) -> bytes:
    """The float32 `.tflite` of a request's program.

    Raises:
        UnsupportedModelError: litert-torch cannot convert it.
    """
    torch = require("torch", EXTRA, "the backend litert")
    litert_torch = require("litert_torch", EXTRA, "the backend litert")
    exported = torch.export.load(request.program)
    issues = operators.unsupported_operators(exported)
    if issues:
        raise UnsupportedModelError(
            f"LiteRT cannot run {request.source} as it is:\n{operators.listed(issues)}",
            "\n".join(dict.fromkeys(issue.hint for issue in issues if issue.hint)),
        )
    inner = exported.module()
    recurrent.keep_whole(inner)
    ordering.use_top_k(inner)
    own = request.inputs[0].batch_size
    try:
        converter = litert_torch
        for name, size in signatures(request).items():
            module = _named(inner if size == own else batches.batched(inner, own, size), request)
            converter = converter.signature(name, module, sample_kwargs=_examples(request, size))
        converted = converter.convert()
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"litert-torch cannot convert {request.source}: {_reason(exported, error)}",
            "Run with --verbose for its own words.",
        ) from error
    model = flatbuffer.read(bytes(converted.model_content()))
    loops.insert_loops(model)
    flatbuffer.compact(model)
    flatbuffer.name_apart(model)
    return flatbuffer.write(model)


def signatures(request: CompileRequest) -> dict[str, int]:
    """Batch sizes by the name of their signature, the one that is run unless another is asked for first.

    Raises:
        UnsupportedModelError: A size is no multiple of the model's own, or a tensor has no batch axis.
    """
    sizes = request.lowering.batch_sizes
    if not sizes:
        return {SIGNATURE: request.inputs[0].batch_size}
    batches.require_batches(request, sizes)
    first, *rest = dict.fromkeys(sizes)
    return {SIGNATURE: first} | {f"batch_{size}": size for size in rest}


def _examples(request: CompileRequest, batch: int) -> dict[str, Any]:
    torch = require("torch", EXTRA, "the backend litert")
    axes = moved_axes(request.inputs, request.lowering)
    found = {}
    for spec in request.inputs:
        shape = (batch, *spec.shape[1:]) if request.lowering.batch_sizes else spec.shape
        example = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
        found[spec.name] = example.permute(axes[spec.name]).contiguous() if spec.name in axes else example
    return found


def _reason(exported: Any, error: Exception) -> str:
    """The operators that it stumbles over, all of them and where they stand; its own words where it was none of them."""
    try:
        issues = operators.without_lowering(exported)
    except Exception:  # noqa: BLE001  # torch cannot take the program apart either: the first error says more
        return first_line(error)
    return operators.listed(issues) or first_line(error)


def _named(inner: Any, request: CompileRequest) -> Any:
    """A module with keyword inputs and a dict of outputs: the names that litert-torch writes into the signature."""
    torch = require("torch", EXTRA, "the backend litert")
    output_names = [spec.name for spec in request.outputs]
    axes = moved_axes(request.inputs, request.lowering)
    back = {name: tuple(order.index(axis) for axis in range(len(order))) for name, order in axes.items()}

    class Named(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            # An exported program was exported in evaluation mode and cannot be put into it; the converter looks at this.
            self.training = False

        def forward(self, **tensors: Any) -> dict[str, Any]:
            own = [value.permute(back[name]) if name in back else value for name, value in tensors.items()]
            results = self.inner(*own)
            return dict(zip(output_names, results if isinstance(results, tuple | list) else (results,), strict=True))

    return Named()
