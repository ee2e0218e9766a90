"""Matching: which tensors of a converted model are which layers of its source, told by their values alone.

Names do not survive a conversion, and layouts, reshapes and fused operators change what is there to be found. Values
survive: a layer is in the artifact where a tensor of the same number of elements equals it, up to the order of the axes.
Everything here is pure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.core.task import Array

EQUAL_DB = 999.0
_MAX_AXES = 5
_SAMPLES = 2048
_WRONG_DB = 3.0
_ROUNDING_DB = 200.0


@dataclass(frozen=True)
class Fit:
    """How well a tensor is a layer.

    Attributes:
        tensor: The tensor's name.
        snr_db: Signal-to-noise ratio, the layer being the signal; 999 where equal, -999 where the tensor is not finite.
        cosine: Cosine similarity.
    """

    tensor: str
    snr_db: float
    cosine: float


@dataclass(frozen=True)
class Profile:
    """What every arrangement of the same values has in common, for each call.

    Attributes:
        size: Number of values of one call.
        norms: Their Euclidean norms.
        sums: Their sums over the square root of `size`.
        positives: Norms of their positive parts.
        finite: Whether all are finite.
        telling: Whether they differ from each other: values that are all alike could be anything's.
    """

    size: int
    norms: NDArray[np.float64]
    sums: NDArray[np.float64]
    positives: NDArray[np.float64]
    finite: bool
    telling: bool


def profile(value: Array) -> Profile:
    """The profile of values of shape (calls, …)."""
    import numpy as np

    flat = value.reshape(len(value), -1).astype(np.float64)
    size = flat.shape[1]
    finite = bool(np.isfinite(flat).all())
    if not finite or not size:
        nothing = np.zeros(len(value))
        return Profile(size, nothing, nothing, nothing, finite, False)
    spread, largest = float(np.ptp(flat)), float(np.max(np.abs(flat)))
    return Profile(
        size,
        np.linalg.norm(flat, axis=1),
        flat.sum(axis=1) / math.sqrt(size),
        np.linalg.norm(np.maximum(flat, 0), axis=1),
        finite,
        size > 1 and spread > 1e-6 * largest,
    )


def best_snr(layer: Profile, tensor: Profile) -> float:
    """The SNR in dB that no arrangement of a tensor's values can exceed.

    Each of the three figures of a profile is at most as far apart as the values themselves are.
    """
    import numpy as np

    if not tensor.finite:
        return -EQUAL_DB
    pairs = ((layer.norms, tensor.norms), (layer.sums, tensor.sums), (layer.positives, tensor.positives))
    noise = np.max([np.abs(one - other) for one, other in pairs], axis=0)
    found = _decibel(float(np.sum(layer.norms**2)), float(np.sum(noise**2)))
    # Above that it is the rounding of the figures themselves that is measured.
    return EQUAL_DB if found > _ROUNDING_DB else found


def fit(name: str, layer: Array, tensor: Array) -> Fit:
    """How well a tensor is a layer, in the best order of its axes.

    Args:
        name: The tensor's name.
        layer: Shape (calls, …), finite.
        tensor: Shape (calls, …), with as many elements.
    """
    import numpy as np

    if not np.isfinite(tensor).all():
        return Fit(name, -EQUAL_DB, 0.0)
    one, other = _arranged(layer, tensor)
    want, have = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    signal, noise = float(np.sum(want**2)), float(np.sum((have - want) ** 2))
    norms = math.sqrt(signal) * math.sqrt(float(np.sum(have**2)))
    cosine = float(np.sum(want * have)) / norms if norms else 0.0
    return Fit(name, _decibel(signal, noise), 1.0 if noise == 0 else min(cosine, 1.0))


def _arranged(layer: Array, tensor: Array) -> tuple[Array, Array]:
    """Both as (calls, values), the one with more axes turned so that they are closest to each other."""
    import numpy as np

    calls = len(layer)
    one, other = _squeezed(layer), _squeezed(tensor)
    turned, fixed = (one, other) if one.ndim > other.ndim else (other, one)
    plain = fixed.reshape(calls, -1)
    best = turned
    if 1 < turned.ndim - 1 <= _MAX_AXES:
        # Judged by a sample: only the best order is compared in full.
        places = np.random.default_rng(0).integers(0, plain.size, min(_SAMPLES, plain.size))
        wanted = plain.reshape(-1)[places].astype(np.float64)
        orders = [turned.transpose(0, *order) for order in itertools.permutations(range(1, turned.ndim))]
        best = min(orders, key=lambda order: _distance(order.flat[places], wanted))
    found = best.reshape(calls, -1)
    return (found, plain) if turned is one else (plain, found)


def _distance(values: Array, wanted: NDArray[np.float64]) -> float:
    import numpy as np

    return float(np.sum((np.asarray(values, dtype=np.float64) - wanted) ** 2))


def _squeezed(value: Array) -> Array:
    return value.reshape(len(value), *(size for size in value.shape[1:] if size != 1))


def _decibel(signal: float, noise: float) -> float:
    if signal <= 0:
        return EQUAL_DB if noise <= 0 else -EQUAL_DB
    return 10 * math.log10(signal / noise) if noise > signal * 1e-90 else EQUAL_DB


class Fits:
    """The tensors of an artifact, to be searched for layers.

    Args:
        tensors: Values of shape (calls, …) by name, in the order in which the artifact computes them.
    """

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = dict(tensors)
        self._profiles = {name: profile(value) for name, value in self._tensors.items()}
        self._by_size: dict[int, list[str]] = {}
        for name, known in self._profiles.items():
            self._by_size.setdefault(known.size, []).append(name)
        self.position: Mapping[str, int] = {name: place for place, name in enumerate(self._tensors)}

    def at_least(self, value: Array, known: Profile, min_snr_db: float) -> list[Fit]:
        """Every tensor that is the layer with at least that SNR, the best first."""
        names = [name for name in self._ranked(known) if best_snr(known, self._profiles[name]) >= min_snr_db]
        fits = [fit(name, value, self._tensors[name]) for name in names]
        return sorted((f for f in fits if f.snr_db >= min_snr_db), key=lambda f: -f.snr_db)

    def best(self, value: Array, known: Profile, among: Sequence[str]) -> Fit | None:
        """The tensor of those named that is closest to the layer; None where none has its size.

        Of tensors that are wrong by far, which is closest is chance: then it is the one computed first.
        """
        chosen: Fit | None = None
        allowed = set(among)
        for name in self._ranked(known):
            if name not in allowed:
                continue
            if chosen is not None and best_snr(known, self._profiles[name]) <= chosen.snr_db:
                break
            found = fit(name, value, self._tensors[name])
            chosen = found if chosen is None or found.snr_db > chosen.snr_db else chosen
        if chosen is None or chosen.snr_db >= _WRONG_DB:
            return chosen
        first = min(among, key=self.position.__getitem__)
        return fit(first, value, self._tensors[first])

    def of_size(self, size: int) -> list[str]:
        """Names of the tensors with that many values a call."""
        return list(self._by_size.get(size, ()))

    def _ranked(self, known: Profile) -> list[str]:
        """Tensors of a layer's size, the most promising first."""
        return sorted(self._by_size.get(known.size, ()), key=lambda name: -best_snr(known, self._profiles[name]))


def owners(found: Mapping[str, Sequence[Fit]], ceiling_db: float, margin_db: float = 6.0) -> dict[str, list[Fit]]:
    """Fits by layer, without those in which the tensor is another layer much better.

    A residual block's output differs little from its input; with the wide tolerances of 8-bit artifacts a tensor would
    pass for both.

    Args:
        found: Fits of each layer within the tolerance.
        ceiling_db: A fit as good as this stays whatever fits better.
        margin_db: How much worse than the tensor's best fit one may be.
    """
    best: dict[str, float] = {}
    for fits in found.values():
        for each in fits:
            best[each.tensor] = max(best.get(each.tensor, -EQUAL_DB), each.snr_db)
    return {
        key: [each for each in fits if each.snr_db >= min(best[each.tensor] - margin_db, ceiling_db)]
        for key, fits in found.items()
    }


def as_arrays(archive: Any) -> dict[str, Array]:
    """The tensors in an `intermediates.npz` that is open, by the runtime's names, in computed order."""
    import json

    return {entry["name"]: archive[entry["file"]] for entry in json.loads(archive["index.json"])}
