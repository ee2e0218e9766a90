"""Weights that a pass has put on a grid: what quantization-aware training and learned rounding hand to a backend.

The module's weights hold the grid's values already, so that whatever runs it computes what was trained. A backend that
stores integers needs the grid itself as well: it cannot be read off the values, whose largest need not be the grid's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.core.model import PassRecord

GRIDS = "grids"
"""Where a pass leaves its grids in `PassResult.structure`."""
RANGES = "ranges"
"""Where a pass leaves the ranges of activations that it trained with."""


@dataclass(frozen=True)
class Grid:
    """The values that the weights of one layer take: `scale[channel] * level`.

    Attributes:
        bits: How many bits choose a level.
        levels: The levels, ascending, at most 2**bits of them: integers such as -7 … 7, or -1 and 1 for one bit.
        scale: One factor for each output channel.
        axis: The axis of the weight that counts output channels.
    """

    bits: int
    levels: tuple[float, ...]
    scale: tuple[float, ...]
    axis: int = 0


@dataclass(frozen=True)
class Trained:
    """What passes have fixed for a backend, by torch module path.

    Attributes:
        grids: The grid of each layer's `weight`.
        ranges: The least and largest value of a layer's first input and of its result, as `input` and `output`.
    """

    grids: Mapping[str, Grid] = field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)


def structure_of(trained: Trained) -> dict[str, Any]:
    """As a pass leaves it in `PassResult.structure`."""
    from edgekit.core import schema

    return {GRIDS: schema.to_plain(trained.grids), RANGES: schema.to_plain(trained.ranges)}


def trained_in(history: Sequence[PassRecord]) -> Trained:
    """What the passes of a model's history have fixed; a later pass that trains undoes what an earlier one fixed.

    A pass that leaves `grids` replaces those before it; one that changes the model without leaving any (pruning,
    training) drops them, for its weights lie on no grid.
    """
    found = Trained()
    for record in history:
        if GRIDS in record.structure:
            found = Trained(
                _read(dict[str, Grid], record, GRIDS),
                _read(dict[str, dict[str, tuple[float, float]]], record, RANGES),
            )
        elif record.modified:
            found = Trained()
    return found


def _read(kind: type[Any], record: PassRecord, part: str) -> Any:
    from edgekit.core import schema

    return schema.convert(kind, schema.Document(record.structure.get(part, {}), f"the record of '{record.name}'"))
