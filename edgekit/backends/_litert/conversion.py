"""From a `.pt2` to a `.tflite`: litert-torch, with recurrent layers kept whole and equal constants stored once."""

from __future__ import annotations

from typing import Any

from edgekit.backends._litert import flatbuffer, loops, operators, recurrent
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
    axes = moved_axes(request.inputs, request.lowering)
    examples = {}
    for spec in request.inputs:
        example = torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        examples[spec.name] = example.permute(axes[spec.name]).contiguous() if spec.name in axes else example
    try:
        converted = litert_torch.signature(SIGNATURE, _named(inner, request), sample_kwargs=examples).convert()
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
    return flatbuffer.write(model)


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
