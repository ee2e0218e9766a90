"""Weights that are mostly zeros, stored without them.

`size`: the file unpacks them once, when it is loaded, and the delegate computes with them as with any constant::

    before   weights (constant) ────────────▶ CONV_2D
    after    values, places ──▶ DENSIFY ────▶ CONV_2D

`speed`: fully connected layers whose zeros lie in blocks of four along a row are computed by LiteRT's own sparse
kernels. XNNPACK would take such weights for dense ones and read past their end, so that the file needs an interpreter
without default delegates: `WITHOUT_XNNPACK` among what the conversion changed says so, and the run's plan follows it.

XNNPACK reads no unpacked weights of fully connected layers with int8 data: these become 1×1 convolutions, which it
computes to the same bits in the same time. Nor does it where weights are int8 and data float (dynamic quantization).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer, pointwise, sharing, sparsity
from edgekit.backends._litert.layers import KINDS, LinearLayer, linear_layers
from edgekit.backends._litert.sparsity import Sparse
from edgekit.core.lowering import Sparse as Mode

if TYPE_CHECKING:
    from edgekit.core.task import Array

WITHOUT_XNNPACK = (
    "the artifact needs an interpreter without default delegates: under XNNPACK its sparse weights give wrong results"
)
"""What says, among what a conversion changed, how the file has to be run."""

_TYPES = ("float32", "float16", "int8")
"""What DENSIFY unpacks, in XNNPACK and outside."""
_FEW = 0.2
"""The share of zeros below which no layout can pay: float32 with an index of one byte."""
_OPERATOR = 160
"""Bytes of the operator that unpacks, its tensor and its name, about."""
_BLOCK = 4
_SPARSE_COST, _FULL_COST, _OTHER_COST = 5.4, 1.6, 2.8
"""Time of one multiplication by LiteRT's own kernels, XNNPACK's dense float ones being 1, on a CPU with AVX-512: of a
stored weight in blocks of 1×4, of a dense fully connected layer, and of a convolution."""
_GAIN = 0.9
"""The share of the time that sparse kernels may take at most to be worth an interpreter without XNNPACK."""


@dataclass
class _Weight:
    """A constant that layers of one subgraph multiply by."""

    subgraph: Any
    index: int
    dtype: str
    values: Array
    layers: list[LinearLayer] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    reason: str = ""
    """Why it stays as it is; empty where it need not."""

    @property
    def zeros(self) -> float:
        return 1 - _nonzero(self.values) / self.values.size

    @property
    def is_full(self) -> bool:
        """Whether only fully connected layers read it, float32 as it stands."""
        return self.dtype == "float32" and all(
            layer.kind == "FULLY_CONNECTED" and int(operator.inputs[1]) == self.index
            for layer, operator in zip(self.layers, self.operators, strict=True)
        )


def store_sparse(content: bytes, mode: Mode, *, pruned: bool) -> tuple[bytes, tuple[str, ...]]:
    """The file with its mostly-zero weights stored without zeros, and what was done, in sentences.

    The file comes back as it was where nothing gets smaller.

    Args:
        content: The `.tflite` file.
        mode: How; see `Lowering.sparse`.
        pruned: Whether the model was pruned to have zeros: then it is said where they bring nothing.
    """
    if mode == "off":
        return content, ()
    model = flatbuffer.read(content)
    weights = list(_weights(model))
    sparse = [one for one in weights if one.zeros >= _FEW]
    notes: list[str] = []
    fast: list[_Weight] = []
    if mode == "speed":
        fast, reason = _fast(weights)
        notes += [f"sparse: speed does not pay, stored for size: {reason}"] if reason else []
    stored = _store(model, sparse, fast)
    stays = _stays(sparse, stored)
    if not stored:
        told = pruned or mode != "auto"
        return content, (
            *notes,
            *([f"sparse: nothing is stored sparse: {stays or _unworthy(weights)}"] if told else []),
        )
    flatbuffer.compact(model)
    made = sharing.write(model)
    if len(made) >= len(content):
        return content, (*notes, "sparse: nothing is stored sparse: the file would not get smaller")
    notes.append(_said(stored, weights, len(content) - len(made)))
    if fast:
        notes.append(WITHOUT_XNNPACK)
    if stays:
        notes.append(f"sparse: {stays}")
    return made, tuple(notes)


def _weights(model: Any) -> Iterator[_Weight]:
    """What the linear layers of all signatures multiply by, each constant of a subgraph once.

    Not inside loops, where it would be unpacked again at every step.
    """
    for place in dict.fromkeys(int(signature.subgraphIndex) for signature in model.signatureDefs or []):
        subgraph = model.subgraphs[place]
        found: dict[int, _Weight] = {}
        for position, layer in linear_layers(model, subgraph):
            if not layer.has_weights:
                continue
            index = _index(subgraph, layer.constant)
            if index not in found:
                dtype, values = _values(model, layer.constant)
                if values is None:
                    continue
                found[index] = _Weight(subgraph, index, dtype, values)
            found[index].layers.append(layer)
            found[index].operators.append(subgraph.operators[position])
        readers = _readers(model, subgraph)
        for weight in found.values():
            weight.reason = _reason(weight, readers)
            yield weight


def _index(subgraph: Any, tensor: Any) -> int:
    return next(index for index, one in enumerate(subgraph.tensors) if one is tensor)


def _values(model: Any, tensor: Any) -> tuple[str, Array | None]:
    import numpy as np

    types = {getattr(flatbuffer.schema().TensorType, name.upper()): name for name in _TYPES}
    dtype = types.get(tensor.type)
    if dtype is None or tensor.sparsity is not None:
        return "", None
    data = model.buffers[tensor.buffer].data
    return dtype, np.frombuffer(data.tobytes(), dtype).reshape([int(size) for size in tensor.shape])


def _readers(model: Any, subgraph: Any) -> dict[int, list[tuple[str, int]]]:
    """By tensor, the operators that read it: the kind, and where among its inputs. Outputs count as read by nobody."""
    names = flatbuffer.builtin_names()
    found: dict[int, list[tuple[str, int]]] = defaultdict(list)
    made_by: dict[int, int] = {}
    for operator in subgraph.operators:
        kind = flatbuffer.operator_name(model, operator, names)
        for place, index in enumerate(map(int, operator.inputs)):
            found[index].append((kind, place))
        if kind == "DEQUANTIZE":
            made_by[int(operator.outputs[0])] = int(operator.inputs[0])
    for widened, source in made_by.items():
        found[source] = [one for one in found[source] if one[0] != "DEQUANTIZE"] + found[widened]
    for index in map(int, subgraph.outputs):
        found[index].append(("", 0))
        found[made_by.get(index, index)].append(("", 0))
    return found


def _reason(weight: _Weight, readers: dict[int, list[tuple[str, int]]]) -> str:
    if any(kind not in KINDS or place != 1 for kind, place in readers[weight.index]):
        return "something that is no layer reads them too"
    dynamic = weight.dtype == "int8" and any(
        layer.is_float and int(operator.inputs[1]) == weight.index
        for layer, operator in zip(weight.layers, weight.operators, strict=True)
    )
    if dynamic:
        return (
            "under dynamic quantization XNNPACK reads no unpacked weights"
            " (weight_only_wi8_afp32 and static_wi8_ai8 can be stored sparse)"
        )
    if len({pointwise.is_needed(layer) for layer in weight.layers}) > 1:
        return "they have data of different types"
    return ""


def _fast(weights: list[_Weight]) -> tuple[list[_Weight], str]:
    """The weights whose layers the sparse kernels compute, or why they would not be faster."""
    if any(weight.dtype != "float32" for weight in weights):
        return [], "LiteRT's sparse kernels beat XNNPACK's dense ones with float32 weights only"
    found, before, after = [], 0.0, 0.0
    for weight in weights:
        work = sum(map(_repeats, weight.layers)) * weight.values.size
        before += work
        stored = sparsity.block_rows(weight.values, _BLOCK) if weight.is_full and not weight.reason else None
        cost = _SPARSE_COST * stored.values.size / weight.values.size if stored else _FULL_COST
        full = all(layer.kind == "FULLY_CONNECTED" for layer in weight.layers)
        if stored and cost < _FULL_COST:
            found.append(weight)
        after += work * (min(cost, _FULL_COST) if full else _OTHER_COST)
    if not found:
        return [], "no fully connected layer has enough of its zeros in blocks of 1x4"
    if after > _GAIN * before:
        return [], (
            "its layers would take about"
            f" {after / before:.1f} times as long without XNNPACK, by what LiteRT's kernels take on a PC"
        )
    return found, ""


def _repeats(layer: LinearLayer) -> int:
    """How often a layer multiplies by each of its weights."""
    return math.prod((layer.data_shape if layer.kind == "TRANSPOSE_CONV" else layer.result_shape)[:-1])


def _store(model: Any, weights: list[_Weight], fast: list[_Weight]) -> list[_Weight]:
    """Store what gets smaller, in place; which weights those are."""
    stored = []
    unpacking: dict[int, flatbuffer.Graph] = {}
    for weight in weights:
        if weight.reason:
            continue
        if any(weight is one for one in fast):
            _put(model, weight.subgraph.tensors[weight.index], sparsity.block_rows(weight.values, _BLOCK))
            stored.append(weight)
            continue
        found = sparsity.smallest(weight.values)
        if found is None or found.nbytes + _OPERATOR >= weight.values.nbytes:
            continue
        needed = any(map(pointwise.is_needed, weight.layers))
        graph = unpacking.setdefault(id(weight.subgraph), flatbuffer.Graph(model, weight.subgraph))
        if needed:
            found = _put_pointwise(model, weight, found)
        _unpack(graph, weight, found)
        stored.append(weight)
    for graph in unpacking.values():
        graph.subgraph.operators = [*graph.operators, *graph.subgraph.operators]
    return stored


def _put_pointwise(model: Any, weight: _Weight, found: Sparse) -> Sparse:
    for operator in weight.operators:
        pointwise.rewrite(model, weight.subgraph, operator)
    shape = [int(size) for size in weight.subgraph.tensors[weight.index].shape]
    return sparsity.smallest(weight.values.reshape(shape)) or found


def _unpack(graph: flatbuffer.Graph, weight: _Weight, found: Sparse) -> None:
    tensor = weight.subgraph.tensors[weight.index]
    packed = graph.constant(found.values)
    source = graph.subgraph.tensors[packed]
    source.shape, source.sparsity = list(tensor.shape), found.table()
    tensor.buffer = 0
    graph.op("DENSIFY", [packed], [weight.index], flatbuffer.schema().DensifyOptionsT())


def _put(model: Any, tensor: Any, found: Sparse | None) -> None:
    import numpy as np

    assert found is not None  # noqa: S101 - `_fast` has made it once; this tells the type checker
    buffer = flatbuffer.schema().BufferT()
    buffer.data = np.frombuffer(found.values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer, tensor.sparsity = len(model.buffers) - 1, found.table()


def _nonzero(values: Array) -> int:
    import numpy as np

    return int(np.count_nonzero(values))


def _stays(weights: list[_Weight], stored: list[_Weight]) -> str:
    """Why weights with many zeros stay as they are, for the most frequent reason."""
    left = [weight for weight in weights if not any(weight is one for one in stored)]
    reasons = [weight.reason for weight in left if weight.reason]
    if not reasons:
        return ""
    reason = max(dict.fromkeys(reasons), key=reasons.count)
    return f"the weights of {_layers(reasons.count(reason))} stay dense: {reason}"


def _unworthy(weights: list[_Weight]) -> str:
    if not weights:
        return "no layer has weights that can be"
    most = max(weight.zeros for weight in weights)
    return (
        f"where weights are zero ({most:.0%} at most, {weights[0].dtype}), their places would take more than they save"
    )


def _said(stored: list[_Weight], weights: list[_Weight], saved: int) -> str:
    size = sum(weight.values.size for weight in stored)
    zeros = 1 - sum(_nonzero(weight.values) for weight in stored) / size
    return (
        f"sparse: the weights of {sum(len(one.layers) for one in stored)} of {_layers(sum(len(one.layers) for one in weights))}"
        f" are stored without their zeros ({zeros:.1%}): {saved:,} bytes saved"
    )


def _layers(count: int) -> str:
    return f"{count} layer{'s' if count != 1 else ''}"
