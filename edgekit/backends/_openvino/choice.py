"""Calibration examples, and of several quantized models the one whose outputs are closest on some that set nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.runtime import Example, results
from edgekit.backends._quantize.judging import best_of, decibels, held_out
from edgekit.backends.base import CompileRequest, calibration_batches
from edgekit.core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats


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
    return held_out(examples)


def closest(candidates: Mapping[str, Any], plain: Any, judging: Sequence[Example], scheme: str) -> tuple[Any, str]:
    """The candidate with the highest signal-to-noise ratio of its outputs, and a sentence that says so.

    Args:
        candidates: Quantized models by what was done to them, the least first: of equal ones that is kept.
        plain: The float model.
        judging: The examples.
        scheme: The scheme's name, for the sentence.
    """
    wanted = _outputs(plain, judging)
    ratios = {name: decibels(_outputs(model, judging), wanted) for name, model in candidates.items()}
    best, said = best_of(ratios, scheme, len(judging))
    return candidates[best], said


def _outputs(model: Any, examples: Sequence[Example]) -> dict[str, Floats]:
    """Each output's values, the examples along a first axis."""
    import numpy as np

    columns = zip(*results(model, examples), strict=True)
    return {
        str(place): np.stack([np.array(value, np.float64) for value in column]) for place, column in enumerate(columns)
    }
