"""Divergence: the first layer of a source model that an artifact does not have as it should; pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekit.flow.layers import Layer
from edgekit.flow.matching import Fit, Fits, Profile, owners, profile
from edgekit.flow.verify import Tolerance

if TYPE_CHECKING:
    from edgekit.core.task import Array

Status = Literal["same", "fused", "absent", "constant", "diverged"]
_CANDIDATES = 4
_CLEARLY_BETTER_DB = 40.0
_NOTABLE_LOSS_DB = 12.0
_ROUNDED_DB = 140.0


@dataclass(frozen=True)
class LayerFit:
    """One layer of the source, found in the artifact or not.

    Attributes:
        path: Its module.
        operator: What it does.
        status: `same`: a tensor of the artifact is this layer; `fused`: none is, but what is computed from it is right;
            `constant`: its values are all alike and could be anything's; `diverged`: it is wrong, and so is all that
            follows; `absent`: nothing that follows is right, but the artifact has no tensor that it could be.
        snr_db: Of the tensor that is it, or comes closest; None where there is none.
        tensor: That tensor, as the artifact calls it.
    """

    path: str
    operator: str
    status: Status
    snr_db: float | None = None
    tensor: str | None = None


@dataclass(frozen=True)
class Divergence:
    """Where an artifact leaves its source.

    Attributes:
        path: The module of the first layer that is wrong.
        operator: What it does.
        snr_db: SNR of the artifact's tensor that comes closest to it; None where it has none of its size.
        tensor: That tensor, as the artifact calls it.
        snr_before_db: The smallest SNR of the layers that it reads; None where it reads the inputs.
        last_good: Module and operator of the last layer before it that is right; None where it reads the inputs.
    """

    path: str
    operator: str
    snr_db: float | None
    tensor: str | None
    snr_before_db: float | None
    last_good: tuple[str, str] | None


@dataclass(frozen=True)
class Loss:
    """Where much of the accuracy goes, though what follows is within the tolerance.

    A net may hide what one of its layers does wrong: a sum in which it counts little, a function that saturates.

    Attributes:
        path: The module of the first layer that the artifact may compute wrongly.
        operator: What it does.
        snr_before_db: The smallest SNR of the layers before it; None where it reads the inputs.
        until: Module and operator of the next layer that is found again; often the same.
        snr_db: Its SNR.
    """

    path: str
    operator: str
    snr_before_db: float | None
    until: tuple[str, str]
    snr_db: float


@dataclass(frozen=True)
class Bisection:
    """What comparing an artifact with its source layer by layer gave.

    Attributes:
        first: The first layer at which they part; None where they do not.
        others: Module and operator of layers that diverge of themselves, on branches that the first has no part in.
        largest_loss: The layer, of those that are right, at which most is lost; None where none is worth naming.
        tolerance: What a tensor must keep to be a layer.
        layers: All layers in the order of the computation.
    """

    first: Divergence | None
    others: tuple[tuple[str, str], ...]
    largest_loss: Loss | None
    tolerance: Tolerance
    layers: tuple[LayerFit, ...]


def bisect(layers: Sequence[Layer], tensors: Mapping[str, Array], tolerance: Tolerance) -> Bisection:
    """Bring layers and tensors together and find where they part; pure.

    Args:
        layers: The source's layers, each before those that read it; values of shape (calls, …).
        tensors: The artifact's tensors, in computed order; values of shape (calls, …).
        tolerance: What a tensor must keep to be a layer.
    """
    return _Search(layers, tensors, tolerance).result()


class _Search:
    """One bisection, step by step."""

    def __init__(self, layers: Sequence[Layer], tensors: Mapping[str, Array], tolerance: Tolerance) -> None:
        self.layers = layers
        self.tolerance = tolerance
        self.fits = Fits(tensors)
        self.profiles: dict[str, Profile] = {layer.key: profile(layer.value) for layer in layers}
        self.readers: dict[str, list[str]] = {layer.key: [] for layer in layers}
        for layer in layers:
            for key in layer.inputs:
                self.readers[key].append(layer.key)
        self.same = self._same()
        self.claimed = {fit.tensor for fits in self.same.values() for fit in fits}
        self.saved = self._saved()
        self.nearest = self._nearest()
        self.by_key = {layer.key: layer for layer in layers}
        # How close a layer is found again where nothing is lost: rounding in float32 or float16, or the steps of 8 bits.
        self._usual = max((min(fits[0].snr_db, _ROUNDED_DB) for fits in self.same.values()), default=_ROUNDED_DB)

    def _same(self) -> dict[str, list[Fit]]:
        least = self.tolerance
        found = {
            layer.key: [
                fit
                for fit in self.fits.at_least(layer.value, self.profiles[layer.key], least.min_snr_db)
                if fit.cosine >= least.min_cosine
            ]
            for layer in self.layers
            if self.profiles[layer.key].telling
        }
        return {key: fits for key, fits in owners(found, least.min_snr_db + _CLEARLY_BETTER_DB).items() if fits}

    def _saved(self) -> set[str]:
        """Layers of which something that follows is right."""
        found: set[str] = set()
        for layer in reversed(self.layers):
            if any(key in self.same or key in found for key in self.readers[layer.key]):
                found.add(layer.key)
        return found

    def _nearest(self) -> dict[str, tuple[str, ...]]:
        """For each layer, the layers before it that are right, with none between them and it that is."""
        found: dict[str, tuple[str, ...]] = {}
        for layer in self.layers:
            before = (((key,) if key in self.same else found[key]) for key in layer.inputs)
            found[layer.key] = tuple(dict.fromkeys(key for keys in before for key in keys))
        return found

    def _candidates(self, layer: Layer) -> list[str]:
        """Tensors that could be a layer: of its size, no other layer's, and computed after what it reads.

        Where there are such, only those after every layer before it: converters mostly keep the order.
        """
        free = [name for name in self.fits.of_size(self.profiles[layer.key].size) if name not in self.claimed]
        after = self._end(self.nearest[layer.key])
        found = [name for name in free if self.fits.position[name] > after]
        before = self._end(itertools.takewhile(lambda key: key != layer.key, self.readers))
        return [name for name in found if self.fits.position[name] > before][:_CANDIDATES] or found[:_CANDIDATES]

    def _end(self, keys: Iterable[str]) -> int:
        """Where the last of these layers is first computed in the artifact."""
        places = (min(self.fits.position[fit.tensor] for fit in self.same[key]) for key in keys if key in self.same)
        return max(places, default=-1)

    def _judged(self, layer: Layer) -> LayerFit:
        def fitted(status: Status, fit: Fit | None = None) -> LayerFit:
            found = (fit.snr_db, fit.tensor) if fit else (None, None)
            return LayerFit(layer.path, layer.operator, status, *found)

        if layer.key in self.same:
            return fitted("same", self.same[layer.key][0])
        if layer.key in self.saved:
            return fitted("fused")
        known = self.profiles[layer.key]
        if not known.telling:
            return fitted("constant")
        closest = self.fits.best(layer.value, known, self._candidates(layer))
        return fitted("absent") if closest is None else fitted("diverged", closest)

    def result(self) -> Bisection:
        judged = {layer.key: self._judged(layer) for layer in self.layers}
        wrong = [layer for layer in self.layers if judged[layer.key].status == "diverged"]
        if not wrong:
            # An output that is nowhere to be found is as wrong as one that has other values.
            wrong = [layer for layer in self.layers if judged[layer.key].status == "absent"]
        roots = self._roots(wrong)
        first = self._divergence(roots[0], judged[roots[0].key]) if roots else None
        others = tuple((layer.path, layer.operator) for layer in roots[1:])
        return Bisection(first, others, self._largest_loss(), self.tolerance, tuple(judged.values()))

    def _roots(self, wrong: Sequence[Layer]) -> list[Layer]:
        """Those of the wrong layers that follow from no other."""
        keys = {layer.key for layer in wrong}
        tainted: set[str] = set()
        roots = []
        for layer in self.layers:
            after = any(key in tainted for key in layer.inputs)
            if layer.key in keys and not after:
                roots.append(layer)
            if after or layer.key in keys:
                tainted.add(layer.key)
        return roots

    def _snr(self, keys: Iterable[str]) -> float | None:
        return min((self.same[key][0].snr_db for key in keys), default=None)

    def _divergence(self, layer: Layer, judged: LayerFit) -> Divergence:
        before = self.nearest[layer.key]
        order = {each.key: place for place, each in enumerate(self.layers)}
        last = self.layers[max(order[key] for key in before)] if before else None
        return Divergence(
            path=layer.path,
            operator=layer.operator,
            snr_db=judged.snr_db,
            tensor=judged.tensor,
            snr_before_db=self._snr(before),
            last_good=(last.path, last.operator) if last else None,
        )

    def _largest_loss(self) -> Loss | None:
        losses: list[tuple[float, Layer]] = []
        for layer in self.layers:
            if layer.key in self.same:
                before = self._snr(self.nearest[layer.key])
                # Against a layer that is equal to the bit every other loses: what is lost beyond rounding counts.
                lost = min(_ROUNDED_DB if before is None else before, self._usual) - self.same[layer.key][0].snr_db
                losses.append((lost, layer))
        lost, end = max(losses, key=lambda loss: loss[0], default=(0.0, None))
        if end is None or lost < _NOTABLE_LOSS_DB:
            return None
        start = self._start_of_loss(end)
        before = self._snr(self.nearest[start.key])
        return Loss(start.path, start.operator, before, (end.path, end.operator), self.same[end.key][0].snr_db)

    def _start_of_loss(self, end: Layer) -> Layer:
        """The first layer before one that is right, with none between them that is, for which there is a tensor free."""
        open_keys, between = list(end.inputs), set()
        while open_keys:
            key = open_keys.pop()
            if key not in self.same and key not in between:
                between.add(key)
                open_keys += self.by_key[key].inputs
        suspects = [layer for layer in self.layers if layer.key in between and self.profiles[layer.key].telling]
        return next((layer for layer in suspects if self._candidates(layer)), end)
