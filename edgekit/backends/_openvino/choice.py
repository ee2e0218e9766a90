"""Calibration examples, and of several quantized models the one whose outputs are closest on some that set nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.runtime import Example, results
from edgekit.backends.base import CompileRequest, calibration_batches
from edgekit.core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats

_HELD_OUT = 4
"""One example in that many decides between candidates, and sets no range."""
_EQUAL_DB = 200.0
_SILENCE = 1e-30
"""Added to the signal: outputs that are nothing but zeros are judged by their error alone."""


def split_examples(request: CompileRequest) -> tuple[list[Example], list[Example]]:
    """Calibration examples that set ranges, weights and biases, and those that judge them; too few of them do both.

    Raises:
        UnsupportedModelError: There are none, or one has a value that is not finite.
    """
    import numpy as np

    examples = list(calibration_batches(request))
    for place, example in enumerate(examples):
        for name, value in example.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise UnsupportedModelError(
                    f"The input '{name}' of calibration example {place * request.inputs[0].batch_size} or one soon"
                    " after has a value that is not finite.",
                    "Mend examples('calibration') of the task.",
                )
    if len(examples) < _HELD_OUT:
        return examples, examples
    judging = examples[_HELD_OUT - 1 :: _HELD_OUT]
    return [one for place, one in enumerate(examples) if place % _HELD_OUT != _HELD_OUT - 1], judging


def closest(candidates: Mapping[str, Any], plain: Any, judging: Sequence[Example], scheme: str) -> tuple[Any, str]:
    """The candidate with the highest signal-to-noise ratio of its outputs, and a sentence that says so.

    Args:
        candidates: Quantized models by what was done to them, the least first: of equal ones that is kept.
        plain: The float model.
        judging: The examples.
        scheme: The scheme's name, for the sentence.
    """
    wanted = _outputs(plain, judging)
    ratios = {name: _ratio(_outputs(model, judging), wanted) for name, model in candidates.items()}
    best = max(ratios, key=lambda name: round(ratios[name], 3))
    others = ", ".join(f"{name}: {ratio:.1f} dB" for name, ratio in ratios.items() if name != best)
    said = f"{scheme} has {best}: its outputs are {ratios[best]:.1f} dB above their error on {len(judging)} held-out examples"
    return candidates[best], f"{said} ({others})" if others else said


def _outputs(model: Any, examples: Sequence[Example]) -> list[list[Floats]]:
    """Each output's values, for each example."""
    import numpy as np

    return [
        list(column)
        for column in zip(
            *([np.array(value, np.float64) for value in row] for row in results(model, examples)), strict=True
        )
    ]


def _ratio(found: Sequence[Sequence[Floats]], wanted: Sequence[Sequence[Floats]]) -> float:
    """Signal-to-noise ratio in dB, averaged over all outputs."""
    import numpy as np

    ratios = []
    for own, references in zip(found, wanted, strict=True):
        signal = noise = 0.0
        for value, reference in zip(own, references, strict=True):
            real = np.isfinite(reference)
            signal += float(np.sum(reference[real] ** 2))
            noise += float(np.sum((value[real] - reference[real]) ** 2))
        # A broken model may give what is no number: the worst that there is.
        if not np.isfinite(noise):
            return -_EQUAL_DB
        ratios.append(min(10 * np.log10((signal + _SILENCE) / noise), _EQUAL_DB) if noise else _EQUAL_DB)
    return float(np.mean(ratios)) if ratios else _EQUAL_DB
