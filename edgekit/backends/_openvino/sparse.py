"""Weights that are mostly one value, stored as the others and where they stand; the compiler folds the rest as it loads.

    w = Convert(Reshape(ScatterElementsUpdate(Broadcast(fill), NonZero(Gather(table, bytes)), values)))

OpenVINO's files have no sparse constants. These operators have constants alone, and all of them are among those that the
compiler computes while it reads a model, before it looks for weights: latency is that of dense ones.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgekit.backends import _sparsity
from edgekit.backends._openvino.runtime import compiled, opset
from edgekit.backends._openvino.storage import packed_constant
from edgekit.backends._sparsity import Sparse

if TYPE_CHECKING:
    from edgekit.core.lowering import Sparse as Wanted
    from edgekit.core.task import Array

SPEED_SCHEME = "static_wi8_ai8"
"""The scheme whose products the runtime can unpack sparse weights for."""
RATE = 0.8
"""The share of zeros from which on the runtime is to keep the weights of a product packed."""
_NODES = 5000
"""What the operators of one weight cost in a file, with their names; a weight has to save more."""
_PACKED = {"i4": (4, True), "u4": (4, False)}
_PLAIN = ("f32", "f16", "i8", "u8")
_LARGEST_HALF = 65504.0


def with_sparse_weights(model: Any, wanted: Wanted, device: str, *, half: bool) -> tuple[Any, tuple[str, ...]]:
    """The model with its sparse weights stored as such, and what is to be said of it.

    The compiler is asked whether it runs the same operators as with dense weights: where it does not, or where the model
    is for a device that is not here, `auto` leaves the model as it is.

    Args:
        model: The model as it would be written.
        wanted: What the lowering says.
        device: The device of the target.
        half: Whether it will be written with float16 in place of float32.
    """
    if wanted == "off" or (wanted == "auto" and device != "CPU"):
        return model, ()
    result = model.clone()
    weights = [(one, array) for one in _constants(result) if (array := _array(one, half=half)) is not None]
    dense = after = count = 0
    shared: dict[str, Any] = {}
    for constant, array in weights:
        one = _sparsity.sparse(array)
        width = _width(constant, array)
        if one is None or _bytes(one, width) + _NODES > one.size * width:
            continue
        _replace(constant, one, f"sparse_{count}", shared)
        count, dense, after = count + 1, dense + int(one.size * width), after + int(_bytes(one, width))
    if not count:
        return model, () if wanted == "auto" else (_sparsity.NO_ZEROS,)
    result.validate_nodes_and_infer_types()
    if device == "CPU" and _executed(result) != _executed(model):
        if wanted == "auto":
            return model, ("sparse weights are stored as dense ones: the runtime would unpack them at each run",)
        return result, ("sparse weights are unpacked at each run: the runtime does not fold them in this model",)
    what = f"{count} of {len(weights)} large weights are stored sparse and unpacked as the file is loaded"
    return result, (_sparsity.said(what, dense, after),)


def _constants(model: Any) -> list[Any]:
    return [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]


def _array(constant: Any, *, half: bool) -> Array | None:
    """A large constant's values as they are to be written; None where it is small or has no type that is known here."""
    import numpy as np

    kind = constant.get_element_type().get_type_name()
    if constant.get_byte_size() <= _NODES or kind not in (*_PLAIN, *_PACKED):
        return None
    if kind in _PACKED:
        bytes_ = np.asarray(constant.data).view(np.uint8).ravel()
        shape = tuple(constant.get_output_shape(0))
        codes = np.stack([bytes_ & 15, bytes_ >> 4], axis=1).ravel()[: int(np.prod(shape))]
        signed = np.where(codes > 7, codes.astype(np.int8) - 16, codes).astype(np.int8)
        return (signed if kind == "i4" else codes).reshape(shape)
    values = np.asarray(constant.data)
    # What float16 cannot hold stays float32 when the file is written.
    fits = half and kind == "f32" and float(np.abs(values).max(initial=0.0)) <= _LARGEST_HALF
    return values.astype(np.float16) if fits else values


def _width(constant: Any, array: Array) -> float:
    """Bytes of one element in the file."""
    return 0.5 if constant.get_element_type().get_type_name() in _PACKED else array.itemsize


def _bytes(one: Sparse, width: float) -> float:
    return one.size / 8 + len(one.values) * width


def _executed(model: Any) -> Counter[tuple[str, str]]:
    """What runs, and in which precision: how many of each operator."""
    found: Counter[tuple[str, str]] = Counter()
    for op in compiled(model).get_runtime_model().get_ops():
        info = op.get_rt_info()
        found[str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str))] += 1
    return found


def _replace(constant: Any, one: Sparse, prefix: str, shared: dict[str, Any]) -> None:
    """Have everything that reads a constant read what the operators give; short names, they are much of a small file."""
    import numpy as np

    op = opset()
    kind = constant.get_element_type().get_type_name()
    readers = list(constant.output(0).get_target_inputs())

    def named(node: Any, part: str) -> Any:
        node.set_friendly_name(f"{prefix}/{part}")
        return node

    def common(part: str, values: Array) -> Any:
        if part not in shared:
            shared[part] = op.constant(values)
            shared[part].set_friendly_name(f"sparse/{part}")
        return shared[part]

    axis = common("axis", np.array(0, np.int32))
    every = common("all", np.array([-1], np.int64))
    table = common("bits", np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1))
    # A rest of the last byte has no bits set.
    packed = named(op.constant(one.mask()), "mask")
    bits = named(op.gather(table, named(op.convert(packed, "i32"), "bytes"), axis), "bits")
    places = named(op.non_zero(named(op.reshape(bits, every, False), "row"), "i32"), "found")
    places = named(op.reshape(places, every, False), "places")
    if kind in _PACKED:
        bits_of, signed = _PACKED[kind]
        values = packed_constant(one.values, bits_of, signed=signed)
    else:
        values = op.constant(one.values)
    values = named(values, "values")
    fill = np.array(one.fill)
    if one.values.dtype.kind != "f":
        # Scattering of 8-bit integers is not folded; that of these is.
        values, fill = named(op.convert(values, "i16"), "wide"), fill.astype(np.int16)
    size = named(op.constant(np.array([one.size], np.int64)), "size")
    filled = named(op.broadcast(named(op.constant(fill), "fill"), size), "filled")
    flat = named(op.scatter_elements_update(filled, places, values, axis), "flat")
    shape = named(op.constant(np.array(one.shape, np.int64)), "shape")
    weights = named(op.reshape(flat, shape, False), "weights")
    if weights.get_element_type() != constant.get_element_type():
        weights = named(op.convert(weights, kind), "typed")
    for reader in readers:
        reader.replace_source_output(weights.output(0))
