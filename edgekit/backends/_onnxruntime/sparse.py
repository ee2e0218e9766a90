"""Weights that are mostly one value, stored as the others and where they stand; the runtime folds the rest as it loads.

    mask: w = Reshape(Gather([fill, values], CumSum(bits) · bits))
    gaps: w = Reshape(ScatterElements(fill, CumSum(bytes), values))

ONNX's own sparse tensors say where a value stands in 8 bytes; here it is one bit an element, or one byte a value. Old
standard operators serve, and constants are folded before anything is computed: latency is that of dense weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.backends import _sparsity
from edgekit.backends._onnxruntime.graph import EXTRA, WHY, optimized
from edgekit.backends._onnxruntime.unpacking import Unpacker, opset_of
from edgekit.backends._sparsity import Sparse
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.lowering import Sparse as Wanted
    from edgekit.core.task import Array

FIRST_OPSET = 13
_NODES = 800
"""What the operators of one weight cost in a file, with their names; a weight has to save more."""


def with_sparse_weights(model: Any, wanted: Wanted) -> tuple[Any, tuple[str, ...]]:
    """The model with its sparse weights stored as such, and what is to be said of it.

    The runtime's own optimizer is asked whether it leaves the same operators as of dense weights: where it does not,
    `auto` leaves the model as it is.

    Args:
        model: The graph as it would be written.
        wanted: What the lowering says.
    """
    onnx = require("onnx", EXTRA, WHY)
    if wanted == "off":
        return model, ()
    opset = opset_of(model)
    if opset < FIRST_OPSET:
        old = f"sparse: {wanted} stored no weight: the graph has opset {opset}, it takes {FIRST_OPSET}"
        return model, () if wanted == "auto" else (old,)
    found = _found(model)
    if not found:
        return model, () if wanted == "auto" else (_sparsity.NO_ZEROS,)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _replace(onnx, result, found)
    if result.ByteSize() >= model.ByteSize():
        return model, () if wanted == "auto" else (f"sparse: {wanted} stored no weight: the file would not be smaller",)
    if _kinds(result) != _kinds(model):
        if wanted == "auto":
            return model, ("sparse weights are stored as dense ones: the runtime would unpack them at each run",)
        return result, ("sparse weights are unpacked at each run: the runtime does not fold them in this model",)
    what = f"{len(found)} weights are stored sparse and unpacked as the file is loaded"
    return result, (_sparsity.said(what, model.ByteSize(), result.ByteSize()),)


def _found(model: Any) -> dict[str, Sparse]:
    """The weights that pay, by initializer."""
    onnx = require("onnx", EXTRA, WHY)
    outputs = {value.name for value in model.graph.output}
    found = {}
    for initializer in model.graph.initializer:
        array = onnx.numpy_helper.to_array(initializer)
        if initializer.name in outputs or array.nbytes <= _NODES or array.dtype.kind not in "fiu":
            continue
        one = _sparsity.sparse(array)
        if one is not None and _bytes(one) + _NODES < array.nbytes:
            found[initializer.name] = one
    return found


def _bytes(one: Sparse) -> int:
    """The bytes of the shorter form."""
    width = one.values.dtype.itemsize
    return min(-(-one.size // 8) + len(one.values) * width, len(one.gaps()[0]) * (1 + width))


def _kinds(model: Any) -> Counter[str]:
    """How many of each operator run."""
    return Counter(node.op_type for node in optimized(model, "all").graph.node)


def _replace(onnx: Any, model: Any, found: Mapping[str, Sparse]) -> None:
    unpacker = _Unpacker(onnx, model, found)
    for name, one in found.items():
        unpacker.add(name, one)
    unpacker.finish()


class _Unpacker(Unpacker):
    """Makes weights of what is not zero in them."""

    def add(self, name: str, one: Sparse) -> None:
        import numpy as np

        gaps, values = one.gaps()
        shorter = len(gaps) * (1 + values.itemsize) < -(-one.size // 8) + one.values.nbytes
        flat = self._from_gaps(name, one, gaps, values) if shorter else self._from_mask(name, one)
        self._node("Reshape", [flat, self._constant(f"{name}__shape", np.array(one.shape, np.int64))], name)

    def _from_gaps(self, name: str, one: Sparse, gaps: Array, values: Array) -> str:
        import numpy as np

        steps = self._node("Cast", [self._constant(f"{name}__gaps", gaps)], f"{name}__steps", to=self._int32)
        places = self._node("CumSum", [steps, self._first_axis()], f"{name}__places")
        size = self._constant(f"{name}__size", np.array([one.size], np.int64))
        fill = self._onnx.numpy_helper.from_array(np.array([one.fill], values.dtype))
        filled = self._node("ConstantOfShape", [size], f"{name}__fill", value=fill)
        others = self._constant(f"{name}__values", values)
        return self._node("ScatterElements", [filled, places, others], f"{name}__flat", axis=0)

    def _from_mask(self, name: str, one: Sparse) -> str:
        import numpy as np

        packed = self._constant(f"{name}__mask", one.mask())
        table = self._shared("sparse__bits", np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1))
        bytes_ = self._node("Cast", [packed], f"{name}__bytes", to=self._int32)
        bits = self._node(
            "Cast", [self._node("Gather", [table, bytes_], f"{name}__bits")], f"{name}__set", to=self._int32
        )
        every = self._shared("sparse__all", np.array([-1], np.int64))
        flat = self._node("Reshape", [bits, every], f"{name}__row")
        if one.size % 8:
            ends = [self._shared("sparse__zero", np.array([0], np.int64))]
            ends.append(self._constant(f"{name}__size", np.array([one.size], np.int64)))
            flat = self._node("Slice", [flat, *ends], f"{name}__cut")
        # The first of the values is what stands where no bit is set.
        counted = self._node("CumSum", [flat, self._first_axis()], f"{name}__counted")
        places = self._node("Mul", [counted, flat], f"{name}__places")
        values = self._constant(f"{name}__values", np.append(one.values.dtype.type(one.fill), one.values))
        return self._node("Gather", [values, places], f"{name}__flat")

    def _first_axis(self) -> str:
        import numpy as np

        return self._shared("sparse__axis", np.array(0, np.int32))

    @property
    def _int32(self) -> int:
        return int(self._onnx.TensorProto.INT32)
