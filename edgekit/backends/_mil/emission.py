"""Compressed weights, 8-bit activations and corrected biases, written into a Core ML model in one pass over its program.

It is the converter's side; coremltools reads the model, this module changes its program, and coremltools writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil.activations import Placement, steps_of
from edgekit.backends._mil.compressed import Affine, Compressed, Palette, Sparse
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

_WHY = "the backend coreml"
_EXTRA = "coreml"
_RANGES_IOS = 17
_BLOCKS_IOS = 18
SCALED_AFTER = ("conv", "linear")
"""Operators whose result can be scaled by channel in place of their weights."""


@dataclass(frozen=True)
class Edits:
    """What is changed in a program.

    Attributes:
        stored: How weights are stored, by the constant's name.
        biases: Biases by the name of the result of the operation that adds them.
        placement: Where `quantize` and `dequantize` stand.
        ranges: The range of each value that becomes 8-bit.
        sparse: Names of the weights whose whole numbers are stored sparse as well.
    """

    stored: Mapping[str, Compressed | Sparse]
    biases: Mapping[str, Array] = field(default_factory=dict)
    placement: Placement = field(default_factory=Placement)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sparse: Collection[str] = ()


def emitted(model: Any, edits: Edits, ios: int) -> Any:
    """A new model with the edits.

    Args:
        model: The `MLModel`.
        edits: The edits.
        ios: The iOS release whose operators may be used.

    Raises:
        UnsupportedModelError: A weight needs an operator that the release has not.
    """
    utils = require("coremltools.models.utils", _EXTRA, _WHY)
    ct = require("coremltools", _EXTRA, _WHY)
    version = ct._SPECIFICATION_VERSION_IOS_17 if edits.placement.tensors else ct._SPECIFICATION_VERSION_IOS_16
    return utils._apply_graph_pass(model, _writing_pass(edits, ios), spec_version=version, skip_model_load=True)


def _writing_pass(edits: Edits, ios: int) -> Any:
    base: Any = require("coremltools.converters.mil.mil.passes.graph_pass", _EXTRA, _WHY).AbstractGraphPass

    def apply(_self: Any, prog: Any) -> None:
        for function in prog.functions.values():
            with function:
                _edit(function, edits, ios)

    return type("write_quantized", (base,), {"apply": apply})()


def _edit(block: Any, edits: Edits, ios: int) -> None:
    mb = require("coremltools.converters.mil.mil", _EXTRA, _WHY).Builder
    operations = list(block.operations)
    _insert_pairs(mb, block, operations, edits)
    for operation in operations:
        bias = edits.biases.get(operation.outputs[0].name) if operation.outputs else None
        if bias is not None:
            name = f"{operation.outputs[0].name}_bias"
            _have(operation, bias=mb.const(val=bias, name=name, before_op=operation))
    for inner in [block, *_blocks_in(operations)]:
        with nullcontext() if inner is block else inner:
            for operation in list(inner.operations):
                stored = edits.stored.get(operation.outputs[0].name) if operation.op_type == "const" else None
                if stored is not None:
                    _store(mb, inner, operation, stored, ios, sparse=operation.outputs[0].name in edits.sparse)


def _blocks_in(operations: list[Any]) -> Iterator[Any]:
    for operation in operations:
        for block in operation.blocks:
            yield block
            yield from _blocks_in(list(block.operations))


def _have(operation: Any, **changed: Any) -> None:
    """Give an operation other inputs in place."""
    operation.set_inputs(no_check_var_types=True, type_inference=False, **{**operation.inputs, **changed})


def _insert_pairs(mb: Any, block: Any, operations: list[Any], edits: Edits) -> None:
    places = {output.name: place for place, operation in enumerate(operations) for output in operation.outputs}
    made = {output.name: output for operation in operations for output in operation.outputs}
    for name, kind in edits.placement.tensors.items():
        value = made.get(name, block.inputs.get(name))
        following = operations[places[name] + 1 if name in places else 0]
        scale, zero_point = steps_of(*edits.ranges[name], kind.dtype)
        shared = {"scale": scale, "zero_point": zero_point, "before_op": following}
        quantized = mb.quantize(input=value, output_dtype="int8", name=f"{name}_quantized", **shared)
        real = mb.dequantize(input=quantized, name=f"{name}_dequantized", **shared)
        if name in edits.placement.everywhere:
            block.replace_uses_of_var_after_op(anchor_op=real.op, old_var=value, new_var=real)
            continue
        for reader in list(value.child_ops):
            taken = {
                parameter: real
                for parameter, given in reader.inputs.items()
                if given is value and (reader.outputs[0].name, parameter) in edits.placement.readers
            }
            if taken and reader.op_type != "quantize":
                _have(reader, **taken)


def _store(mb: Any, block: Any, constant: Any, stored: Compressed | Sparse, ios: int, *, sparse: bool) -> None:
    old, name = constant.outputs[0], constant.name
    if isinstance(stored, Sparse):
        new = _sparse(mb, constant, stored.values, ios)
    elif sparse:
        new = _jointly_sparse(mb, constant, stored)
    elif isinstance(stored, Affine):
        new = _affine(mb, constant, stored, ios)
    else:
        new = _palette(mb, constant, stored, ios)
        if stored.scale is not None and ios >= _BLOCKS_IOS:
            scaled = f"{name}_scaled"
            new = mb.constexpr_blockwise_shift_scale(data=new, scale=stored.scale, name=scaled, before_op=constant)
        elif stored.scale is not None:
            for reader in list(old.child_ops):
                _scale_after(mb, reader, stored.scale.reshape(-1))
    block.replace_uses_of_var_after_op(anchor_op=constant, old_var=old, new_var=new, no_check_var_types=True)
    block.remove_ops([constant])


def _affine(mb: Any, constant: Any, stored: Affine, ios: int) -> Any:
    import numpy as np

    name = f"{constant.name}_quantized"
    if ios >= _BLOCKS_IOS:
        data = stored.data.astype(_packed_type(f"int{stored.bits}"))
        return mb.constexpr_blockwise_shift_scale(data=data, scale=stored.scale, name=name, before_op=constant)
    # Here a scale belongs to a channel, and a whole number has 8 bits.
    scale = stored.scale.reshape(-1)
    return mb.constexpr_affine_dequantize(
        quantized_data=stored.data,
        zero_point=np.zeros(scale.shape, np.int8),
        scale=scale,
        axis=np.int32(stored.axis),
        name=name,
        before_op=constant,
    )


def _palette(mb: Any, constant: Any, stored: Palette, ios: int) -> Any:
    import numpy as np

    name = f"{constant.name}_palettized"
    if ios >= _BLOCKS_IOS:
        indices = stored.indices.astype(_packed_type(f"uint{stored.bits}"))
        return mb.constexpr_lut_to_dense(indices=indices, lut=stored.lut[..., None], name=name, before_op=constant)
    places = np.arange(stored.bits, dtype=np.uint8)
    flat = (np.asarray(stored.indices.reshape(-1, 1), np.uint8) >> places) & np.uint8(1)
    return mb.constexpr_lut_to_dense(
        indices=np.packbits(flat, bitorder="little"),
        lut=stored.lut.reshape(-1),
        shape=np.array(stored.indices.shape, np.uint32),
        name=name,
        before_op=constant,
    )


def _sparse(mb: Any, constant: Any, values: Array, ios: int) -> Any:
    import numpy as np

    mask, name = values != 0, f"{constant.name}_sparse"
    if ios >= _BLOCKS_IOS:
        bits = mask.astype(_packed_type("uint1"))
        return mb.constexpr_sparse_to_dense(nonzero_data=values[mask], mask=bits, name=name, before_op=constant)
    return mb.constexpr_sparse_to_dense(
        nonzero_data=values[mask],
        mask=np.packbits(mask.reshape(-1), bitorder="little"),
        shape=np.array(values.shape, np.uint32),
        name=name,
        before_op=constant,
    )


def _jointly_sparse(mb: Any, constant: Any, stored: Compressed) -> Any:
    """Whole numbers where the weight is not zero."""
    mask = stored.dense() != 0
    bits, name = mask.astype(_packed_type("uint1")), f"{constant.name}_nonzero"
    if isinstance(stored, Affine):
        data = stored.data[mask].astype(_packed_type(f"int{stored.bits}"))
        found = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=bits, nonzero_data=data, scale=stored.scale, name=name, before_op=constant
        )
    else:
        indices = stored.indices[mask].astype(_packed_type(f"uint{stored.bits}"))
        found = mb.constexpr_lut_to_sparse(
            indices_mask=bits, indices_nonzero_data=indices, lut=stored.lut[..., None], name=name, before_op=constant
        )
    dense = f"{constant.name}_sparse"
    return mb.constexpr_sparse_to_dense(nonzero_data=found[1], mask=found[0], name=dense, before_op=constant)


def _packed_type(name: str) -> Any:
    types = require("coremltools.converters.mil.mil", _EXTRA, _WHY).types
    return types.nptype_from_builtin(types.string_to_builtin(name))


def _scale_after(mb: Any, reader: Any, scale: Array) -> None:
    """Scale the channels of a result: older releases have no scales for palettes."""
    import numpy as np

    if reader.op_type not in SCALED_AFTER:
        raise UnsupportedModelError(
            f"The palette of '{reader.name}' has a scale for each channel; before iOS {_BLOCKS_IOS} only"
            f" {' and '.join(SCALED_AFTER)} can have one, and this is a {reader.op_type}.",
            f"Build for iOS {_BLOCKS_IOS} or newer (os.min_version of the target), or leave this layer in float32:"
            " lowering: overrides.",
        )
    old, bias = reader.outputs[0], reader.inputs.get("bias")
    inputs = {name: value for name, value in reader.inputs.items() if value is not None}
    if bias is not None:
        # Added before the scale: coremltools makes a multiplication and an addition one batch norm, and fails at it in
        # float16.
        inputs["bias"] = (bias.val / np.where(scale == 0, 1, scale)).astype(scale.dtype)
    levels = getattr(mb, reader.op_type)(**inputs, name=f"{reader.name}_levels", before_op=reader)
    shape = (-1,) if reader.op_type == "linear" else (1, -1, *(1,) * (old.rank - 2))
    new = mb.mul(x=levels, y=scale.reshape(shape), name=old.name, before_op=reader)
    block = reader.enclosing_block
    block.replace_uses_of_var_after_op(anchor_op=new.op, old_var=old, new_var=new)
    block.remove_ops([reader])
