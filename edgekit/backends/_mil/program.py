"""An ML Program as data: functions, blocks, operations and their types, as the package states them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil.blobs import NUMPY, from_bytes
from edgekit.backends._mil.wire import Message
from edgekit.core.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.core.task import Array

DTYPES: Mapping[int, str] = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    13: "bf16",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
"""MIL's element types by their number in the file."""


@dataclass(frozen=True)
class MilType:
    """The type of a value.

    Attributes:
        kind: `tensor`, `list`, `tuple`, `dictionary` or `state`.
        dtype: Element type of a tensor; empty for the others.
        shape: Sizes of a tensor; None for one that is not fixed.
    """

    kind: str
    dtype: str = ""
    shape: tuple[int | None, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]" if self.kind == "tensor" else self.kind


@dataclass(frozen=True)
class Named:
    """A name with its type: an input, or an output of an operation."""

    name: str
    type: MilType


@dataclass(frozen=True)
class Reference:
    """An argument that is another operation's output, by name."""

    name: str


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kind: The operator: `conv`.
        inputs: Arguments by parameter name: references, or constants that stand in place.
        outputs: Names and types of what it gives.
        blocks: Nested blocks of control flow.
        attributes: Constants that belong to the operation itself.
    """

    kind: str
    inputs: Mapping[str, tuple[Any, ...]]
    outputs: tuple[Named, ...]
    blocks: tuple[Block, ...]
    attributes: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The operator and what it gives, for messages."""
        return f"{self.kind} '{self.outputs[0].name if self.outputs else ''}'"


@dataclass(frozen=True)
class Block:
    """Operations in order, with what goes in and what comes out."""

    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Function:
    """The function of a program that is run.

    Attributes:
        inputs: Its inputs in calling order.
        opset: The operator set it is written in: `CoreML7`.
        block: What it computes.
    """

    inputs: tuple[Named, ...]
    opset: str
    block: Block

    def operations(self) -> Iterator[Operation]:
        """All operations, those of nested blocks after the one that holds them."""
        yield from _walk(self.block)


def _walk(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _walk(inner)


class ProgramReader:
    """Turns the message of an ML Program into a `Function`.

    Args:
        read_blob: Reads weights: file name in the package, offset, element type, count → array.
    """

    def __init__(self, read_blob: Callable[[str, int, str, int], Array]) -> None:
        self._read_blob = read_blob

    def function(self, program: Message, name: str = "main") -> Function:
        """The function `name` of a program.

        Raises:
            ConfigError: There is none of that name, or the program is damaged.
        """
        functions = program.mapping(2)
        if name not in functions:
            raise ConfigError(
                f"The ML Program has no function '{name}'.", f"It has: {', '.join(sorted(functions)) or 'none'}."
            )
        function = functions[name]
        blocks = function.mapping(3)
        opset = function.text(2)
        if not blocks:
            raise ConfigError(f"The function '{name}' of the ML Program has no block.", "Compile the model anew.")
        chosen = blocks[opset] if opset in blocks else next(iter(blocks.values()))
        return Function(tuple(self._named(message) for message in function.messages(1)), opset, self._block(chosen))

    def _block(self, message: Message) -> Block:
        return Block(
            tuple(self._named(item) for item in message.messages(1)),
            tuple(message.texts(2)),
            tuple(self._operation(item) for item in message.messages(3)),
        )

    def _operation(self, message: Message) -> Operation:
        return Operation(
            kind=message.text(1),
            inputs={name: self._argument(item) for name, item in message.mapping(2).items()},
            outputs=tuple(self._named(item) for item in message.messages(3)),
            blocks=tuple(self._block(item) for item in message.messages(4)),
            attributes={name: self.value(item) for name, item in message.mapping(5).items()},
        )

    def _argument(self, message: Message) -> tuple[Any, ...]:
        return tuple(
            Reference(binding.text(1)) if binding.has(1) else self.value(binding.message(2))
            for binding in message.messages(1)
        )

    @staticmethod
    def _named(message: Message) -> Named:
        return Named(message.text(1), read_type(message.message(2)))

    def value(self, message: Message) -> Any:
        """A constant: an array, a string, or a list, tuple or dictionary of them.

        Raises:
            ConfigError: It is damaged, or its weight file is.
        """
        kind = read_type(message.message(2))
        if message.has(5):
            blob = message.message(5)
            flat = self._read_blob(blob.text(1), blob.integer(2), kind.dtype, math.prod(_static(kind)))
            return flat.reshape(_static(kind))
        immediate = message.message(3)
        if immediate.has(1):
            return _tensor_value(immediate.message(1), kind)
        if immediate.has(4):
            pairs = immediate.message(4).messages(1)
            return {self.value(pair.message(1)): self.value(pair.message(2)) for pair in pairs}
        holder = immediate.message(2) if immediate.has(2) else immediate.message(3)
        return [self.value(item) for item in holder.messages(1)]


def read_type(message: Message) -> MilType:
    """The type that a message states.

    Raises:
        UnsupportedModelError: Its element type is not known.
    """
    kinds = {1: "tensor", 2: "list", 3: "tuple", 4: "dictionary", 5: "state"}
    kind = next((name for number, name in kinds.items() if message.has(number)), "tensor")
    if kind != "tensor":
        return MilType(kind)
    tensor = message.message(1)
    number = tensor.integer(1)
    if number not in DTYPES:
        raise UnsupportedModelError(f"The ML Program uses element type number {number}, which is not known here.")
    return MilType("tensor", DTYPES[number], tuple(_dimension(item) for item in tensor.messages(3)))


def _dimension(message: Message) -> int | None:
    return message.message(1).integer(1) if message.has(1) else None


def _static(kind: MilType) -> tuple[int, ...]:
    if any(size is None for size in kind.shape):
        raise ConfigError(f"A constant of the ML Program has no fixed shape: {kind}.", "Compile the model anew.")
    return tuple(size for size in kind.shape if size is not None)


def _tensor_value(message: Message, kind: MilType) -> Any:
    import numpy as np

    shape = _static(kind)
    count = math.prod(shape)
    if kind.dtype == "string":
        texts = message.message(4).texts(1)
        return texts[0] if shape == () and texts else texts
    if message.has(7):
        return from_bytes(message.message(7).raw(1), kind.dtype, count).reshape(shape)
    for field, stored in ((1, "fp32"), (6, "fp64")):
        if message.has(field):
            return _shaped(from_bytes(message.message(field).raw(1), stored, count), kind, shape)
    numbers: Sequence[int] = ()
    for field in (2, 3, 5):
        if message.has(field):
            numbers = message.message(field).varints(1)
    if len(numbers) != count:
        raise ConfigError(f"A constant of type {kind} has {len(numbers)} values.", "Compile the model anew.")
    return _shaped(np.array(numbers, np.int64), kind, shape)


def _shaped(values: Array, kind: MilType, shape: tuple[int, ...]) -> Array:
    return values.astype(NUMPY.get(kind.dtype, "<i8")).reshape(shape)
