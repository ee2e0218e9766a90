"""What a lowering asks of LiteRT that it cannot be, and how coarse what it asks for is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekit.backends._litert.plan import FLOAT, FOUR, PALETTES, STATIC
from edgekit.backends._litert.quantization import SCHEMES
from edgekit.backends.base import Issue
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec

BLOCKS = (32, 64, 128, 256)
_COARSEST_FIRST = (
    "palette_1",
    "palette_2",
    FOUR,
    "palette_4",
    "dynamic_wi8_afp32",
    STATIC,
    "weight_only_wi8_afp32",
    "float16",
    FLOAT,
)


def has_integer_io(lowering: Lowering) -> bool:
    """Whether inputs and outputs are to be integers."""
    return lowering.quantize is not None and lowering.quantize.io != FLOAT


def is_packed(lowering: Lowering) -> bool:
    """Whether a file may have weights that it unpacks itself."""
    asked = {lowering.precision, *lowering.overrides.values()}
    return bool(asked & set(PALETTES)) or (lowering.quantize is not None and lowering.quantize.block_size is not None)


def coarsest(lowering: Lowering) -> str:
    """The precision that outputs are judged by: the coarsest that any layer has."""
    asked = {lowering.precision, *lowering.overrides.values()}
    return next((scheme for scheme in _COARSEST_FIRST if scheme in asked), lowering.precision)


def unsupported_options(lowering: Lowering, outputs: Sequence[TensorSpec]) -> list[Issue]:
    """Options that cannot be had together, or at all; the main scheme itself is not looked at.

    Args:
        lowering: The options.
        outputs: Specs of the model's outputs.
    """
    return [*_io(lowering, outputs), *_overrides(lowering), *_blocks(lowering), *_ranges(lowering)]


def _io(lowering: Lowering, outputs: Sequence[TensorSpec]) -> Iterator[Issue]:
    if lowering.quantize is None or not has_integer_io(lowering):
        return
    for spec in outputs:
        if spec.dtype in ("int8", "uint8"):
            yield Issue("io", f"the output '{spec.name}' is {spec.dtype} in the model already")
    if lowering.precision != STATIC:
        reason = f"{lowering.precision} computes in float, and has float inputs and outputs"
        hint = "Leave out `io`, or use the scheme static_wi8_ai8."
        yield Issue(f"io {lowering.quantize.io}", reason, hint=hint)


def _overrides(lowering: Lowering) -> Iterator[Issue]:
    can = (FLOAT, *SCHEMES)
    for pattern, scheme in lowering.overrides.items():
        if scheme not in can:
            hint = f"A layer can have: {', '.join(can)}."
            yield Issue(f"overrides: {scheme}", "LiteRT has no such precision for a layer", pattern, hint)
        elif scheme == STATIC and lowering.precision != STATIC:
            yield Issue(
                f"overrides: {scheme}",
                "8-bit activations are the whole file's affair in LiteRT",
                pattern,
                f"Make {STATIC} the scheme of `quantize`, and override the other layers with {FLOAT} or weights only.",
            )


def _blocks(lowering: Lowering) -> Iterator[Issue]:
    size = lowering.quantize.block_size if lowering.quantize is not None else None
    if size is None:
        return
    if lowering.precision != FOUR:
        hint = f"Leave out `block_size`, or use the scheme {FOUR}."
        yield Issue(f"block_size {size}", f"{lowering.precision} has one scale for each output channel", hint=hint)
    elif size not in BLOCKS:
        yield Issue(
            f"block_size {size}",
            "the backend 'litert' has no blocks of that size",
            hint=f"It can do: {', '.join(map(str, BLOCKS))}.",
        )


def _ranges(lowering: Lowering) -> Iterator[Issue]:
    quantize = lowering.quantize
    if quantize is not None and quantize.scheme != STATIC and quantize.ranges != "mse":
        yield Issue(
            f"ranges {quantize.ranges}",
            f"{quantize.scheme} leaves activations in float, and sets no ranges of theirs",
            hint=f"Leave out `ranges`, or use the scheme {STATIC}.",
        )
