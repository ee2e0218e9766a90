"""Which layers of a network with 4-bit weights keep 8 bits: those whose rounding is heard most, for what they save.

Each layer is rounded by itself and the error of the network's outputs measured. Errors of several layers add up nearly
as if they were independent, so that the best choice under a budget is a knapsack, filled by error over size. Z. Dong et
al., "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision", ICCV 2019, and later work rank layers by
an estimate of the same quantity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import outputs
from edgekit.backends._litert.layers import LinearLayer, linear_layers
from edgekit.backends._litert.plan import EIGHT, FOUR, FOUR_BIT_KINDS, LayerPlan, Plan
from edgekit.core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from edgekit.backends._litert.choice import Samples
    from edgekit.backends._litert.layers import Floats

KEPT = 0.1
"""Without examples the smallest layers, together at most this share of the weights, keep 8 bits: the stem and the first
blocks are among them, lose most at 4 bits and save least."""
KEPT_BY_MEASURE = 0.27
"""With examples those that are heard most: a file 5.5 times smaller than float32."""
_HEARD = 12
"""How many examples tell how much a layer is heard."""
_LARGEST = 7
_CLIPS = 24
_NARROWEST = 0.5


def by_size(plan: Plan) -> Plan:
    """The plan with 8 bits for small layers and those that cannot have 4."""
    return plan.with_scheme([*smallest(_candidates(plan), KEPT * total(plan)), *_unable(plan)], EIGHT)


def by_measure(plan: Plan, content: bytes, samples: Samples) -> Plan:
    """The plan with 8 bits for the layers that are heard most at 4 bits.

    Args:
        plan: What each layer gets.
        content: The float file.
        samples: Examples by signature; the first signature is run.
    """
    candidates = _candidates(plan)
    kept = list(_unable(plan))
    left = KEPT_BY_MEASURE * total(plan) - sum(layer.weights for layer in plan.apart(_unable(plan)).values())
    heard = _errors(candidates, content, samples)
    for name in sorted(candidates, key=lambda one: -heard[one] / candidates[one].weights):
        if candidates[name].weights <= left:
            kept.append(name)
            left -= candidates[name].weights
    return plan.with_scheme(kept, EIGHT)


def with_blocks(plan: Plan, size: int | None) -> Plan:
    """The plan with blocks of so many weights where 4-bit layers can be cut into them.

    Raises:
        UnsupportedModelError: No 4-bit layer can.
    """
    if size is None:
        return plan
    fits = {
        name
        for name, layer in plan.of_scheme(FOUR).items()
        if layer.main and layer.grid is None and layer.channel % size == 0
    }
    if not fits:
        raise UnsupportedModelError(
            f"`block_size` {size} changes nothing: no layer with 4-bit weights has a multiple of {size} weights in each"
            " output channel.",
            "Take a smaller block_size, or leave it out: each output channel has a scale of its own then.",
        )
    blocked = {name: replace(one, block=size) if name in fits else one for name, one in plan.layers.items()}
    return replace(plan, layers=blocked)


def said(plan: Plan) -> tuple[str, ...]:
    """How many layers have 4 bits, and blocks, in sentences, where those are not all."""
    count = len(plan.of_scheme(FOUR))
    kept = len(plan.layers) - count
    blocked = len([layer for layer in plan.layers.values() if layer.block is not None])
    found = [f"{count} of {len(plan.layers)} layers have 4-bit weights, {kept} keep 8 bits"] if kept and count else []
    if 0 < blocked < count:
        found.append(f"{blocked} of {count} layers with 4-bit weights have blocks, the others a scale a channel")
    return tuple(found)


def total(plan: Plan) -> int:
    """How many weights the layers have, those of several operators counted once."""
    return sum(layer.weights for layer in plan.apart(plan.layers).values())


def _candidates(plan: Plan) -> dict[str, LayerPlan]:
    found = {
        name: layer
        for name, layer in plan.of_scheme(FOUR).items()
        if layer.kind in FOUR_BIT_KINDS and not layer.is_fixed
    }
    return plan.apart(found)


def _unable(plan: Plan) -> dict[str, LayerPlan]:
    return {name: layer for name, layer in plan.of_scheme(FOUR).items() if layer.kind not in FOUR_BIT_KINDS}


def smallest(layers: Mapping[str, LayerPlan], most: float) -> list[str]:
    """The smallest layers that together have at most so many weights; none where that would be all of them."""
    found, taken = [], 0
    for name, layer in sorted(layers.items(), key=lambda item: (item[1].weights, item[0])):
        taken += layer.weights
        if taken > most:
            break
        found.append(name)
    return found if len(found) < len(layers) else []


def _errors(candidates: Mapping[str, LayerPlan], content: bytes, samples: Samples) -> dict[str, float]:
    """The squared error of the outputs with one layer rounded, over the outputs' power, by the name of its result."""
    signature, examples = next(iter(samples.items()))
    taken = list(examples[:: max(1, len(examples) // _HEARD)][:_HEARD])
    wanted = outputs(content, signature, taken)
    model = flatbuffer.read(content)
    found = dict.fromkeys(candidates, 0.0)
    place = _place_of(model, signature)
    for _, layer in linear_layers(model, model.subgraphs[place]):
        if layer.result_name in candidates:
            found[layer.result_name] = _error(model, layer, signature, taken, wanted)
    return found


def _place_of(model: Any, signature: str) -> int:
    return next(int(one.subgraphIndex) for one in model.signatureDefs if flatbuffer.text(one.signatureKey) == signature)


def _error(model: Any, layer: LinearLayer, signature: str, samples: Any, wanted: Mapping[str, Floats]) -> float:
    import numpy as np

    weights = layer.weights()
    rows = weights.reshape(len(weights), -1)
    steps = least_error_steps(rows)[:, None]
    layer.put_floats((np.clip(np.round(rows / steps), -_LARGEST, _LARGEST) * steps).reshape(weights.shape))
    found = outputs(flatbuffer.write(model), signature, samples)
    layer.put_floats(weights)
    total = 0.0
    for name, reference in wanted.items():
        real = np.isfinite(reference)
        power = float((reference[real] ** 2).sum()) + 1e-30
        total += float(((found[name][real] - reference[real]) ** 2).sum()) / power
    return total


def least_error_steps(rows: Floats, importance: Floats | None = None) -> Floats:
    """One step of each row's 4-bit weights, such that rounding to nearest has the least squared error.

    Args:
        rows: Shape (out, in).
        importance: What the squared error of each weight counts, shape (in,): the power of what it is multiplied with.
    """
    import numpy as np

    reach = np.abs(rows).max(axis=1) / _LARGEST
    reach = np.where(reach > 0, reach, 1.0)
    best, least = reach, np.full(len(rows), np.inf)
    for share in np.linspace(1.0, _NARROWEST, _CLIPS):
        steps = (reach * share)[:, None]
        off = (np.clip(np.round(rows / steps), -_LARGEST, _LARGEST) * steps - rows) ** 2
        error = off.sum(axis=1) if importance is None else off @ importance
        best, least = np.where(error < least, steps[:, 0], best), np.minimum(error, least)
    return best
