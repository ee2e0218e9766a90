"""What passes read off an exported graph: which modules its nodes come from, and the layers with weights in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.core.program import TorchProgram

Kind = Literal["linear", "conv", "transposed"]

_INNER = "inner."
_KINDS: dict[str, Kind] = {
    "aten.linear.default": "linear",
    "aten.conv1d.default": "conv",
    "aten.conv2d.default": "conv",
    "aten.conv3d.default": "conv",
    "aten.conv1d.padding": "conv",
    "aten.conv2d.padding": "conv",
    "aten.conv3d.padding": "conv",
    "aten.conv_transpose1d.default": "transposed",
    "aten.conv_transpose2d.input": "transposed",
    "aten.conv_transpose3d.input": "transposed",
}
LAYER_OPERATORS = frozenset(_KINDS)
"""Operators that multiply their data by weights."""
_GROUPS_AT = 6
"""The place of `groups` among the arguments of a convolution, transposed or not."""


@dataclass(frozen=True)
class Layer:
    """One call of an operator that multiplies by a parameter of the module.

    Attributes:
        node: The call.
        kind: Linear layer, convolution or transposed convolution.
        weight: The parameter's path in the module.
        bias: The bias's path; None where there is none.
        groups: Groups of channels.
        shared: Whether something else reads the weight or the bias too.
    """

    node: Any
    kind: Kind
    weight: str
    bias: str | None
    groups: int
    shared: bool

    @property
    def path(self) -> str:
        """The layer as people and grids name it: the weight's path without `.weight`."""
        return self.weight.removesuffix(".weight")

    @property
    def data(self) -> Any:
        """The node whose value is multiplied."""
        return self.node.args[0]

    @property
    def axis(self) -> int:
        """The weight's axis that counts output channels (of one group, where a convolution is transposed)."""
        return 1 if self.kind == "transposed" else 0


def layers_in(program: TorchProgram) -> list[Layer]:
    """The layers whose weight is a parameter as it stands, in calling order; computed weights are none."""
    exported = program.exported
    parameters = exported.graph_signature.inputs_to_parameters
    tied = tied_parameters(program.module)
    found = []
    for node in exported.graph.nodes:
        kind = _KINDS.get(str(node.target)) if node.op == "call_function" else None
        if kind is None:
            continue
        weight, bias = _argument(node, 1, "weight"), _argument(node, 2, "bias")
        if getattr(weight, "name", "") not in parameters or not (bias is None or bias.name in parameters):
            continue
        operands = [operand for operand in (weight, bias) if operand is not None]
        names = [parameters[operand.name].removeprefix(_INNER) for operand in operands]
        groups = _argument(node, _GROUPS_AT, "groups") if kind != "linear" else 1
        shared = any(len(operand.users) > 1 for operand in operands) or any(name in tied for name in names)
        found.append(Layer(node, kind, names[0], names[1] if bias is not None else None, int(groups or 1), shared))
    return found


def _argument(node: Any, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def tied_parameters(module: Any) -> set[str]:
    """Parameters that the module knows by several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for known in names.values() if len(known) > 1 for name in known}


def module_path(node: Any) -> str:
    """The path of the innermost module whose forward made a node; empty where it was the model's own."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path).removeprefix("inner").removeprefix(".")


def distance(before: Any, after: Any, inputs: Any = None) -> tuple[str, float]:
    """The output that is furthest apart, and how far, as a share of its largest value.

    Args:
        before: The program that was.
        after: The program that a pass made of it.
        inputs: Arrays by input name; the example inputs where None.
    """
    import numpy as np

    given = before.example_inputs if inputs is None else inputs
    was, now = before.run(given), after.run(given)
    apart = {}
    for name, value in was.items():
        scale = float(np.max(np.abs(value), initial=0.0)) or 1.0
        difference = np.abs(value.astype(np.float64) - now[name].astype(np.float64))
        apart[name] = float(np.max(difference, initial=0.0)) / scale
    worst = max(apart, key=lambda name: (not np.isfinite(apart[name]), apart[name]))
    return worst, apart[worst]


def shortened(notes: Sequence[str], shown: int, rest: str) -> list[str]:
    """The first few notes and the number of the others: `and 5 more stay`, where `rest` is `stay`."""
    return list(notes) if len(notes) <= shown else [*notes[:shown], f"and {len(notes) - shown} more {rest}"]
