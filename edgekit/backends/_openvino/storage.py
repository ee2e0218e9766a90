"""Weights as a file stores them: whole numbers of 8, 4, 2 or 1 bit, and operators that make floats of them.

The runtime's compiler computes these operators once, when it loads the model (for matrix products it may keep the
integers and unpack them in the product): the file is small and the network as fast as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.backends._openvino.runtime import openvino, opset
from edgekit.backends._quantize.rounding import compensated

if TYPE_CHECKING:
    from edgekit.backends._openvino.layers import Layer
    from edgekit.backends._quantize.ranges import Floats
    from edgekit.core.task import Array


@dataclass(frozen=True)
class Stored:
    """The weights of one layer by output channel: `scale * code`, or `scale * table[code]`.

    Attributes:
        bits: How many bits a code has.
        codes: Whole numbers, shape (channels, weights of each).
        scale: Shape (channels, blocks): equally many weights of a channel, one after the other, share one.
        table: Floats that the codes choose from; None where the codes are numbers with a sign.
        fixed: Whether training has set the codes, so that nothing may round them anew.
        largest: The largest code with a sign, and the least without its sign.
    """

    bits: int
    codes: Array
    scale: Floats
    table: Floats | None = None
    fixed: bool = False
    largest: int = 0

    def values(self) -> Floats:
        """The weights as the runtime computes them, float64, shape of `codes`."""
        import numpy as np

        steps = self.codes.astype(np.float32) if self.table is None else self.table.astype(np.float32)[self.codes]
        return np.asarray(steps * self._spread().astype(np.float32), np.float64)

    def _spread(self) -> Floats:
        import numpy as np

        return np.repeat(self.scale, self.codes.shape[1] // self.scale.shape[1], axis=1)

    def rounded_anew(self, weights: Floats, second_moment: Floats) -> Stored:
        """The same grid with codes that keep the layer's results for data with this second moment."""
        spread = self._spread()
        found = compensated(weights, second_moment, lambda column, place: self._nearest(column, spread[:, place]))
        return replace(self, codes=self._codes(found, spread))

    def _nearest(self, column: Floats, scale: Floats) -> Floats:
        return self._values_of(self._codes(column, scale), scale)

    def _values_of(self, codes: Array, scale: Floats) -> Floats:
        import numpy as np

        steps = codes.astype(np.float64) if self.table is None else self.table[codes]
        return np.asarray(steps * scale)

    def _codes(self, weights: Floats, scale: Floats) -> Array:
        import numpy as np

        steps = np.divide(weights, scale, out=np.zeros_like(weights), where=scale != 0)
        if self.table is None:
            return np.clip(np.round(steps), -self.largest, self.largest).astype(np.int8)
        return closest_entry(steps, self.table)

    def put(self, layer: Layer) -> None:
        """Have a layer take its weights from these."""
        name = layer.constant.get_friendly_name()
        layer.set_weights(self._operators(layer, f"{name}/{layer.node.get_friendly_name()}"))

    def _operators(self, layer: Layer, name: str) -> Any:
        import numpy as np

        op = opset()
        blocks = self.scale.shape[1]
        named = _namer(name)
        if blocks == 1:
            scale = layer.shaped_scale(self.scale[:, 0])
            steps = self._steps(layer.shaped(self.codes), named)
            return named(op.multiply(steps, named(op.constant(scale.astype(np.float32)), "scale")), "weights").output(0)
        rows, length = self.codes.shape
        steps = self._steps(self.codes.reshape(rows, blocks, length // blocks), named)
        scale = named(op.constant(self.scale[:, :, None].astype(np.float32)), "scale")
        values = named(op.multiply(steps, scale), "weights")
        shape = np.array([layer.shape[axis] for axis in layer.order])
        values = named(op.reshape(values, named(op.constant(shape), "shape"), False), "shaped")
        back = np.argsort(layer.order)
        if (back != np.arange(len(back))).any():
            values = named(op.transpose(values, named(op.constant(back), "order")), "moved")
        return values.output(0)

    def _steps(self, codes: Array, named: Callable[[Any, str], Any]) -> Any:
        import numpy as np

        op = opset()
        packed = named(packed_constant(codes, self.bits, signed=self.table is None), "codes")
        if self.table is None:
            return named(op.convert(packed, "f32"), "steps")
        entries = np.zeros(2**self.bits, np.float32)
        entries[: len(self.table)] = self.table
        places = named(op.convert(packed, "i32"), "places")
        table = named(op.constant(entries), "table")
        return named(op.gather(table, places, named(op.constant(np.int32(0)), "axis")), "steps")


def half(layer: Layer) -> None:
    """Have a layer's weights stored in float16."""
    import numpy as np

    named = _namer(f"{layer.constant.get_friendly_name()}/{layer.node.get_friendly_name()}")
    weights = layer.shaped(layer.rows()).astype(np.float16)
    layer.set_weights(named(opset().convert(named(opset().constant(weights), "half"), "f32"), "weights").output(0))


def _namer(prefix: str) -> Callable[[Any, str], Any]:
    # OpenVINO numbers what has no name by a counter of the whole process: equal input has to give equal bytes.
    def named(node: Any, part: str) -> Any:
        node.set_friendly_name(f"{prefix}/{part}")
        return node

    return named


def packed_constant(codes: Array, bits: int, *, signed: bool) -> Any:
    """A constant of whole numbers in 8, 4, 2 or 1 bit, in the shape of the codes."""
    import numpy as np

    ov, op = openvino(), opset()
    if bits > 2:
        kind = getattr(ov.Type, f"{'i' if signed else 'u'}{bits}")
        return op.constant(codes.astype(np.int8 if signed else np.uint8), dtype=kind)
    flat = codes.astype(np.uint8).ravel()
    if bits == 1:
        data: Array = np.packbits(flat)
    else:
        quarters = np.append(flat, np.zeros(-flat.size % 4, np.uint8)).reshape(-1, 4)
        data = quarters[:, 0] | quarters[:, 1] << 2 | quarters[:, 2] << 4 | quarters[:, 3] << 6
    kind, shape = getattr(ov.Type, f"u{bits}"), ov.Shape(codes.shape)
    # A tensor of an array's memory does not keep it alive: the constant gets memory of its own.
    own = ov.Tensor(kind, shape)
    ov.Tensor(np.ascontiguousarray(data), shape, kind).copy_to(own)
    return op.constant(own)


def closest_entry(values: Floats, table: Floats) -> Array:
    """The place in an ascending table of what is closest to each value."""
    import numpy as np

    return np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint8)
