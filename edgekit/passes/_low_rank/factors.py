"""One layer as a chain of smaller ones, and what the chain costs.

    svd       y = W x               →   y = U (V x)                                       rank r
    tucker2   conv k×k, in → out    →   1×1 in → s,  k×k s → r,  1×1 r → out              ranks r, s
    spatial   conv k×l, in → out    →   k×1 in → r,  1×l r → out                          rank r
    cp        conv k×l, in → out    →   1×1 in → r,  k×1 by channel,  1×l by channel,  1×1 r → out

Sources: SVD of layers: E. Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient
Evaluation", NeurIPS 2014. Tucker-2: Y.-D. Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low
Power Mobile Applications", ICLR 2016. Spatial: M. Jaderberg, A. Vedaldi and A. Zisserman, "Speeding up Convolutional
Neural Networks with Low Rank Expansions", BMVC 2014. CP: V. Lebedev et al., "Speeding-up Convolutional Neural Networks
Using Fine-tuned CP-Decomposition", ICLR 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA

Method = Literal["svd", "tucker2", "spatial", "cp"]

_WHY = "the pass low_rank"
_CP_SWEEPS = 60
_RANDOMIZED_EXTRA = 16
"""How many more columns than the rank a randomized SVD looks at, and how often it goes back and forth: N. Halko, P.-G.
Martinsson and J. Tropp, "Finding Structure with Randomness", SIAM Review 2011."""
_RANDOMIZED_SWEEPS = 4


@dataclass(frozen=True)
class Factorized:
    """How one layer is taken apart.

    Attributes:
        method: The factorization.
        ranks: `(r,)`, or `(r, s)` for tucker2: outputs and inputs of the middle convolution.
    """

    method: Method
    ranks: tuple[int, ...]


def torch_() -> Any:
    """torch, or the error that names the extra."""
    return require("torch", TORCH_EXTRA, _WHY)


def is_linear(layer: Any) -> bool:
    """Whether a layer is an `nn.Linear` and not a convolution."""
    return bool(isinstance(layer, torch_().nn.Linear))


def weights_of(layer: Any, how: Factorized) -> int:
    """How many weights the chain has, without biases."""
    out, given = int(layer.weight.shape[0]), int(layer.weight.shape[1])
    high, wide = kernel_of(layer)
    first = int(how.ranks[0])
    if how.method == "svd":
        return first * (out + given)
    if how.method == "tucker2":
        return how.ranks[1] * given + first * how.ranks[1] * high * wide + out * first
    if how.method == "spatial":
        return first * (given * high + out * wide)
    return first * (given + high + wide + out)


def macs_of(layer: Any, how: Factorized | None, places: tuple[int, int]) -> int:
    """Multiplications for one example.

    Args:
        layer: The layer.
        how: The factorization; None for the layer as it is.
        places: How many places the layer's input and its output have: height times width, or tokens.
    """
    out, given = int(layer.weight.shape[0]), int(layer.weight.shape[1])
    high, wide = kernel_of(layer)
    before, after = places
    if how is None:
        return out * given * high * wide * after
    first = int(how.ranks[0])
    # What stands before a stride works on the input's places, what stands after it on the output's.
    if how.method == "svd":
        return first * (given + out) * after
    if how.method == "tucker2":
        return how.ranks[1] * given * before + (first * how.ranks[1] * high * wide + out * first) * after
    if how.method == "spatial":
        # The first has the stride of one axis alone.
        between = math.isqrt(before * after)
        return first * given * high * between + first * out * wide * after
    return first * given * before + first * high * before + (first * wide + out * first) * after


def kernel_of(layer: Any) -> tuple[int, int]:
    """Height and width of a convolution's kernel; one by one for a linear layer."""
    return (1, 1) if is_linear(layer) else (int(layer.weight.shape[2]), int(layer.weight.shape[3]))


def chain(layer: Any, how: Factorized) -> Any:
    """The layers that stand for one, with weights that are not set yet: an `nn.Sequential`."""
    nn = torch_().nn
    out, given = int(layer.weight.shape[0]), int(layer.weight.shape[1])
    biased, first = layer.bias is not None, how.ranks[0]
    if is_linear(layer):
        return nn.Sequential(nn.Linear(given, first, bias=False), nn.Linear(first, out, bias=biased))

    def conv(before: int, after: int, **options: Any) -> Any:
        return nn.Conv2d(before, after, options.pop("kernel", 1), **({"bias": False} | options))

    whole = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    down, across = ({name: (value[0], idle) for name, value, idle in _axes(layer)}, {
        name: (idle, value[1]) for name, value, idle in _axes(layer)
    })  # fmt: skip
    high, wide = kernel_of(layer)
    if how.method == "svd":
        return nn.Sequential(conv(given, first, stride=layer.stride), conv(first, out, bias=biased))
    if how.method == "tucker2":
        second = how.ranks[1]
        middle = conv(second, first, kernel=(high, wide), **whole)
        return nn.Sequential(conv(given, second), middle, conv(first, out, bias=biased))
    if how.method == "spatial":
        return nn.Sequential(
            conv(given, first, kernel=(high, 1), **down), conv(first, out, kernel=(1, wide), bias=biased, **across)
        )
    return nn.Sequential(
        conv(given, first),
        conv(first, first, kernel=(high, 1), groups=first, **down),
        conv(first, first, kernel=(1, wide), groups=first, **across),
        conv(first, out, bias=biased),
    )


def _axes(layer: Any) -> tuple[tuple[str, Any, int], ...]:
    return (("stride", layer.stride, 1), ("padding", layer.padding, 0), ("dilation", layer.dilation, 1))


def fill(made: Any, layer: Any, how: Factorized) -> None:
    """Give a chain the weights that come closest to the layer's.

    Factors of a decomposition are views in another order of memory; converters have been seen to corrupt those without
    a word, so that each is copied into the parameter that is there.
    """
    torch = torch_()
    with torch.no_grad():
        factors = _FACTORS[how.method](layer.weight.detach().to(torch.float64), how.ranks)
        for part, factor in zip(made, factors, strict=True):
            part.weight.copy_(factor.reshape(part.weight.shape))
        if layer.bias is not None:
            made[-1].bias.copy_(layer.bias)


def truncated(matrix: Any, rank: int, randomized: bool = False) -> tuple[Any, Any, Any]:
    """The largest singular values of a matrix and their vectors: (rows, rank), (rank,), (rank, columns)."""
    torch = torch_()
    if randomized:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            columns = min(*matrix.shape, rank + _RANDOMIZED_EXTRA)
            left, values, right = torch.svd_lowrank(matrix, q=columns, niter=_RANDOMIZED_SWEEPS)
        return left[:, :rank], values[:rank], right[:, :rank].T
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


_LARGE = 1024


def _split(matrix: Any, rank: int) -> tuple[Any, Any]:
    """Two factors of a matrix, each with the square root of the singular values: equal sizes quantize alike."""
    large = min(matrix.shape) > _LARGE and rank * 4 < min(matrix.shape)
    left, values, right = truncated(matrix, rank, randomized=large)
    root = values.sqrt()
    return left * root, root[:, None] * right


def _svd(weight: Any, ranks: tuple[int, ...]) -> list[Any]:
    left, right = _split(weight.flatten(1), ranks[0])
    return [right, left]


def _spatial(weight: Any, ranks: tuple[int, ...]) -> list[Any]:
    out, given, high, wide = weight.shape
    # Rows: outputs and columns of the kernel; columns: inputs and rows of the kernel.
    left, right = _split(weight.permute(0, 3, 1, 2).reshape(out * wide, given * high), ranks[0])
    across = left.reshape(out, wide, ranks[0]).permute(0, 2, 1)
    return [right.reshape(ranks[0], given, high), across]


def _tucker2(weight: Any, ranks: tuple[int, ...]) -> list[Any]:
    tensorly = require("tensorly", "compression", _WHY)
    decomposition = require("tensorly.decomposition", "compression", _WHY)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, (left, right)), _ = decomposition.partial_tucker(weight, rank=list(ranks), modes=[0, 1], init="svd")
    return [right.T, core, left]


def _cp(weight: Any, ranks: tuple[int, ...]) -> list[Any]:
    tensorly = require("tensorly", "compression", _WHY)
    decomposition = require("tensorly.decomposition", "compression", _WHY)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        found = decomposition.parafac(
            weight, rank=ranks[0], init="svd", n_iter_max=_CP_SWEEPS, normalize_factors=True, random_state=0
        )
    # The size of each component is shared out over its four factors.
    left, right, down, across = (factor * found.weights ** (1 / 4) for factor in found.factors)
    return [right.T, down.T, across.T, left]


_FACTORS = {"svd": _svd, "spatial": _spatial, "tucker2": _tucker2, "cp": _cp}
