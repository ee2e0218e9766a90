"""Of several quantized files of one model the one whose outputs are closest, on examples that set nothing in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example, examples, held_out, outputs
from edgekit.backends._litert.conversion import signatures
from edgekit.backends.base import CompileRequest
from edgekit.core.lowering import Quantize

if TYPE_CHECKING:
    from edgekit.backends._litert.calibration import Floats

_EQUAL_DB = 200.0
_SILENCE = 1e-30
"""Added to the signal: outputs that are nothing but zeros are judged by their error alone."""

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
    wanted = {name: outputs(content, name, samples) for name, samples in judging.items()}
    ratios = {name: _ratio(flatbuffer.write(model), judging, wanted) for name, model in candidates.items()}
    best = max(ratios, key=lambda name: round(ratios[name], 3))
    others = ", ".join(f"{name}: {ratio:.1f} dB" for name, ratio in ratios.items() if name != best)
    count = sum(len(samples) for samples in judging.values())
    said = f"{scheme} has {best}: its outputs are {ratios[best]:.1f} dB above their error on {count} held-out examples"
    return candidates[best], f"{said} ({others})" if others else said


def _ratio(content: bytes, samples: Samples, wanted: Mapping[str, Mapping[str, Floats]]) -> float:
    """Signal-to-noise ratio in dB, averaged over all outputs of all signatures."""
    import numpy as np

    ratios = []
    for name, references in wanted.items():
        found = outputs(content, name, samples[name])
        for output, reference in references.items():
            real = np.isfinite(reference)
            signal = float(np.sum(reference[real] ** 2))
            noise = float(np.sum((found[output][real] - reference[real]) ** 2))
            # A broken file may give what is no number: the worst that there is.
            if not np.isfinite(noise):
                return -_EQUAL_DB
            ratios.append(min(10 * np.log10((signal + _SILENCE) / noise), _EQUAL_DB) if noise else _EQUAL_DB)
    return float(np.mean(ratios)) if ratios else _EQUAL_DB
