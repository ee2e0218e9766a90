"""The weights of an ML Program: which constants they are, of which torch module, and which scheme each shall have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil.program import Block, Operation, Reference
from edgekit.backends._quantize.modules import ModuleWeights, schemes_by_module

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

_AXES: Mapping[tuple[str, str], int] = {
    ("conv", "weight"): 0,
    ("conv_transpose", "weight"): 1,
    ("linear", "weight"): 0,
    ("gather", "x"): 0,
    **{
        (kind, f"weight_{part}{side}"): 0
        for kind in ("lstm", "gru", "rnn")
        for part in ("ih", "hh")
        for side in ("", "_back")
    },
}
"""The axis of output channels, by operator and parameter."""

PRODUCTS = ("conv", "linear")
"""Operators that Core ML can compute with integers."""
SMALL = 2048
"""Weights with at most so many elements stay as they are unless they are named: coremltools' own threshold."""
_COARSE = ("weight_only_wi4_afp32", "palette_4")
_SPARED_SHARE = 0.1
_CLOSE = 2e-3
"""How far two channels' weights may be apart, as a share of the largest: rounding to float16, not another layer."""
_RECURRENT_ORDERS: Mapping[str, tuple[int, ...]] = {"lstm": (0, 1, 3, 2), "gru": (0, 2, 1)}
"""Where Core ML has torch's gates: `recurrent_lowering` puts them there."""


@dataclass(frozen=True)
class Weight:
    """One constant that an operator multiplies or looks up.

    Attributes:
        name: The constant.
        value: Its value, float16 or float32.
        axis: The axis that counts output channels.
        kind: The operator that reads it first.
        path: The torch module that it comes from; None where no module has such weights.
        factors: What each output channel was multiplied by since, shape (channels,); ones where nothing was.
    """

    name: str
    value: Array
    axis: int
    kind: str
    path: str | None
    factors: Floats

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution's with few weights for each channel."""
        return self.kind == "conv" and self.value.shape[1] == 1


def weights_of(block: Block, modules: Sequence[ModuleWeights]) -> list[Weight]:
    """The weights of a block and of those in it, in the order in which they are read, each once."""
    constants: dict[str, Any] = {}
    found: dict[str, Weight] = {}
    for operation in _walk(block):
        if operation.kind == "const":
            constants[operation.outputs[0].name] = operation.attributes["val"]
        for parameter, name in _read(operation):
            axis = _axis(operation, parameter, name, constants)
            if axis is None or name in found:
                continue
            path, factors = _origin(constants[name], axis, operation.kind, modules)
            found[name] = Weight(name, constants[name], axis, operation.kind, path, factors)
    return list(found.values())


def _walk(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _walk(inner)


def _read(operation: Operation) -> Iterator[tuple[str, str]]:
    for parameter, arguments in operation.inputs.items():
        if len(arguments) == 1 and isinstance(arguments[0], Reference):
            yield parameter, arguments[0].name


def _axis(operation: Operation, parameter: str, name: str, constants: Mapping[str, Any]) -> int | None:
    """The axis of output channels of a constant, or None where it is no weight."""
    value = constants.get(name)
    if getattr(value, "ndim", 0) < 2 or value is None or value.dtype.kind != "f":
        return None
    if operation.kind != "matmul" or parameter not in ("x", "y"):
        return _AXES.get((operation.kind, parameter))
    given = operation.inputs.get(f"transpose_{parameter}", (False,))[0]
    turned = bool(constants.get(given.name) if isinstance(given, Reference) else given)
    # The last axis of y counts outputs, and the last but one of x, unless they are transposed first.
    last = (parameter == "y") != turned
    return int(value.ndim) - (1 if last else 2)


def _origin(value: Array, axis: int, kind: str, modules: Sequence[ModuleWeights]) -> tuple[str | None, Floats]:
    """The module whose weights these are, but for one factor a channel, and the factors."""
    import numpy as np

    rows = np.moveaxis(np.asarray(value, np.float64), axis, 0)
    best, distance, factors = None, _CLOSE, np.ones(rows.shape[0])
    for module in modules:
        own = np.moveaxis(np.asarray(module.weight, np.float64), module.axis, 0)
        if own.size != rows.size or own.shape[0] != rows.shape[0]:
            continue
        for candidate in _orders(own, kind):
            apart, scale = _distance(rows.reshape(len(rows), -1), candidate.reshape(len(rows), -1))
            if apart < distance:
                best, distance, factors = module.path, apart, scale
    # Rounding to float16 alone is no factor.
    return best, np.where(np.abs(factors - 1) < _CLOSE / 4, 1.0, factors)


def _orders(own: Floats, kind: str) -> Iterator[Floats]:
    import numpy as np

    yield own
    order = _RECURRENT_ORDERS.get(kind)
    if order is not None and len(own) % len(order) == 0:
        pieces = np.split(own, len(order))
        yield np.concatenate([pieces[gate] for gate in order])


def _distance(rows: Floats, own: Floats) -> tuple[float, Floats]:
    """How far rows are from multiples of others, as a share of the largest value; and the multiples."""
    import numpy as np

    norms = (own * own).sum(axis=1)
    factors = np.where(norms > 0, (rows * own).sum(axis=1) / np.where(norms > 0, norms, 1.0), 1.0)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    # Channels that training switched off are nothing in float16.
    apart = np.abs(rows - factors[:, None] * own) / np.maximum(largest, 1e-3 * max(float(largest.max()), 1e-30))
    return float(apart.max(initial=0.0)), factors


def named_paths(modules: Sequence[ModuleWeights], overrides: Mapping[str, str], on_grid: Collection[str]) -> set[str]:
    """Paths of the modules that overrides name or that have a grid.

    Raises:
        ConfigError: An override fits no module.
    """
    paths = [module.path for module in modules]
    fits = schemes_by_module(paths, dict.fromkeys(overrides, "named"), "")
    return {path for path in paths if fits[path]}.union(on_grid)


def schemes(
    weights: Sequence[Weight],
    modules: Sequence[ModuleWeights],
    overrides: Mapping[str, str],
    default: str,
    named: Collection[str],
) -> dict[str, str]:
    """The scheme of each weight by its name; `float32` for what stays as it is.

    Small weights stay as they are unless an override names their layer, or a grid was trained for it.

    Args:
        weights: The weights.
        modules: The program's modules.
        overrides: Schemes by module path.
        default: The scheme of a module that no override fits.
        named: Paths of the modules that overrides name or that have a grid.

    Raises:
        ConfigError: An override fits no module.
    """
    paths = [module.path for module in modules]
    by_path = schemes_by_module(paths, overrides, default)
    found = {}
    for weight in weights:
        scheme = by_path.get(weight.path, default) if weight.path else default
        # What integer arithmetic shall multiply has to be an integer, however small.
        multiplied = scheme == "static_wi8_ai8" and weight.kind in PRODUCTS
        small = weight.value.size <= SMALL and not multiplied and weight.path not in named
        found[weight.name] = "float32" if small or scheme == "float16" else scheme
    return found


def spared(weights: Sequence[Weight], schemes: Mapping[str, str], default: str, named: Collection[str]) -> list[str]:
    """Names of weights that keep 8 bits where the others get 4: they cost little space and much accuracy.

    Depthwise convolutions, then the smallest layers, together at most a tenth of all weights; never one that an
    override names or that lies on a grid.

    Args:
        weights: The weights.
        schemes: Their schemes by name.
        default: The scheme of layers that nothing names.
        named: Paths of the modules that overrides name or that have a grid.
    """
    if default not in _COARSE:
        return []
    free = [weight for weight in weights if schemes[weight.name] == default and weight.path not in named]
    left = _SPARED_SHARE * sum(weight.value.size for weight in weights if schemes[weight.name] != "float32")
    found = []
    for weight in sorted(free, key=lambda one: (not one.is_depthwise, one.value.size)):
        left -= weight.value.size
        if left < 0:
            break
        found.append(weight.name)
    return found
