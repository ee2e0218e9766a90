"""What the tensors of a float file hold while it runs on calibration examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example, interpreter, readable
from edgekit.backends._litert.layers import linear_layers
from edgekit.backends._quantize.ranges import Histogram

if TYPE_CHECKING:
    from edgekit.backends._litert.layers import Floats


@dataclass
class Observation:
    """Statistics of tensors by name; names are the file's own and differ between signatures.

    Attributes:
        histograms: Of every float result and input.
        means: The mean over the examples of what a linear operator takes, in that tensor's shape.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    means: dict[str, Floats] = field(default_factory=dict)


def observe(content: bytes, samples: Mapping[str, Sequence[Example]], *, ranges: bool = True) -> Observation:
    """Run a float file on examples and keep statistics of its tensors: one pass, memory of about one example's tensors.

    Args:
        content: The float file.
        samples: Examples by signature.
        ranges: Whether histograms are wanted; without them only what linear operators take is read.
    """
    import numpy as np

    model = flatbuffer.read(content)
    runtime = interpreter(readable(model), keep_all=True)
    found = Observation()
    for signature in model.signatureDefs:
        key, place = flatbuffer.text(signature.signatureKey), int(signature.subgraphIndex)
        floats, linear = _watched(model, model.subgraphs[place])
        runner = runtime.get_signature_runner(key)
        for sample in samples[key]:
            runner(**sample)
            for tensor, name in floats.items():
                if not ranges and tensor not in linear:
                    continue
                value = runtime.get_tensor(tensor, place)
                if ranges:
                    found.histograms.setdefault(name, Histogram()).add(value)
                if tensor in linear:
                    found.means[name] = found.means.get(name, np.zeros(())) + value
        for tensor in linear:
            found.means[floats[tensor]] = found.means[floats[tensor]] / len(samples[key])
    return found


def _watched(model: Any, subgraph: Any) -> tuple[dict[int, str], set[int]]:
    """Names of the float tensors that are no constants, and those of them that linear operators take."""
    computed = {int(t) for t in subgraph.inputs} | {int(t) for op in subgraph.operators for t in op.outputs}
    float32 = flatbuffer.schema().TensorType.FLOAT32
    tensors = subgraph.tensors
    floats = {t: flatbuffer.text(tensors[t].name) for t in sorted(computed) if tensors[t].type == float32}
    linear = {layer.data for _, layer in linear_layers(model, subgraph)}
    return floats, linear & floats.keys()
