"""Of several quantized files of one model the one whose outputs are closest, on examples that set nothing in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example, examples, outputs
from edgekit.backends._litert.conversion import signatures
from edgekit.backends._quantize.judging import best_of, decibels, held_out
from edgekit.backends.base import CompileRequest
from edgekit.core.lowering import Quantize

if TYPE_CHECKING:
    from edgekit.backends._litert.calibration import Floats

Samples = Mapping[str, Sequence[Example]]
"""Examples by signature."""


def split_examples(request: CompileRequest, quantize: Quantize) -> tuple[Samples, Samples]:
    """Calibration examples of every signature: those that set ranges and biases, and those that judge them.

    Raises:
        UnsupportedModelError: There are too few, or one has a value that is not finite.
    """
    fitting, judging = {}, {}
    for name, batch in signatures(request).items():
        fitting[name], judging[name] = held_out(list(examples(request, quantize.calibration, batch)))
    return fitting, judging


def closest(candidates: Mapping[str, Any], content: bytes, judging: Samples, scheme: str) -> tuple[Any, str]:
    """The candidate with the highest signal-to-noise ratio of its outputs, and a sentence that says so.

    Args:
        candidates: Quantized models by what was done to them, the least first: of equal ones that is kept.
        content: The float file.
        judging: The examples.
        scheme: The scheme's name, for the sentence.
    """
    wanted = _outputs(content, judging)
    ratios = {name: decibels(_outputs(flatbuffer.write(model), judging), wanted) for name, model in candidates.items()}
    best, said = best_of(ratios, scheme, sum(len(samples) for samples in judging.values()))
    return candidates[best], said


def _outputs(content: bytes, judging: Samples) -> dict[str, Floats]:
    """The outputs of all signatures."""
    return {
        f"{name}.{output}": value
        for name, samples in judging.items()
        for output, value in outputs(content, name, samples).items()
    }
