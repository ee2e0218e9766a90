"""Call: one ONNX node as its translation sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.frontends._onnx_import.errors import Refused, UnknownOperand
from edgekit.frontends._onnx_import.graph import Builder, Traced, roots
from edgekit.frontends._onnx_import.libs import Value, torch

_MISSING = object()


@dataclass(frozen=True)
class Call:
    """One node.

    Attributes:
        op_type: The operator.
        name: The node's name, made up where the model gives none.
        opset: Opset of its domain.
        attributes: Its attributes as Python values.
        operands: Its operands; None where one is left out.
        operand_names: What the model calls them.
        outputs: Names of its outputs; empty where one is not wanted.
        builder: Where the graph is written.
        subgraph: Translates a graph attribute in the node's own scope and answers with its outputs.
    """

    op_type: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    operands: tuple[Value, ...]
    operand_names: tuple[str, ...]
    outputs: tuple[str, ...]
    builder: Builder
    subgraph: Callable[[Any], tuple[Value, ...]]

    def attr(self, name: str, default: Any = _MISSING) -> Any:
        """An attribute.

        Raises:
            Refused: It is missing and has no default.
        """
        if name in self.attributes:
            return self.attributes[name]
        if default is _MISSING:
            raise Refused(f"its attribute '{name}' is missing")
        return default

    def operand(self, index: int) -> Value:
        """An operand, or None where it was left out."""
        return self.operands[index] if index < len(self.operands) else None

    def known(self, index: int) -> Any:
        """An operand whose value must be known now, as a tensor; None where it was left out.

        Raises:
            UnknownOperand: It is computed from the graph's inputs.
        """
        value = self.operand(index)
        if isinstance(value, Traced):
            raise UnknownOperand(self.operand_names[index], roots(value))
        return value

    def known_ints(self, index: int) -> list[int] | None:
        """An operand with integers that must be known now, flattened; None where it was left out."""
        value = self.known(index)
        return None if value is None else [int(item) for item in value.reshape(-1).tolist()]

    def known_int(self, index: int) -> int | None:
        """An operand that must be one known integer; None where it was left out."""
        values = self.known_ints(index)
        return None if values is None else values[0]

    def ints(self, attribute: str, index: int) -> list[int] | None:
        """Integers that older opsets have as an attribute and newer ones as an operand."""
        if attribute in self.attributes:
            return [int(item) for item in self.attributes[attribute]]
        return self.known_ints(index)

    def module(self, module: Any, *args: Value) -> Value:
        """Call a submodule that carries this node's name."""
        return self.builder.module(module, *args)

    def wants(self, index: int) -> bool:
        """Whether anything may read output `index`."""
        return index < len(self.outputs) and bool(self.outputs[index])


def is_known(*values: Value) -> bool:
    """Whether all of `values` are constants or left out."""
    return not any(isinstance(value, Traced) for value in values)


def scalar(value: Value) -> Value:
    """A known zero-dimensional number as a Python number: keeps the graph free of tiny buffers."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    return value


def axis_of(axis: int, ndim: int) -> int:
    """A possibly negative axis as one counted from the front."""
    return axis + ndim if axis < 0 else axis


def tensor_like(value: Value, dtype: Any = None) -> dict[str, Any]:
    """Keyword arguments for a factory of a tensor of `value`'s type."""
    return {"dtype": dtype or value.dtype}
