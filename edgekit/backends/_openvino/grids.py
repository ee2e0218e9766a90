"""Grids of weights: uniform steps, palettes, and those that training has fixed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.backends._openvino.storage import Stored, closest_entry
from edgekit.backends._quantize.rounding import pruned
from edgekit.core.grid import Grid

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

_CLIPS = 41
_NARROWEST = 0.4
"""The least largest value that is tried for 4-bit weights, as a share of the largest weight."""
_SAMPLED = 1 << 16
_ROUNDS = 12
_CLOSE = 1e-3
"""How far a weight may lie from a trained level, as a share of one scale: it is one, but for float32's rounding."""


def uniform(weights: Floats, bits: int, block: int | None = None) -> Stored:
    """Whole steps with a sign, a scale for each channel or for each block of it.

    8 bits reach to the largest weight. 4 bits clip where the squared error is least.

    Args:
        weights: Shape (channels, weights of each).
        bits: 8 or 4.
        block: Weights that share a scale; all of a channel where None or where it does not divide them.
    """
    import numpy as np

    largest = 2 ** (bits - 1) - 1
    rows, length = weights.shape
    width = block if block and length % block == 0 else length
    blocks = weights.reshape(rows, length // width, width)
    scale = np.abs(blocks).max(axis=2) / largest
    if bits < 8:
        scale = scale * _clipping(blocks, scale, largest)
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32).astype(np.float64)
    codes = np.clip(np.round(blocks / scale[:, :, None]), -largest, largest).astype(np.int8)
    return Stored(bits, codes.reshape(rows, length), scale, largest=largest)


def _clipping(blocks: Floats, scale: Floats, largest: int) -> Floats:
    import numpy as np

    least, best = np.full(scale.shape, np.inf), np.ones(scale.shape)
    for share in np.linspace(_NARROWEST, 1.0, _CLIPS):
        step = np.where(scale > 0, scale * share, 1.0)[:, :, None]
        error = ((np.clip(np.round(blocks / step), -largest, largest) * step - blocks) ** 2).sum(axis=2)
        best = np.where(error <= least, share, best)
        least = np.minimum(error, least)
    return best


def palette(weights: Floats, bits: int) -> Stored:
    """A few values for all weights of a layer, found by k-means, times a scale for each channel.

    Two values are -1 and 1, and the scale is the mean size, which is the least squared error: M. Rastegari et al.,
    "XNOR-Net", ECCV 2016.
    """
    import numpy as np

    size = (
        np.abs(weights).mean(axis=1, keepdims=True) if bits == 1 else np.sqrt((weights**2).mean(axis=1, keepdims=True))
    )
    scale = np.where(size > 0, size, 1.0)
    table = (
        np.array([-1.0, 1.0])
        if bits == 1
        else _means((weights / scale).ravel(), (scale**2).repeat(weights.shape[1]), bits)
    )
    table = table.astype(np.float32).astype(np.float64)
    codes = closest_entry(weights / scale, table)
    if bits > 1:
        entries = table[codes]
        norms = (entries**2).sum(axis=1, keepdims=True)
        fitted = (entries * weights).sum(axis=1, keepdims=True) / np.where(norms > 0, norms, 1.0)
        scale = np.where(fitted > 0, fitted, scale)
        codes = closest_entry(weights / scale, table)
    return Stored(bits, codes, np.where(size > 0, scale, 0.0), table)


def _means(values: Floats, importance: Floats, bits: int) -> Floats:
    """Lloyd's iteration from equal shares of the values; of pruned ones, zero is an entry and the others share the rest."""
    import numpy as np

    stride = max(1, values.size // _SAMPLED) | 1
    order = np.argsort(values[::stride], kind="stable")
    values, importance = values[::stride][order], importance[::stride][order]
    zeros = pruned(values)
    count = 2**bits - int(zeros.any())
    values, importance = values[~zeros], importance[~zeros]
    table = np.array([part.mean() if part.size else 0.0 for part in np.array_split(values, count)])
    weighted = values * importance
    for _ in range(_ROUNDS):
        places = closest_entry(values, table)
        sums = np.bincount(places, weights=importance, minlength=count)
        found = np.bincount(places, weights=weighted, minlength=count)
        table = np.sort(np.divide(found, sums, out=table.copy(), where=sums > 0))
    return np.sort(np.append(table, 0.0)) if zeros.any() else table


def trained(weights: Floats, module: Array, grid: Grid, bits: int, *, as_table: bool) -> Stored | None:
    """The codes that training has fixed; None where the grid has too many levels or the weights do not lie on it.

    What was multiplied into the weights since then, a batch norm, is a factor of each channel: it goes into the scale.

    Args:
        weights: As the converted model has them, shape (channels, weights of each).
        module: As the torch program has them, with the same channels.
        grid: The grid of the module's weights.
        bits: How many bits a code may have.
        as_table: Whether codes choose from a table of the levels, or are whole numbers themselves.
    """
    import numpy as np

    own = np.moveaxis(np.asarray(module, np.float64), grid.axis, 0)
    own = own.reshape(own.shape[0], -1)
    levels = np.asarray(grid.levels, np.float64)
    if own.shape != weights.shape or len(levels) > 2**bits:
        return None
    norms = np.sqrt((own**2).sum(axis=1)), np.sqrt((weights**2).sum(axis=1))
    factor = np.divide(norms[1], norms[0], out=np.zeros_like(norms[0]), where=norms[0] > 0)
    scale = factor * np.asarray(grid.scale, np.float64)
    scale = np.where((own * weights).sum(axis=1) < 0, -scale, scale)
    steps = np.divide(weights, scale[:, None], out=np.zeros_like(weights), where=scale[:, None] != 0)
    codes = closest_entry(steps, levels)
    apart = np.abs(levels[codes] - steps) * (scale != 0)[:, None]
    if apart.max(initial=0.0) > _CLOSE:
        return None
    if as_table:
        return Stored(bits, codes, scale[:, None], levels, fixed=True)
    largest = 2 ** (bits - 1) - 1
    if (levels != np.round(levels)).any() or levels[0] < -largest - 1 or levels[-1] > largest:
        return None
    return Stored(bits, levels[codes].astype(np.int8), scale[:, None], fixed=True, largest=largest)
