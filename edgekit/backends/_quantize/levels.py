"""Weights as codes: which of a few levels, times a scale of the output channel or of a block of its weights.

Even levels (-7 … 7) are what integers store. Palettes have levels of their own, found by k-means over all weights of a
layer, each channel brought to the same size first: S. Han, H. Mao and W. J. Dally, "Deep Compression", ICLR 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._quantize.rounding import pruned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.grid import Grid

    Codes = NDArray[np.int64]

_DAMPING = 0.1
"""As in `rounding`: a hundredth fitted the few photos of a small calibration set."""
_ROUNDS = 24
_SAMPLED = 1 << 15
_NARROWEST, _TRIED = 0.4, 25
_TINY = 1e-30
_SAME = 1e-4
"""How far a weight may be from the grid that it was trained on, as a share of its channel's largest."""
_HALF_LEAST, _HALF_MOST = 2.0**-14, 65504.0


@dataclass(frozen=True)
class Codebook:
    """What the weights of one layer can be.

    Attributes:
        levels: Ascending.
        scale: One factor for each channel and block, shape (out, blocks).
        block: How many weights of a channel share a factor.
    """

    levels: Floats
    scale: Floats
    block: int

    @property
    def bits(self) -> int:
        """How many bits choose a level: 1, 2, 4 or 8."""
        return next(bits for bits in (1, 2, 4, 8) if len(self.levels) <= 1 << bits)

    def codes(self, rows: Floats) -> Codes:
        """The nearest level of each weight, shape (out, in)."""
        return self._nearest(rows, self._columns(rows.shape[1]))

    def code(self, values: NDArray[Any], place: int) -> Codes:
        """The nearest level of the weight at one place of each channel, shape (out,)."""
        return self._nearest(values, self.scale[:, place // self.block])

    def values(self, codes: Codes) -> Floats:
        """The weights that codes of shape (out, in) stand for."""
        return self.levels[codes] * self._columns(codes.shape[1])

    def _columns(self, count: int) -> Floats:
        import numpy as np

        return np.repeat(self.scale, self.block, axis=1)[:, :count]

    def _nearest(self, values: NDArray[Any], scale: Floats) -> Codes:
        import numpy as np

        first, steps = self.levels[0], len(self.levels) - 1
        if self.levels[-1] - first == steps:
            return np.asarray(np.clip(np.round(values / scale) - first, 0, steps), np.int64)
        return np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, values / scale)


def even(rows: Floats, largest: int, block: int | None = None, *, clip: bool = False) -> Codebook:
    """Levels -largest … largest.

    Args:
        rows: The weights, shape (out, in).
        largest: The largest level.
        block: How many weights share a scale; all of a channel where None.
        clip: Whether the scale is the one with the least squared error; else it covers the largest weight.
    """
    import numpy as np

    count = rows.shape[1]
    block = min(block or count, count)
    blocks = -(-count // block)
    padded = np.zeros((len(rows), blocks * block))
    padded[:, :count] = rows
    split = padded.reshape(len(rows), blocks, block)
    widest = half(np.maximum(np.abs(split).max(axis=2), _TINY) / largest)
    scale = widest
    if clip:
        least = np.full(widest.shape, np.inf)
        for factor in np.linspace(_NARROWEST, 1.0, _TRIED):
            tried = half(widest * factor)
            steps = np.clip(np.round(split / tried[..., None]), -largest, largest) * tried[..., None]
            error = ((steps - split) ** 2).sum(axis=2)
            scale = np.where(error <= least, tried, scale)
            least = np.minimum(error, least)
    return Codebook(np.arange(-largest, largest + 1, dtype=np.float64), scale, block)


def palette(rows: Floats, bits: int) -> Codebook:
    """2**bits levels for all of a layer, and a scale for each channel, by k-means; of pruned weights one level is zero."""
    import numpy as np

    scale = half(np.sqrt(np.maximum((rows**2).mean(axis=1, keepdims=True), _TINY)))
    stride = max(1, rows.size // _SAMPLED) | 1
    values = (rows / scale).ravel()[::stride]
    weights = np.broadcast_to(scale**2, rows.shape).ravel()[::stride]
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    zeros = pruned(values) if bits > 1 else np.zeros(values.shape, bool)
    count = (1 << bits) - int(zeros.any())
    values, weights = values[~zeros], weights[~zeros]
    levels = np.quantile(values, (np.arange(count) + 0.5) / count) if values.size else np.zeros(count)
    for _ in range(_ROUNDS):
        places = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
        total = np.bincount(places, weights, minlength=len(levels))
        sums = np.bincount(places, weights * values, minlength=len(levels))
        levels = np.sort(np.where(total > 0, sums / np.maximum(total, _TINY), levels))
    found = Codebook(half(np.sort(np.append(levels, 0.0)) if zeros.any() else levels), scale, rows.shape[1])
    chosen = found.levels[found.codes(rows)]
    fitted = (rows * chosen).sum(axis=1, keepdims=True) / np.maximum((chosen**2).sum(axis=1, keepdims=True), _TINY)
    return Codebook(found.levels, half(np.where(fitted > 0, fitted, scale)), rows.shape[1])


def trained(rows: Floats, own: Floats, grid: Grid) -> tuple[Codebook, Codes] | None:
    """The grid on which weights were trained, with the factor by which the conversion has multiplied each channel.

    Args:
        rows: The converted weights, shape (out, in).
        own: The module's weights in the same order.
        grid: The module's grid.

    Returns:
        The levels with the converted scale, and the codes; None where the converted weights lie on no such grid.
    """
    import numpy as np

    if rows.shape != own.shape or len(grid.scale) not in (1, len(own)):
        return None
    step = np.broadcast_to(np.asarray(grid.scale, np.float64).reshape(-1, 1), (len(own), 1))
    levels = np.asarray(grid.levels, np.float64)
    codes = Codebook(levels, np.where(step == 0, _TINY, step), own.shape[1]).codes(own)
    chosen = levels[codes]
    size = (chosen**2).sum(axis=1, keepdims=True)
    scale = np.where(size > 0, (rows * chosen).sum(axis=1, keepdims=True) / np.maximum(size, _TINY), step)
    apart = np.abs(rows - chosen * scale).max(axis=1)
    if np.any(apart > _SAME * np.maximum(np.abs(rows).max(axis=1), _TINY)):
        return None
    return Codebook(levels, scale.astype(np.float32).astype(np.float64), rows.shape[1]), codes


def half(values: Floats) -> Floats:
    """The values as float16 holds them, where it holds all of them to full precision; else as float32 does."""
    import numpy as np

    size = np.abs(values[values != 0])
    fits = size.size == 0 or (size.min() >= _HALF_LEAST and size.max() <= _HALF_MOST)
    return values.astype(np.float16 if fits else np.float32).astype(np.float64)


def rounded_codes(rows: Floats, book: Codebook, second_moment: Floats) -> Codes:
    """Codes by which the layer's results move least: GPTQ, as in `rounding`, for any levels and blocks.

    Args:
        rows: The weights, shape (out, in).
        book: What they can be.
        second_moment: The mean of the products of every two of the layer's data, shape (in, in).
    """
    import numpy as np

    count = rows.shape[1]
    order = np.argsort(-np.diag(second_moment), kind="stable")
    mean = float(np.mean(np.diag(second_moment))) or 1.0
    # Of size one, and far from singular with that damping: float32 is exact enough, and twice as fast.
    damped = (second_moment[np.ix_(order, order)] / mean + np.eye(count) * _DAMPING).astype(np.float32)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = rows[:, order].astype(np.float32)
    zeros = pruned(left)
    codes = np.zeros(left.shape, np.int64)
    step = 64
    for start in range(0, count, step):
        end = min(start + step, count)
        errors = np.zeros((len(left), end - start), np.float32)
        for place in range(start, end):
            scale = book.scale[:, order[place] // book.block]
            codes[:, place] = book.code(np.where(zeros[:, place], 0.0, left[:, place]), int(order[place]))
            error = (left[:, place] - book.levels[codes[:, place]] * scale) / factor[place, place]
            left[:, place:end] -= np.outer(error, factor[place, place:end])
            errors[:, place - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    found = np.empty_like(codes)
    found[:, order] = codes
    return found
