"""Weights as Core ML stores them: integers with scales, or indices into palettes.

It is the converter's side; what each form stands for is told by `constexpr`, the evaluator's own decompression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil import constexpr
from edgekit.backends._quantize.rounding import compensated, pruned

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.grid import Grid
    from edgekit.core.task import Array

_SHRUNK = 0.5
"""The narrowest range that is tried, as a share of the widest."""
_TRIED = 26
_LLOYD_ROUNDS = 100
_BINS = 256
_LUT_SHARE = 0.02
"""How large palettes may be, as a share of the indices: more of them fit the weights better."""
_SMALLEST_SCALE = 2.0**-14
"""The least normal number in float16: smaller scales have few digits, and devices may take them for zero."""


@dataclass(frozen=True)
class Affine:
    """`scale · data`, scales by channel or by block.

    Attributes:
        data: Whole numbers as int8, in the weight's shape.
        scale: In the weight's type; as many axes, with one element for each block.
        bits: 8 or 4.
        axis: The axis that counts output channels.
    """

    data: Array
    scale: Array
    bits: int
    axis: int

    def dense(self) -> Array:
        """The weight as a runtime has it."""
        return constexpr.blockwise_shift_scale({"data": self.data, "scale": self.scale})


@dataclass(frozen=True)
class Palette:
    """`scale · lut[index]`, palettes by group of channels, the scale by channel where there is one.

    Attributes:
        indices: uint8, in the weight's shape.
        lut: In the weight's type; as many axes as the weight and one for the entries: 2**bits of them.
        bits: How many bits an index has.
        axis: The axis that counts output channels.
        scale: In the weight's type and with as many axes, one element for each output channel; None where it is 1.
    """

    indices: Array
    lut: Array
    bits: int
    axis: int
    scale: Array | None = None

    def dense(self) -> Array:
        """The weight as a runtime has it."""
        dense = constexpr.lut_to_dense({"lut": self.lut[..., None], "indices": self.indices})
        return dense if self.scale is None else constexpr.blockwise_shift_scale({"data": dense, "scale": self.scale})


@dataclass(frozen=True)
class Sparse:
    """Floats of which those that are not zero are stored, and a mask of where they stand.

    Attributes:
        values: All of them, float16 or float32, in the weight's shape.
    """

    values: Array

    def dense(self) -> Array:
        """The weight as a runtime has it."""
        return self.values


Compressed = Affine | Palette


def quantized(weight: Array, axis: int, bits: int, block: int | None = None) -> Affine:
    """Symmetric integers whose scales leave the least squared error.

    The range that holds every weight is the best only with many steps: with few of them, narrower ones are tried too.

    Args:
        weight: float16 or float32.
        axis: The axis that counts output channels.
        bits: 8 or 4.
        block: How many weights along the input axis share a scale, at most: the largest number that divides them; all
            of a channel's where it is None.
    """
    import numpy as np

    blocks: Any = _blocked(np.asarray(weight, np.float32), axis, block)
    largest = (1 << (bits - 1)) - 1
    within = tuple(range(1, blocks.ndim, 2))
    widest = np.abs(blocks).max(axis=within, keepdims=True)
    best: Any = np.zeros(())
    least: Any = best
    for place, share in enumerate(np.linspace(1.0, _SHRUNK, _TRIED if bits < 8 else 1)):
        scale: Any = _in_type(widest * np.float32(share) / largest, weight).astype(np.float32)
        error = ((np.clip(np.round(blocks / scale), -largest, largest) * scale - blocks) ** 2).sum(
            axis=within, keepdims=True
        )
        better = error < least if place else np.ones(error.shape, bool)
        best, least = np.where(better, scale, best), np.where(better, error, least)
    steps: Any = np.clip(np.round(blocks / best), -largest, largest).astype(np.int8)
    scales = best.reshape(best.shape[::2]).astype(weight.dtype)
    return Affine(steps.reshape(weight.shape), scales, bits, axis)


def _in_type(scale: Array, weight: Array) -> Array:
    """Scales in the weight's type, none of them zero."""
    import numpy as np

    return np.maximum(scale, _SMALLEST_SCALE if weight.dtype == np.float16 else 1e-30).astype(weight.dtype)


def _blocked(weight: Array, axis: int, block: int | None) -> Array:
    """The weight with each axis split into blocks and what is in a block: (blocks, in block, blocks, in block, …)."""
    sizes = [size if place != axis else 1 for place, size in enumerate(weight.shape)]
    if block is not None:
        sizes[_input_axis(axis)] = fitting_block(block, weight.shape, axis)
    pairs = zip(weight.shape, sizes, strict=True)
    return weight.reshape([part for size, inside in pairs for part in (size // inside, inside)])


def fitting_block(block: int, shape: Sequence[int], axis: int) -> int:
    """The largest number up to `block` that divides a weight's input channels."""
    inputs = shape[_input_axis(axis)]
    return max(size for size in range(1, min(block, inputs) + 1) if inputs % size == 0)


def _input_axis(axis: int) -> int:
    """Convolutions and products alike have the input channels beside the output channels, first or second."""
    return 1 if axis == 0 else axis - 1


def fitted(stored: Compressed, weight: Array, second_moment: Floats) -> Compressed:
    """The same scales or palettes with a rounding that moves the layer's results least.

    Args:
        stored: A weight whose output channels stand first and that has no scale beside its palettes.
        weight: Its real numbers.
        second_moment: The mean of the products of every two of a layer's data, shape (in, in).
    """
    import numpy as np

    rows = np.asarray(weight, np.float64).reshape(len(weight), -1)
    chosen = np.zeros(rows.shape, np.int64)
    if isinstance(stored, Affine):
        scales = stored.scale.astype(np.float64).reshape(len(rows), -1)
        scales = np.repeat(scales, rows.shape[1] // scales.shape[1], axis=1)
        largest = (1 << (stored.bits - 1)) - 1

        def nearest(column: Floats, place: int) -> Floats:
            chosen[:, place] = np.clip(np.round(column / scales[:, place]), -largest, largest)
            return np.asarray(chosen[:, place] * scales[:, place])

        compensated(rows, second_moment, nearest)
        return replace(stored, data=chosen.astype(np.int8).reshape(stored.data.shape))
    palettes = stored.lut.astype(np.float64).reshape(-1, 1 << stored.bits)
    palettes = np.repeat(palettes, len(rows) // len(palettes), axis=0)

    def closest(column: Floats, place: int) -> Floats:
        chosen[:, place] = np.abs(palettes - column[:, None]).argmin(axis=1)
        return np.asarray(palettes[np.arange(len(rows)), chosen[:, place]])

    compensated(rows, second_moment, closest)
    return replace(stored, indices=chosen.astype(np.uint8).reshape(stored.indices.shape))


def palettized(weight: Array, axis: int, bits: int, grouped: bool) -> Palette:
    """The palette of the least squared error: k-means on each group of output channels.

    Args:
        weight: float16 or float32.
        axis: The axis that counts output channels.
        bits: How many bits choose an entry.
        grouped: Whether groups of channels may have palettes of their own, where those are small beside the indices.
    """
    import numpy as np

    rows = np.moveaxis(weight, axis, 0)
    groups = _groups(rows, bits) if grouped else 1
    luts, indices = [], []
    for group in np.split(rows, groups):
        lut, found = _clustered(group, 1 << bits)
        luts.append(lut)
        indices.append(found)
    lut = np.stack(luts).astype(weight.dtype).reshape([groups] + [1] * (weight.ndim - 1) + [1 << bits])
    return Palette(
        np.ascontiguousarray(np.moveaxis(np.concatenate(indices), 0, axis)), np.moveaxis(lut, 0, axis), bits, axis
    )


def _groups(rows: Array, bits: int) -> int:
    """The largest number of equal groups whose palettes stay small beside their indices."""
    channels = rows.shape[0]
    palette_bits = (8 * rows.dtype.itemsize) << bits
    most = int(rows.size * bits * _LUT_SHARE / palette_bits)
    return max((count for count in range(1, min(channels, most) + 1) if channels % count == 0), default=1)


def _clustered(values: Array, count: int) -> tuple[Array, Array]:
    """Centres (count,), ascending, and the index of the nearest one for each value; of pruned ones a centre is zero."""
    import numpy as np

    distinct, inverse, often = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) <= count:
        lut = np.concatenate([distinct, np.full(count - len(distinct), distinct[-1])]).astype(np.float64)
        return lut, inverse.reshape(values.shape).astype(np.uint8)
    if count > 2 and pruned(values).any():
        others, _ = _clustered(values[values != 0], count - 1)
        centres = np.sort(np.append(others, 0.0))
        middles = (centres[1:] + centres[:-1]) / 2
        return centres, np.searchsorted(middles, values.astype(np.float64)).astype(np.uint8)
    exact = distinct.astype(np.float64)
    weights, sums = np.concatenate([[0], np.cumsum(often)]), np.concatenate([[0.0], np.cumsum(exact * often)])
    centres = _start(exact, often, count)
    for _ in range(_LLOYD_ROUNDS):
        edges = np.searchsorted(exact, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(exact)]])
        held = np.diff(weights[bounds])
        moved = np.where(held > 0, np.diff(sums[bounds]) / np.maximum(held, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    # As they are stored, so that each value has the nearest of those.
    stored = centres.astype(values.dtype).astype(np.float64)
    nearest = np.searchsorted((stored[1:] + stored[:-1]) / 2, exact)
    return stored, nearest[inverse].reshape(values.shape).astype(np.uint8)


def _start(exact: Floats, often: Array, count: int) -> Floats:
    """The best centres for a few hundred bins, by dynamic programming over where one cluster ends: no local optimum.

    Bins are as narrow as the best quantizer's steps are: equal shares of the density's cube root (Panter, Dite 1951).
    """
    import numpy as np

    even = np.linspace(exact[0], exact[-1], 2 * _BINS + 1)
    density, _ = np.histogram(exact, even, weights=often)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    edges = np.searchsorted(exact, np.interp(np.linspace(0, share[-1], _BINS + 1)[1:-1], share, even))
    bounds = np.unique(np.concatenate([[0], edges, [len(exact)]]))
    counts = often.astype(np.float64)
    held, first, second = (np.concatenate([[0.0], np.cumsum(counts * exact**power)])[bounds] for power in range(3))
    weight, total = held[None, :] - held[:, None], first[None, :] - first[:, None]
    spread = second[None, :] - second[:, None] - total**2 / np.where(weight > 0, weight, 1.0)
    spread = np.where(np.arange(len(bounds))[:, None] <= np.arange(len(bounds)), np.maximum(spread, 0.0), np.inf)
    least, ends = spread[0], []
    for _ in range(count - 1):
        through = least[:, None] + spread
        ends.append(through.argmin(axis=0))
        least = through.min(axis=0)
    places = [len(bounds) - 1]
    for last in reversed(ends):
        places.append(int(last[places[-1]]))
    cuts = np.array([0, *reversed(places)])
    middles = np.diff(first[cuts]) / np.maximum(np.diff(held[cuts]), 1.0)
    empty = np.diff(held[cuts]) == 0
    middles[empty] = exact[-1]
    return np.sort(middles)


def on_grid(weight: Array, axis: int, grid: Grid, levels: Array, factors: Floats, as_palette: bool) -> Compressed:
    """A weight that a pass has put on a grid, exactly.

    Args:
        weight: As it was converted; a batch norm may be multiplied in.
        axis: The axis that counts output channels.
        grid: The grid.
        levels: The index of each weight's level, in the weight's shape.
        factors: What each output channel was multiplied by since, shape (channels,).
        as_palette: Whether it is stored as a palette; else as integers, which its levels must be then.
    """
    import numpy as np

    along = [1] * weight.ndim
    along[axis] = -1
    scale = np.broadcast_to(np.asarray(grid.scale, np.float64), factors.shape) * factors
    table = np.asarray(grid.levels, np.float64)
    if not as_palette:
        bits = 4 if grid.bits <= 4 and table.min() >= -8 and table.max() <= 7 else 8
        return Affine(table[levels].astype(np.int8), scale.reshape(along).astype(weight.dtype), bits, axis)
    bits = next(bits for bits in (1, 2, 4, 8) if len(table) <= 1 << bits)
    # Palettes have as many entries as indices can name: the last one again.
    entries = np.concatenate([table, np.full((1 << bits) - len(table), table[-1])])
    shape = [1] * weight.ndim + [-1]
    if np.ptp(scale) == 0:
        return Palette(levels, (entries * scale[0]).astype(weight.dtype).reshape(shape), bits, axis)
    # Near the weights' own size, lest sums of levels leave float16; a power of two changes no digit of a level.
    unit = 2.0 ** np.round(np.log2(np.abs(scale).mean()))
    lut = (entries * unit).astype(weight.dtype).reshape(shape)
    return Palette(levels, lut, bits, axis, (scale / unit).reshape(along).astype(weight.dtype))
