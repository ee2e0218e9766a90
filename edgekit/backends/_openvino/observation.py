"""What the tensors of a float model hold while it runs on calibration examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.runtime import Example, openvino, opset, results
from edgekit.backends._quantize.ranges import Histogram

if TYPE_CHECKING:
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

Source = tuple[str, int]
"""An operator's name, and which of its outputs."""
_SAMPLED = 1 << 20
"""How many values of one tensor, over all examples, are enough to choose its range by."""


@dataclass
class Observation:
    """Statistics of tensors by what makes them.

    Attributes:
        histograms: Of those whose range is wanted.
        means: The mean over the examples, in the tensor's shape, of those wanted.
    """

    histograms: dict[Source, Histogram] = field(default_factory=dict)
    means: dict[Source, Floats] = field(default_factory=dict)


def source_of(output: Any) -> Source:
    """What names an output in every copy of a model."""
    return output.get_node().get_friendly_name(), output.get_index()


def observe(
    model: Any,
    examples: Sequence[Example],
    *,
    histograms: Iterable[Source] = (),
    means: Iterable[Source] = (),
) -> Observation:
    """Run a float model on examples and keep statistics of what its operators make: one pass."""
    import numpy as np

    ranged, averaged = set(histograms), set(means)
    copy = model.clone()
    wanted = ranged | averaged
    outputs = {
        source: output
        for node in copy.get_ordered_ops()
        for output in node.outputs()
        if (source := source_of(output)) in wanted
    }
    watched = openvino().Model([opset().result(one) for one in outputs.values()], copy.get_parameters(), "watched")
    found = Observation()
    for values in results(watched, examples):
        for source, value in zip(outputs, values, strict=True):
            if source in ranged:
                found.histograms.setdefault(source, Histogram()).add(_sampled(value, _SAMPLED // len(examples)))
            if source in averaged:
                found.means[source] = found.means.get(source, 0.0) + value.astype(np.float64) / len(examples)
    return found


def _sampled(value: Array, count: int) -> Array:
    """Some of the values, and the outermost of all."""
    import numpy as np

    flat = value.ravel()
    if flat.size <= count:
        return flat
    stride = (flat.size // count) | 1
    return np.append(flat[::stride], [flat.min(), flat.max()])
