"""Weights that a pass has put on a grid, found again in a converted file and stored as the levels that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.layers import LinearLayer, linear_layers
from edgekit.backends._quantize.modules import ModuleWeights
from edgekit.core.grid import Grid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.core.task import Array

    Floats = NDArray[np.float64]

_OFF = 0.02
"""How far a weight may be from its level, as a share of the least step: a batch norm's rounding, not another grid."""
_SAME = 1e-5
_FEWEST = 4
"""Output channels from which on factors of the inputs can be told: one channel has them for any weights."""
_LIMITS = {8: (-128, 127), 4: (-8, 7)}


@dataclass(frozen=True)
class StoredGrid:
    """The weights of one operator as levels, in its own shape and order of channels.

    Attributes:
        bits: How many bits choose a level.
        levels: The levels, ascending.
        codes: The place of each weight's level, uint8, in the shape of the weights.
        scale: One factor for each output channel; a batch norm multiplied into the weights is in it, with its sign.
            With blocks, shape (channels, blocks).
        axis: The axis that counts output channels.
    """

    bits: int
    levels: tuple[float, ...]
    codes: Array
    scale: Floats
    axis: int

    @property
    def scaled_shape(self) -> tuple[int, ...]:
        """The shape of the weights in which `along` multiplies them: with blocks (channels, blocks, weights of one)."""
        return (*self.scale.shape, -1) if self.scale.ndim > 1 else self.codes.shape

    def along(self) -> Array:
        """The scale as it multiplies the weights in `scaled_shape`, float32."""
        import numpy as np

        scale = np.asarray(self.scale, np.float32)
        if scale.ndim > 1:
            return scale[..., None]
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return scale.reshape(shape)

    def values(self) -> Array:
        """The weights, float32, to the last bit as the runtime computes them."""
        import numpy as np

        levels = np.asarray(self.levels, np.float32)[self.codes]
        return np.asarray((levels.reshape(self.scaled_shape) * self.along()).reshape(self.codes.shape))

    def integers(self, bits: int) -> tuple[Array, Floats] | None:
        """Whole numbers of that many bits and their positive scales; None where the levels are none.

        Halves (-1.5, -0.5, …) are whole numbers of half the scale.
        """
        import numpy as np

        levels, scale = np.asarray(self.levels, np.float64), np.abs(self.scale)
        if not np.array_equal(levels, np.round(levels)):
            levels, scale = levels * 2, scale / 2
        signs = np.where(np.signbit(self.along()), -1.0, 1.0)
        stored = np.asarray(levels[self.codes] * signs, np.float64)
        low, high = _LIMITS[bits]
        if not np.array_equal(levels, np.round(levels)) or float(stored.min()) < low or float(stored.max()) > high:
            return None
        return stored.astype(np.int8), scale


def on_grid(weights: Floats, axis: int, module: ModuleWeights, grid: Grid) -> StoredGrid | None:
    """The levels that a converted operator's weights stand on; None where they do not stand on the module's grid.

    Converters multiply a batch norm into each channel: its factor is told by the size of the channel, which its levels
    fix, and its sign by which of the two fits.

    Args:
        weights: The operator's, as real numbers.
        axis: The axis that counts its output channels.
        module: The module that they come from.
        grid: The module's grid.
    """
    import numpy as np

    rows = _rows(weights, axis)
    levels, own = np.asarray(grid.levels, np.float64), np.asarray(grid.scale, np.float64)
    if len(own) != len(rows):
        return None
    sizes = np.linalg.norm(_rows(module.weight, grid.axis), axis=1) / own
    measured = np.linalg.norm(rows, axis=1)
    filled = (sizes > 0) & (measured > 0)
    scale = np.where(filled, measured / np.where(filled, sizes, 1.0), own)
    fits = [_nearest(rows, scale * sign, levels) for sign in (1.0, -1.0)]
    signs = np.where(fits[0][1] <= fits[1][1] + _OFF, 1.0, -1.0)
    codes = np.where(signs[:, None] > 0, fits[0][0], fits[1][0])
    off = np.where(signs > 0, fits[0][1], fits[1][1])
    # A channel of zeros is on no grid without a zero: its scale must be zero.
    if np.any((off > _OFF) & (measured > 0)):
        return None
    found = levels[codes]
    power = (found**2).sum(axis=1)
    refined = np.where(power > 0, (rows * found).sum(axis=1) / np.where(power > 0, power, 1.0), own)
    exact = np.where(np.abs(refined / own - 1) < _SAME, own, refined)
    shape = np.moveaxis(weights, axis, 0).shape
    return StoredGrid(grid.bits, grid.levels, np.moveaxis(codes.reshape(shape), 0, axis).astype(np.uint8), exact, axis)


def _rows(weights: Array, axis: int) -> Floats:
    import numpy as np

    return np.moveaxis(np.asarray(weights, np.float64), axis, 0).reshape(weights.shape[axis], -1)


def _nearest(rows: Floats, scale: Floats, levels: Floats) -> tuple[Array, Floats]:
    """The place of the level nearest to each weight, and how far the worst of each row is off, in least steps."""
    import numpy as np

    real = rows / scale[:, None]
    places = np.searchsorted((levels[1:] + levels[:-1]) / 2, real)
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    return places, np.abs(real - levels[places]).max(axis=1, initial=0.0) / step


def take_out_factors(model: Any, modules: Sequence[ModuleWeights]) -> bool:
    """Give matrix products their modules' own weights, and multiply their data instead; in place.

    The converter multiplies a layer norm's factors into the weights that follow, column by column, and no grid is left.

    Args:
        model: A float file's model.
        modules: The modules whose weights are on a grid.

    Returns:
        Whether there was anything to do.
    """
    mains = sorted({int(signature.subgraphIndex) for signature in model.signatureDefs})
    changed = [_taken_out(model, model.subgraphs[place], modules) for place in mains]
    return any(changed)


def _taken_out(model: Any, subgraph: Any, modules: Sequence[ModuleWeights]) -> bool:
    graph = flatbuffer.Graph(model, subgraph)
    layers = dict(linear_layers(model, subgraph))
    made: list[tuple[int, Floats, int]] = []
    for place, operator in enumerate(subgraph.operators):
        found = _with_factors(layers[place], modules, graph) if place in layers else None
        if found is not None:
            module, factors = found
            layers[place].put_floats(module.weight)
            operator.inputs = [_multiplied(graph, layers[place], factors, made), *map(int, operator.inputs[1:])]
        graph.operators.append(operator)
    subgraph.operators = graph.operators
    return bool(made)


def _with_factors(
    layer: LinearLayer, modules: Sequence[ModuleWeights], graph: flatbuffer.Graph
) -> tuple[ModuleWeights, Floats] | None:
    """The module whose weights a matrix product has, and the factors of its inputs; None where it has none."""
    if layer.kind != "FULLY_CONNECTED" or not layer.has_weights or layer.channels < _FEWEST:
        return None
    weights = layer.weights()
    if graph.shape(layer.data)[-1:] != weights.shape[1:]:
        return None
    for module in modules:
        if module.weight.shape == weights.shape and (factors := _factors(weights, module.weight)) is not None:
            return None if bool((abs(factors - 1) < _SAME).all()) else (module, factors)
    return None


def _factors(weights: Floats, own: Array) -> Floats | None:
    """What each column of a module's own weights was multiplied by; None where that is not what was done to them."""
    import numpy as np

    known = np.asarray(own, np.float64)
    power = (known**2).sum(axis=0)
    factors = np.where(power > 0, (weights * known).sum(axis=0) / np.where(power > 0, power, 1.0), 1.0)
    return factors if float(np.abs(known * factors - weights).max()) <= _SAME * float(np.abs(weights).max()) else None


def _multiplied(
    graph: flatbuffer.Graph, layer: LinearLayer, factors: Floats, made: list[tuple[int, Floats, int]]
) -> int:
    """A layer's data times factors; those that another layer takes as well are multiplied once."""
    import numpy as np

    for data, known, found in made:
        if data == layer.data and np.allclose(known, factors, rtol=_SAME, atol=_SAME):
            return found
    # The quantizer leaves alone what has the prefix of added tensors.
    found = graph.tensor(graph.shape(layer.data), name=f"{layer.data_name}/factors/{len(made)}")
    scale = graph.constant(factors.astype(np.float32), f"{layer.data_name}/factor/{len(made)}")
    graph.op("MUL", [layer.data, scale], [found], flatbuffer.schema().MulOptionsT())
    made.append((layer.data, factors, found))
    return found
