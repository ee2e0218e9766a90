"""Calibration examples as a Core ML package takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from edgekit.backends.base import CompileRequest, calibration_batches
from edgekit.core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from edgekit.core.task import Array

Affine = tuple[tuple[float, ...], tuple[float, ...]]
"""Scale and bias by channel that turn pixels into what the model takes."""

_NEEDED = "static"


def examples(
    request: CompileRequest, bindings: Mapping[str, str], pixels: Mapping[str, Affine]
) -> Iterator[dict[str, Array]]:
    """The request's calibration examples in the model's batch size, by the package's own names.

    Args:
        request: The request. Only schemes with 8-bit activations cannot do without examples.
        bindings: The package's names where they are not ours: `inputs.image` → `args_0`.
        pixels: Scale and bias of inputs that the package takes as raw pixels, by our name.

    Raises:
        UnsupportedModelError: They are needed and there are none, there is less than one batch, their shape is not
            the model's, or one has a value that is not finite.
    """
    import numpy as np

    if request.lowering.quantize is None:
        return
    if request.calibration is None and not request.lowering.precision.startswith(_NEEDED):
        return
    shapes = {spec.name: spec.shape for spec in request.inputs}
    for place, batch in enumerate(calibration_batches(request)):
        found = {}
        for name, value in batch.items():
            if value.shape != shapes[name]:
                raise UnsupportedModelError(
                    f"The input '{name}' of the calibration examples has the shape {value.shape}; the model takes"
                    f" {shapes[name]}.",
                    "Mend examples('calibration') of the task.",
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise UnsupportedModelError(
                    f"The input '{name}' of calibration batch {place} has a value that is not finite.",
                    "Mend examples('calibration') of the task.",
                )
            found[bindings.get(f"inputs.{name}", name)] = _as_pixels(value, pixels[name]) if name in pixels else value
        yield found


def _as_pixels(value: Array, affine: Affine) -> Array:
    import numpy as np

    scale, bias = (np.reshape(np.asarray(part), (1, -1, 1, 1)) for part in affine)
    return np.asarray(np.clip(np.round((value.astype(np.float64) - bias) / scale), 0, 255), np.uint8)
