"""What the tensors of a float file hold while it runs on calibration examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example, interpreter, readable
from edgekit.backends._litert.ranges import Histogram

if TYPE_CHECKING:
    from edgekit.core.task import Array

LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
"""Operators that add a bias to something linear in their first data input."""


@dataclass
class Observation:
    """Statistics of tensors by name; names are the file's own and differ between signatures.

    Attributes:
        histograms: Of every float result and input.
        means: The mean over the examples of what a linear operator takes, in that tensor's shape.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    means: dict[str, Array] = field(default_factory=dict)


def data_input(kind: str) -> int:
    """Which input of a linear operator its data are: a transposed convolution takes its output's shape first."""
    return 2 if kind == "TRANSPOSE_CONV" else 0


def observe(content: bytes, samples: Mapping[str, Sequence[Example]]) -> Observation:
    """Run a float file on examples and keep statistics of its tensors: one pass, memory of about one example's tensors.

    Args:
        content: The float file.
        samples: Examples by signature.
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
                value = runtime.get_tensor(tensor, place)
                found.histograms.setdefault(name, Histogram()).add(value)
                if tensor in linear:
                    total = found.means.setdefault(name, np.zeros(value.shape, np.float64))
                    total += value
        for tensor in linear:
            found.means[floats[tensor]] /= len(samples[key])
    return found


def _watched(model: Any, subgraph: Any) -> tuple[dict[int, str], set[int]]:
    """Names of the float tensors that are no constants, and those of them that linear operators take."""
    names = flatbuffer.builtin_names()
    computed = {int(t) for t in subgraph.inputs} | {int(t) for op in subgraph.operators for t in op.outputs}
    float32 = flatbuffer.schema().TensorType.FLOAT32
    tensors = subgraph.tensors
    floats = {t: flatbuffer.text(tensors[t].name) for t in sorted(computed) if tensors[t].type == float32}
    linear = set()
    for operator in subgraph.operators:
        kind = flatbuffer.operator_name(model, operator, names)
        if kind in LINEAR:
            linear.add(int(operator.inputs[data_input(kind)]))
    return floats, linear & floats.keys()
