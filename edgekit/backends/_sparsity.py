"""Arrays that are mostly one value: that value, the others, and where they stand.

    mask: one bit an element                    smaller where more than one element in eight is another value
    gaps: one byte for each of the others       smaller where fewer are: 1 / (8 · share of others)

What pruning left is zeros; of weights packed several in a byte it is the byte that stands for zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.core.task import Array

LEAST = 0.5
"""The least share of one value in an array that is worth it: with fewer, a mask costs most of what it saves."""
NO_ZEROS = f"sparse: no weight has enough zeros: at least {LEAST:.0%} of a weight large enough that a mask pays"
"""What is said where it was asked for and there was nothing to do."""
_FARTHEST = 255


@dataclass(frozen=True)
class Sparse:
    """An array in pieces.

    Attributes:
        shape: Its shape.
        fill: The value that most elements have, as a scalar of the array's type.
        places: Where the others stand in the flat array, ascending.
        values: The others.
    """

    shape: tuple[int, ...]
    fill: Any
    places: Array
    values: Array

    @property
    def size(self) -> int:
        """How many elements the array has."""
        return math.prod(self.shape)

    def mask(self) -> Array:
        """One bit an element, flat, the highest of a byte first: set where another value stands."""
        import numpy as np

        found = np.zeros(self.size, bool)
        found[self.places] = True
        return np.packbits(found)

    def gaps(self) -> tuple[Array, Array]:
        """The distance from one place to the next in a byte each, and the value at each.

        A distance too long for a byte is gone in steps, on each of which the fill value stands.
        """
        import numpy as np

        distances = np.diff(self.places, prepend=0)
        steps = np.maximum(distances - 1, 0) // _FARTHEST
        ends = np.cumsum(steps + 1) - 1
        gaps = np.full(int(ends[-1]) + 1 if len(ends) else 0, _FARTHEST, np.uint8)
        values = np.full(len(gaps), self.fill, self.values.dtype)
        gaps[ends] = distances - steps * _FARTHEST
        values[ends] = self.values
        return gaps, values


def sparse(values: Array) -> Sparse | None:
    """An array in pieces; None where no value has the least share of it.

    Args:
        values: Floats, of which zeros count, or integers of 8 bits, of which the most frequent one counts. A negative
            zero counts as zero and comes back as one.
    """
    import numpy as np

    flat = values.ravel()
    if not flat.size or (flat.dtype.kind != "f" and flat.dtype.itemsize != 1):
        return None
    fill = flat.dtype.type(0)
    if flat.dtype.kind != "f":
        fill = np.array([np.bincount(flat.view(np.uint8)).argmax()], np.uint8).view(flat.dtype)[0]
    places = np.flatnonzero(flat != fill)
    if not len(places):
        # No operator has to take an empty tensor.
        places = np.zeros(1, places.dtype)
    if len(places) > (1 - LEAST) * flat.size:
        return None
    return Sparse(values.shape, fill, places, flat[places])


def said(what: str, before: int, after: int) -> str:
    """The sentence of what was saved.

    Args:
        what: How many weights, and how they are stored.
        before: Their bytes as dense ones.
        after: Their bytes now.
    """
    return f"{what}: {after / 1000:.1f} kB instead of {before / 1000:.1f} kB"
