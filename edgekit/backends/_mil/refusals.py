"""What stands in the way of a quantization for Core ML, by the release that the target builds for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgekit.backends.base import Issue
from edgekit.core.lowering import Lowering

OLDEST_IOS: Mapping[str, int] = {
    "static_wi8_ai8": 17,
    "weight_only_wi8_afp32": 16,
    "weight_only_wi4_afp32": 18,
    "palette_4": 16,
    "palette_2": 16,
    "palette_1": 16,
}
"""The release from which on Core ML has what a scheme needs; macOS releases count as the iOS of their year."""

_SPARSE_IOS = 16
_PLAIN = ("float32", "float16")
_STATIC = "static_wi8_ai8"
_INSTEAD: Mapping[str, str] = {
    _STATIC: "Use weight_only_wi8_afp32, from iOS 16 on: the same size, activations in float.",
    "weight_only_wi4_afp32": "Use palette_4, from iOS 16 on: 4-bit weights as well.",
}


def of_quantization(lowering: Lowering, ios: int) -> Iterator[Issue]:
    """The issues of a lowering.

    Args:
        lowering: The options.
        ios: The iOS release that the target builds for.
    """
    quantize = lowering.quantize
    if lowering.sparse in ("size", "speed") and ios < _SPARSE_IOS:
        hint = f"Leave out sparse, or build for iOS {_SPARSE_IOS} or newer: os.min_version of the target."
        reason = f"sparse weights need iOS {_SPARSE_IOS}; the target builds for iOS {ios}"
        yield Issue(f"sparse: {lowering.sparse}", reason, hint=hint)
    if quantize and quantize.io != "float32":
        hint = "Leave out io, or use io: float32."
        yield Issue(f"io: {quantize.io}", "Core ML models have no 8-bit inputs and outputs", hint=hint)
    if quantize:
        yield from _too_old(quantize.scheme, "", ios)
    if quantize and quantize.block_size is not None and quantize.block_size < 1:
        yield Issue(f"block_size: {quantize.block_size}", "a block has at least one weight", hint="block_size: 32")
    for pattern, scheme in lowering.overrides.items():
        yield from _of_override(pattern, scheme, lowering.precision, ios)


def _too_old(scheme: str, where: str, ios: int) -> Iterator[Issue]:
    oldest = OLDEST_IOS.get(scheme, 0)
    if ios < oldest:
        instead = _INSTEAD.get(scheme, "")
        if not instead or ios < OLDEST_IOS["palette_4"]:
            instead = "Use float16, or leave the scheme out."
        hint = f"{instead} Or build for iOS {oldest} or newer: os.min_version of the target."
        yield Issue(f"scheme {scheme}", f"it needs iOS {oldest}; the target builds for iOS {ios}", where, hint)


def _of_override(pattern: str, scheme: str, default: str, ios: int) -> Iterator[Issue]:
    if scheme not in (*_PLAIN, *OLDEST_IOS):
        hint = f"A layer can have: {', '.join((*_PLAIN, *OLDEST_IOS))}."
        yield Issue(f"override {scheme}", "Core ML cannot store a layer so", pattern, hint)
    elif scheme == _STATIC and default != _STATIC:
        hint = f"Make {_STATIC} the scheme, and name the layers that shall not have it."
        yield Issue(f"override {scheme}", "8-bit activations are set for the whole model", pattern, hint)
    else:
        yield from _too_old(scheme, pattern, ios)
