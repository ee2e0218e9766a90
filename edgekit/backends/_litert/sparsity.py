"""Sparse tensors of the TFLite schema: which weights are stored, and where they stand.

The axes of a tensor are gone through in an order of their own, after them those of the blocks, where zeros come in
blocks. All axes are dense but one, which lists for each place before it what is not zero there (compressed sparse
rows)::

    0 7 0 0                                        values    7 5 8 6
    5 0 0 8   axis 0 dense, axis 1 sparse   ──▶    segments  0 1 3 3 4     (row r has the values segments[r] … [r+1])
    0 0 0 0                                        indices   1 0 3 2
    0 0 6 0

Which axis is the sparse one, and in which blocks, is free where weights are only unpacked: the one that takes the
fewest bytes. Numbers take 1, 2 or 4 bytes each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer

if TYPE_CHECKING:
    from edgekit.core.task import Array

_BLOCKS = (1, 2, 4, 8, 16)
_TABLES = 160
"""Bytes of the tables around a sparse tensor's numbers, about."""


@dataclass(frozen=True)
class Layout:
    """How a tensor's zeros are left out.

    Attributes:
        sparse: The axis of which what is zero is left out; the others are dense.
        blocks: By axis, how many neighbours along it are stored together, zero or not; axes with one are not named.
    """

    sparse: int
    blocks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sparse:
    """A tensor without its zeros.

    Attributes:
        values: What is stored, in order: shape (blocks, weights of a block).
        segments: Where the values of each place begin in `indices`, and where the last ones end.
        indices: Places along the sparse axis.
        layout: Which axis that is, and the blocks.
        shape: The tensor's own shape.
    """

    values: Array
    segments: Array
    indices: Array
    layout: Layout
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, about."""
        return int(self.values.nbytes + self.segments.nbytes + self.indices.nbytes + _TABLES)

    def table(self) -> Any:
        """The schema's `SparsityParametersT`."""
        import numpy as np

        tflite = flatbuffer.schema()
        blocks, rank = dict(self.layout.blocks), len(self.shape)
        order = _order(rank, self.layout)
        found = tflite.SparsityParametersT()
        found.traversalOrder = np.array([*order, *range(rank, rank + len(blocks))], np.int32)
        found.blockMap = np.array(list(blocks), np.int32) if blocks else None
        sizes = [self.shape[axis] // blocks.get(axis, 1) for axis in order[:-1]]
        found.dimMetadata = [_dense(size) for size in sizes]
        found.dimMetadata.append(self._sparse())
        found.dimMetadata += [_dense(size) for size in blocks.values()]
        return found

    def _sparse(self) -> Any:
        tflite = flatbuffer.schema()
        found = tflite.DimensionMetadataT()
        found.format = tflite.DimensionType.SPARSE_CSR
        found.arraySegmentsType, found.arraySegments = _vector(self.segments)
        found.arrayIndicesType, found.arrayIndices = _vector(self.indices)
        return found


def encode(weights: Array, layout: Layout) -> Sparse:
    """A tensor without its zeros.

    Args:
        weights: Of any type and shape; blocks divide it.
        layout: How.
    """
    import numpy as np

    rank, sizes = weights.ndim, dict(layout.blocks)
    order = _order(rank, layout)
    axes = (
        [2 * axis for axis in order]
        + [2 * axis + 1 for axis in sizes]
        + [2 * axis + 1 for axis in range(rank) if axis not in sizes]
    )
    moved = weights.reshape(_split(weights.shape, sizes)).transpose(axes)
    rows = moved.reshape(-1, moved.shape[rank - 1], math.prod(sizes.values()))
    kept = (rows != 0).any(axis=2)
    if not kept.any():
        # A constant without bytes would be no constant to the runtime.
        kept[0, 0] = True
    segments = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return Sparse(
        np.ascontiguousarray(rows[kept]),
        _narrowed(segments),
        _narrowed(np.nonzero(kept)[1]),
        layout,
        tuple(map(int, weights.shape)),
    )


def smallest(weights: Array) -> Sparse | None:
    """The layout that takes the fewest bytes; None where none takes fewer than the tensor itself."""
    sizes = {layout: size for blocks in _blocks(weights.shape) for layout, size in _sizes(weights, blocks)}
    best = min(sizes, key=lambda layout: sizes[layout])
    return encode(weights, best) if sizes[best] < weights.nbytes else None


def block_rows(weights: Array, size: int) -> Sparse | None:
    """A matrix in blocks of so many neighbours of a row, as the kernels of fully connected layers read it.

    None where the blocks do not divide it, or each of its rows is one block.
    """
    if weights.ndim != 2 or weights.shape[1] % size or weights.shape[1] <= size:
        return None
    return encode(weights, Layout(1, ((1, size),)))


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], ...]]:
    """No blocks, and those of neighbours along the first axis, the last, or both."""
    last = len(shape) - 1
    for first_size, last_size in itertools.product(_BLOCKS, _BLOCKS if last else (1,)):
        if shape[0] % first_size == 0 and shape[last] % last_size == 0:
            yield tuple((axis, size) for axis, size in ((0, first_size), (last, last_size)) if size > 1)


def _sizes(weights: Array, blocks: tuple[tuple[int, int], ...]) -> Iterator[tuple[Layout, int]]:
    """Layouts with these blocks, with each axis as the sparse one, and their bytes without making them."""
    import numpy as np

    sizes = dict(blocks)
    split = _split(weights.shape, sizes)
    kept = max(int(np.count_nonzero((weights.reshape(split) != 0).any(axis=tuple(range(1, len(split), 2))))), 1)
    for axis, size in enumerate(weights.shape):
        along = size // sizes.get(axis, 1)
        rows = weights.size // math.prod(sizes.values()) // along
        values = kept * math.prod(sizes.values()) * weights.itemsize
        yield Layout(axis, blocks), values + kept * _width(along - 1) + (rows + 1) * _width(kept) + _TABLES


def _split(shape: tuple[int, ...], sizes: Mapping[int, int]) -> list[int]:
    """Each axis as two: its blocks, and the places in one."""
    return [part for axis, size in enumerate(shape) for part in (size // sizes.get(axis, 1), sizes.get(axis, 1))]


def _order(rank: int, layout: Layout) -> list[int]:
    return [axis for axis in range(rank) if axis != layout.sparse] + [layout.sparse]


def _width(largest: int) -> int:
    return 1 if largest < 2**8 else 2 if largest < 2**16 else 4


def _narrowed(numbers: Array) -> Array:
    import numpy as np

    largest = int(numbers.max(initial=0))
    return numbers.astype({1: np.uint8, 2: np.uint16, 4: np.int32}[_width(largest)])


def _dense(size: int) -> Any:
    tflite = flatbuffer.schema()
    found = tflite.DimensionMetadataT()
    found.format, found.denseSize = tflite.DimensionType.DENSE, int(size)
    return found


def _vector(numbers: Array) -> tuple[int, Any]:
    """The union's kind, and its table."""
    tflite = flatbuffer.schema()
    name = {1: "Uint8Vector", 2: "Uint16Vector", 4: "Int32Vector"}[numbers.itemsize]
    table = getattr(tflite, f"{name}T")()
    table.values = numbers
    return int(getattr(tflite.SparseIndexVector, name)), table
