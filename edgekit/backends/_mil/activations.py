"""Which activations of an ML Program become 8-bit, and the program with `quantize` and `dequantize` around them.

The pattern is coremltools' own (`linear_quantize_activations`, which measures ranges on a Mac alone): a pair before each
convolution, linear layer, pooling and sum, and a pair behind it and its activation function. The ranges are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgekit.backends._mil.program import Block, MilType, Named, Operation, Reference

if TYPE_CHECKING:
    from edgekit.core.task import Array

_UNARY = ("conv", "linear", "avg_pool", "max_pool")
_SUM = "add"
_FUSED = ("relu", "relu6", "clip", "leaky_relu", "tanh", "scaled_tanh", "sigmoid", "sigmoid_hard")
_STEPS, _LEAST, _MOST = 255, -128, 127
_SMALLEST_SCALE = {"fp16": 2.0**-14, "fp32": 1e-30}
QUANTIZED, REAL = "_8bit", "_real"


@dataclass(frozen=True)
class Placement:
    """Where pairs stand.

    Attributes:
        tensors: The values that become 8-bit, by name, each with its type.
        readers: Arguments that read the 8-bit value: (operation's first output, parameter).
        everywhere: Values that all who read them have as 8-bit.
        alike: Groups of values that a concatenation joins: they share a range.
    """

    tensors: dict[str, MilType] = field(default_factory=dict)
    readers: set[tuple[str, str]] = field(default_factory=set)
    everywhere: set[str] = field(default_factory=set)
    alike: list[set[str]] = field(default_factory=list)

    def read_by(self, operation: Operation, parameter: str, name: str) -> bool:
        """Whether an argument is the 8-bit value."""
        if name not in self.tensors or operation.kind in ("quantize", "dequantize"):
            return False
        return name in self.everywhere or (operation.outputs[0].name, parameter) in self.readers


def placed(block: Block, inputs: Collection[Named], left_out: Collection[str]) -> Placement:
    """Where pairs stand in a block.

    Args:
        block: The main block.
        inputs: The program's inputs.
        left_out: Operations that stay in float, by the name of their first output.
    """
    types = {item.name: item.type for item in inputs}
    readers: dict[str, list[Operation]] = {}
    found, constants = Placement(), set()
    for operation in block.operations:
        if operation.kind == "const" or operation.kind.startswith("constexpr_"):
            constants |= {output.name for output in operation.outputs}
            continue
        types |= {output.name: output.type for output in operation.outputs}
        for name in _names(operation):
            readers.setdefault(name, []).append(operation)
    for operation in block.operations:
        parameters = ("x", "y") if operation.kind == _SUM else ("x",) if operation.kind in _UNARY else ()
        sources = [_source(operation, parameter) for parameter in parameters]
        floats = [name for name in sources if name in types and types[name].dtype in _SMALLEST_SCALE]
        if not parameters or len(floats) != len(sources) or operation.outputs[0].name in left_out:
            continue
        for parameter, name in zip(parameters, floats, strict=True):
            found.tensors[name] = types[name]
            found.readers.add((operation.outputs[0].name, parameter))
        result = _behind(operation, readers)
        if result not in block.outputs and readers.get(result):
            found.tensors[result] = types[result]
            found.everywhere.add(result)
    _join_concatenated(block, found)
    return found


def _source(operation: Operation, parameter: str) -> str:
    arguments = operation.inputs.get(parameter, ())
    return arguments[0].name if len(arguments) == 1 and isinstance(arguments[0], Reference) else ""


def _names(operation: Operation) -> set[str]:
    named = {item.name for items in operation.inputs.values() for item in items if isinstance(item, Reference)}
    for block in operation.blocks:
        named |= set(block.outputs).union(*(_names(inner) for inner in block.operations))
    return named


def _behind(operation: Operation, readers: Mapping[str, list[Operation]]) -> str:
    """The result of an operation, or of the activation function that alone reads it."""
    name = operation.outputs[0].name
    after = readers.get(name, [])
    return after[0].outputs[0].name if len(after) == 1 and after[0].kind in _FUSED else name


def _join_concatenated(block: Block, found: Placement) -> None:
    for operation in block.operations:
        if operation.kind != "concat":
            continue
        joined = {operation.outputs[0].name, *(a.name for a in operation.inputs["values"] if isinstance(a, Reference))}
        group = joined & found.tensors.keys()
        for other in [other for other in found.alike if other & group]:
            found.alike.remove(other)
            group |= other
        if len(group) > 1:
            found.alike.append(group)


def shared_ranges(ranges: Mapping[str, tuple[float, float]], placement: Placement) -> dict[str, tuple[float, float]]:
    """The ranges, those of values that a concatenation joins made one."""
    own = dict(ranges)
    for group in placement.alike:
        lows, highs = zip(*(ranges[name] for name in group), strict=True)
        own.update(dict.fromkeys(group, (min(lows), max(highs))))
    return own


def steps_of(low: float, high: float, dtype: str) -> tuple[Array, Array]:
    """Scale, in the values' own type, and zero point as int8, of a range around zero.

    A range of nothing, as constant zeros have, gets the smallest scale: zero stays zero.
    """
    import numpy as np

    kind = np.float16 if dtype == "fp16" else np.float32
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.asarray(max((high - low) / _STEPS, _SMALLEST_SCALE[dtype]), kind)
    zero_point = np.clip(np.round(_LEAST - low / float(scale)), _LEAST, _MOST)
    return scale, np.asarray(zero_point, np.int8)


def with_pairs(block: Block, placement: Placement, ranges: Mapping[str, tuple[float, float]]) -> Block:
    """The block with the pairs in it, as the evaluator computes it."""
    inserted = [
        operation
        for name, kind in placement.tensors.items()
        if name not in _made(block)
        for operation in _pair(name, kind, ranges[name])
    ]
    for operation in block.operations:
        inserted.append(_reading(operation, placement))
        for output in operation.outputs:
            if output.name in placement.tensors:
                inserted += _pair(output.name, output.type, ranges[output.name])
    return replace(block, operations=tuple(inserted))


def _made(block: Block) -> set[str]:
    return {output.name for operation in block.operations for output in operation.outputs}


def _pair(name: str, kind: MilType, limits: tuple[float, float]) -> list[Operation]:
    scale, zero_point = steps_of(*limits, kind.dtype)
    shared = {"scale": (scale,), "zero_point": (zero_point,)}
    eight, real = Named(name + QUANTIZED, MilType("tensor", "int8", kind.shape)), Named(name + REAL, kind)
    return [
        Operation("quantize", {"input": (Reference(name),), "output_dtype": ("int8",), **shared}, (eight,), (), {}),
        Operation("dequantize", {"input": (Reference(eight.name),), **shared}, (real,), (), {}),
    ]


def _reading(operation: Operation, placement: Placement) -> Operation:
    """The operation with the 8-bit values in place of those that it shall read as such."""
    inputs = {
        parameter: tuple(
            Reference(item.name + REAL)
            if isinstance(item, Reference) and placement.read_by(operation, parameter, item.name)
            else item
            for item in items
        )
        for parameter, items in operation.inputs.items()
    }
    return replace(operation, inputs=inputs)
