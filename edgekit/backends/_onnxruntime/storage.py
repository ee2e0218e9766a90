"""Weights stored in few bits, with operators that unpack them once: the runtime folds constants while it loads a file.

    w: float32   →   w = Cast(codes: int8) · scale                                    8 bits
                     w = Reshape(Gather(levels, Gather(table, bytes: uint8))) · scale  4, 2, 1 bit
                     w = Cast(w: float16)                                              16 bits

The table says which codes a byte holds. Only old standard operators are used: every release and every session reads
them, and a session computes as fast as with float32 weights. The runtime's own 4-bit operators it would not fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._onnxruntime.graph import EXTRA, WHY, graphs
from edgekit.backends._onnxruntime.unpacking import Unpacker, opset_of
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.backends._onnxruntime.layers import Layer
    from edgekit.backends._quantize.levels import Codebook, Codes
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array

FIRST_OPSET = 13
_EIGHT = 8


@dataclass
class Stored:
    """One weight as it will stand in the file.

    Attributes:
        layer: The first layer that has it.
        book: What its codes mean; None for float16.
        codes: Shape (out, in).
        fixed: Whether training has fixed the codes.
    """

    layer: Layer
    book: Codebook | None
    codes: Codes | None
    fixed: bool = False

    def weight(self, plain: Array) -> Array:
        """The weight that it stands for, float32, in its own shape.

        Args:
            plain: The float weight.
        """
        import numpy as np

        if self.book is None or self.codes is None:
            return plain.astype(np.float16).astype(np.float32)
        return self.layer.from_rows(self.book.values(self.codes).astype(np.float32))


def pack(model: Any, stored: Mapping[str, Stored], source: str) -> None:
    """Store weights as said, in place, by initializer.

    Raises:
        UnsupportedModelError: The graph's opset is older than the operators that unpack.
    """
    if not stored:
        return
    opset = opset_of(model)
    if opset < FIRST_OPSET:
        raise UnsupportedModelError(
            f"{source} has opset {opset}; weights can be stored in fewer bits from opset {FIRST_OPSET} on.",
            f"Export it with opset {FIRST_OPSET} or newer.",
        )
    onnx = require("onnx", EXTRA, WHY)
    plain = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name in stored}
    unpacker = _Unpacker(onnx, model, stored)
    for name, one in stored.items():
        unpacker.add(name, one, plain[name])
    unpacker.finish()
    # What the runtime would infer of shapes anyway; some of it is of weights that are gone.
    for graph in graphs(model):
        del graph.value_info[:]


class _Unpacker(Unpacker):
    """Makes weights of few bits."""

    def add(self, name: str, stored: Stored, plain: Array) -> None:
        import numpy as np

        if stored.book is None or stored.codes is None:
            half = self._constant(f"{name}__half", plain.astype(np.float16))
            self._node("Cast", [half], name, to=self._onnx.TensorProto.FLOAT)
            return
        layer, book, codes = stored.layer, stored.book, stored.codes
        blocked = book.scale.shape[1] > 1
        levels = layer.from_rows(book.levels[codes]) if not blocked else book.levels[codes]
        chosen: Any = layer.from_rows(codes) if not blocked else codes
        target = name if not blocked else f"{name}__rows"
        along = [-1 if place == layer.axis else 1 for place in range(len(layer.shape))]
        if not blocked:
            scale = book.scale.reshape(along)
        elif codes.shape[1] % book.block == 0:
            chosen = chosen.reshape(len(codes), -1, book.block)
            levels = levels.reshape(chosen.shape)
            scale = book.scale[:, :, None]
        else:
            scale = np.repeat(book.scale, book.block, axis=1)[:, : codes.shape[1]]
        values = self._eight(name, levels) if book.bits == _EIGHT else self._few(name, book, chosen)
        self._node("Mul", [values, self._real(f"{name}__scale", scale)], target)
        if blocked:
            self._as_weight(name, target, layer)

    def _eight(self, name: str, levels: Array) -> str:
        import numpy as np

        whole = self._constant(f"{name}__int8", levels.astype(np.int8))
        return self._node("Cast", [whole], f"{name}__levels", to=self._onnx.TensorProto.FLOAT)

    def _few(self, name: str, book: Codebook, codes: Codes) -> str:
        import numpy as np

        bits, flat = book.bits, codes.ravel()
        each = _EIGHT // bits
        padded = np.append(flat, np.zeros(-flat.size % each, np.int64)).reshape(-1, each)
        packed = (padded << (bits * np.arange(each))).sum(axis=1).astype(np.uint8)
        bytes_ = np.arange(256)[:, None] >> (bits * np.arange(each))
        table = self._shared(f"unpack__{bits}_bit", (bytes_ & ((1 << bits) - 1)).astype(np.uint8))
        integer = self._onnx.TensorProto.INT32
        places = self._node("Cast", [self._constant(f"{name}__packed", packed)], f"{name}__bytes", to=integer)
        chosen = self._node("Gather", [table, places], f"{name}__codes")
        chosen = self._node("Cast", [chosen], f"{name}__places", to=integer)
        if padded.size > flat.size:
            shape = self._constant(f"{name}__all", np.array([-1], np.int64))
            chosen = self._node("Reshape", [chosen, shape], f"{name}__padded")
            ends = [
                self._constant(f"{name}__{end}", np.array([at], np.int64)) for end, at in (("0", 0), ("n", flat.size))
            ]
            chosen = self._node("Slice", [chosen, *ends], f"{name}__cut")
        shape = self._constant(f"{name}__shape", np.array(codes.shape, np.int64))
        chosen = self._node("Reshape", [chosen, shape], f"{name}__shaped")
        return self._node("Gather", [self._real(f"{name}__palette", book.levels), chosen], f"{name}__levels")

    def _as_weight(self, name: str, rows: str, layer: Layer) -> None:
        """Rows of output channels in the weight's own order of axes."""
        import numpy as np

        others = [place for place in range(len(layer.shape)) if place != layer.axis]
        first = [layer.shape[layer.axis], *(layer.shape[place] for place in others)]
        shape = self._constant(f"{name}__first", np.array(first, np.int64))
        order = [[layer.axis, *others].index(place) for place in range(len(layer.shape))]
        moved = order != list(range(len(order)))
        result = self._node("Reshape", [rows, shape], f"{name}__channels" if moved else name)
        if moved:
            self._node("Transpose", [result], name, perm=order)

    def _real(self, name: str, values: Floats) -> str:
        """A constant as float32, stored in float16 where that loses nothing."""
        import numpy as np

        small = values.astype(np.float16)
        if not np.array_equal(small.astype(np.float64), values):
            return self._constant(name, values.astype(np.float32))
        return self._node("Cast", [self._constant(f"{name}__half", small)], name, to=self._onnx.TensorProto.FLOAT)
