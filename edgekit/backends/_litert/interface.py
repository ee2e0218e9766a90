"""What the `.tflite` file's inputs and outputs are, where they are not the model's: layout, element type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec

if TYPE_CHECKING:
    from edgekit.core.task import Array

NARROWED = {"int64": "int32", "float64": "float32"}
_AXES = {("NCHW", "NHWC"): (0, 2, 3, 1), ("NHWC", "NCHW"): (0, 3, 1, 2)}


def moved_axes(inputs: tuple[TensorSpec, ...], lowering: Lowering) -> dict[str, tuple[int, ...]]:
    """The axes by which an input in the model's layout becomes the artifact's, by name; without those that stay.

    Raises:
        UnsupportedModelError: `layout` names no input of the model, or one that is no image.
    """
    named = {spec.name: spec for spec in inputs}
    unknown = sorted(lowering.layout.keys() - named.keys())
    if unknown:
        raise UnsupportedModelError(
            f"`layout` names '{unknown[0]}', which is no input of the model.", f"Its inputs: {', '.join(named)}."
        )
    found: dict[str, tuple[int, ...]] = {}
    for name, wanted in lowering.layout.items():
        spec = named[name]
        # torch's own order, where nobody has said another.
        own = spec.layout or "NCHW"
        if len(spec.shape) != 4 or own not in ("NCHW", "NHWC"):
            raise UnsupportedModelError(
                f"`layout` asks for {wanted} of the input '{name}', which is {own} of shape {list(spec.shape)}.",
                "Only inputs with four axes, NCHW or NHWC, can be laid out anew.",
            )
        if own != wanted:
            found[name] = _AXES[own, wanted]
    return found


def shown_axes(lowering: Lowering, inputs: tuple[TensorSpec, ...], changed: tuple[str, ...]) -> dict[str, list[int]]:
    """The same, from an artifact's manifest: its inputs have the new layout already."""
    return {
        spec.name: list(_AXES[_other(spec.layout), spec.layout])
        for spec in inputs
        if spec.name in lowering.layout and spec.layout in ("NCHW", "NHWC") and laid_out(spec) in changed
    }


def _other(layout: str) -> str:
    return "NCHW" if layout == "NHWC" else "NHWC"


def laid_out(spec: TensorSpec) -> str:
    """The sentence that says that an input's layout was changed; `spec` is the artifact's."""
    shape = list(spec.shape)
    return f"the input '{spec.name}' is {spec.layout} {shape} in the artifact; it was {_other(spec.layout or 'NCHW')}"


def artifact_specs(
    request: CompileRequest, types: Mapping[str, Mapping[str, str]]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...]]:
    """Inputs and outputs as the file has them, and what was changed, each in a sentence.

    Args:
        request: The request.
        types: Element types in the file by name, of `input` and `output`. litert-torch turns 64-bit types into 32-bit
            ones without a word; integer inputs and outputs are asked for.
    """
    axes = moved_axes(request.inputs, request.lowering)
    sizes = request.lowering.batch_sizes
    changed: list[str] = []
    if len(sizes) > 1 or (sizes and sizes[0] != request.inputs[0].batch_size):
        listing = ", ".join(map(str, sizes))
        changed.append(f"the artifact takes the batch sizes {listing}; it was {request.inputs[0].batch_size}")

    def seen(own: TensorSpec, kind: str) -> TensorSpec:
        spec = replace(own, shape=(sizes[0], *own.shape[1:])) if sizes else own
        result = spec
        if kind == "input" and spec.name in axes:
            shape = tuple(spec.shape[axis] for axis in axes[spec.name])
            result = replace(spec, shape=shape, layout=request.lowering.layout[spec.name])
            changed.append(laid_out(result))
        dtype = types[kind][spec.name]
        if dtype != spec.dtype:
            changed.append(f"the {kind} '{spec.name}' is {dtype} in the artifact; it was {spec.dtype}")
        return replace(result, dtype=dtype)  # type: ignore[arg-type]  # the schema's types are among ours

    inputs = tuple(seen(spec, "input") for spec in request.inputs)
    outputs = tuple(seen(spec, "output") for spec in request.outputs)
    return inputs, outputs, tuple(changed)


def as_file(name: str, array: Array, axes: Mapping[str, tuple[int, ...]], dtype: str) -> Array:
    """An input's array, in the model's layout and type, as the float file takes it."""
    import numpy as np

    value = np.transpose(array, axes[name]) if name in axes else array
    return np.ascontiguousarray(value).astype(NARROWED.get(dtype, dtype))
