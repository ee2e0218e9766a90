"""Weights of few bits: the levels that they take, and which of them each weight is.

Trained weights are on a grid already. Others get levels by k-means, shared by a layer's channels, each with a scale of
its own: S. Han, H. Mao and W. J. Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding", ICLR 2016.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.backends._litert.fourbits import least_error_steps, smallest, total
from edgekit.backends._litert.grids import StoredGrid
from edgekit.backends._litert.plan import EIGHT, PALETTES, LayerPlan, Plan

if TYPE_CHECKING:
    from edgekit.backends._litert.layers import Floats, LinearLayer

_KEPT = {"palette_4": 0.1, "palette_2": 0.02, "palette_1": 0.01}
"""The smallest layers, together at most this share of the weights, keep 8 bits: the fewer bits, the more they weigh."""
_ROUNDS = 40
_BINS = 4096


def keep_small(plan: Plan) -> Plan:
    """The plan with 8 bits for layers that no palette is worth it for.

    In a trained network these are the layers that training has left without a grid; in another the smallest. Weights in
    loops are read at every step, and are not packed.
    """
    own = {name: layer for name, layer in plan.of_scheme(*PALETTES).items() if layer.main and not layer.is_fixed}
    kept = [name for name, layer in plan.of_scheme(*PALETTES).items() if not layer.main]
    if plan.trained:
        kept += [name for name, layer in own.items() if layer.grid is None]
    elif plan.main in PALETTES:
        kept += smallest(plan.apart(own), _KEPT[plan.main] * total(plan))
    return plan.with_scheme(kept, EIGHT)


def said(plan: Plan) -> tuple[str, ...]:
    """How many layers have a palette, in a sentence, where that is not all."""
    count, rest = len(plan.of_scheme(plan.main)), len(plan.of_scheme(EIGHT))
    if plan.main not in PALETTES or not rest:
        return ()
    return (f"{count} of {len(plan.layers)} layers have {PALETTES[plan.main]}-bit palettes, {rest} keep 8 bits",)


def palette_of(layer: LayerPlan, twin: LinearLayer) -> StoredGrid:
    """The levels of a layer that is packed: its trained grid where that has few enough levels.

    Args:
        layer: What it gets, a palette or 4 bits in blocks.
        twin: The float operator.
    """
    bits = PALETTES.get(layer.scheme, 4)
    if layer.grid is not None and len(layer.grid.levels) <= 2**bits:
        return layer.grid
    if layer.block is not None:
        return in_blocks(twin.weights(), layer.block)
    return k_means(twin.weights(), twin.channel_axis, bits)


def in_blocks(weights: Floats, block: int) -> StoredGrid:
    """Whole numbers of 4 bits, so many of one output channel with a scale of their own.

    Args:
        weights: Real numbers, shape (out, ...), so many in a channel that blocks fill it.
        block: Weights of one scale.
    """
    import numpy as np

    rows = weights.reshape(-1, block)
    steps = least_error_steps(rows).astype(np.float32).astype(np.float64)
    largest = 2**3 - 1
    codes = np.clip(np.round(rows / steps[:, None]), -largest, largest) + largest
    levels = tuple(float(level) for level in range(-largest, largest + 1))
    return StoredGrid(4, levels, codes.reshape(weights.shape).astype(np.uint8), steps.reshape(len(weights), -1), 0)


def k_means(weights: Floats, axis: int, bits: int) -> StoredGrid:
    """Levels and scales with little squared error: one of the two is set while the other stays, in turns.

    Args:
        weights: Real numbers of any shape.
        axis: The axis that counts output channels.
        bits: How many bits choose a level.
    """
    import numpy as np

    moved = np.moveaxis(np.asarray(weights, np.float64), axis, 0)
    rows = moved.reshape(len(moved), -1)
    scale = np.sqrt((rows**2).mean(axis=1))
    scale[scale == 0] = 1.0
    levels = _first_levels(rows / scale[:, None], 2**bits)
    for _ in range(_ROUNDS):
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, rows / scale[:, None])
        found = levels[codes]
        power = (found**2).sum(axis=1)
        scale = np.where(power > 0, (rows * found).sum(axis=1) / np.where(power > 0, power, 1.0), scale)
        scale = np.where(scale > 0, scale, 1.0)
        # Errors count by the scale: those of a channel of large weights count more.
        counts = np.bincount(
            codes.ravel(), weights=np.broadcast_to((scale**2)[:, None], rows.shape).ravel(), minlength=len(levels)
        )
        sums = np.bincount(codes.ravel(), weights=(rows * scale[:, None]).ravel(), minlength=len(levels))
        moved_to = np.sort(np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), levels))
        if np.allclose(moved_to, levels, rtol=1e-6, atol=1e-9):
            break
        levels = moved_to
    levels = levels.astype(np.float32).astype(np.float64)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, rows / scale[:, None])
    # A channel of zeros stays one.
    scale = np.where(np.any(rows, axis=1), scale, 0.0)
    stored = np.moveaxis(codes.reshape(moved.shape), 0, axis).astype(np.uint8)
    return StoredGrid(bits, tuple(map(float, levels)), stored, scale, axis)


def _first_levels(values: Floats, count: int) -> Floats:
    """Levels in the middle of parts of the distribution with equal shares of the cube root of its density.

    That is where the levels of least squared error lie, for many of them: P. F. Panter and W. Dite, 1951.
    """
    import numpy as np

    counts, edges = np.histogram(values, bins=_BINS)
    share = np.cumsum(np.cbrt(counts))
    places = (np.arange(count) + 0.5) / count * share[-1]
    centres = (edges[1:] + edges[:-1]) / 2
    return np.unique(np.interp(places, share, centres))
