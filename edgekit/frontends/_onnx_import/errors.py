"""What can stand in the way of one node; `translate` gathers these into one error that names every such node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekit.core.errors import UnsupportedModelError

_LISTED = 40


class Refused(Exception):  # noqa: N818  # not an error of the program: control flow inside the importer
    """A node cannot be translated; the text is the reason."""


class Declined(Exception):  # noqa: N818  # as Refused
    """A translation leaves this node to the function body that ONNX gives for it."""


class UnknownOperand(Refused):
    """A node needs the value of an operand, and the operand is computed from the graph's inputs.

    Attributes:
        roots: The graph inputs that it is computed from.
    """

    def __init__(self, operand: str, roots: Iterable[str]) -> None:
        self.roots = frozenset(roots)
        origin = f" (it is computed from: {', '.join(sorted(self.roots))})" if self.roots else ""
        super().__init__(f"its operand '{operand}' must be a constant{origin}")


@dataclass(frozen=True)
class Refusal:
    """One node that cannot be imported."""

    op_type: str
    domain: str
    opset: int
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.domain or 'ai.onnx'}.{self.op_type} (opset {self.opset}), node '{self.node}': {self.reason}"


def unsupported(refusals: list[Refusal]) -> UnsupportedModelError:
    """One error for all nodes that cannot be imported."""
    lines = [f"  {refusal}" for refusal in refusals[:_LISTED]]
    if len(refusals) > _LISTED:
        lines.append(f"  … and {len(refusals) - _LISTED} more")
    kinds = ", ".join(sorted({refusal.op_type for refusal in refusals}))
    count = "1 operator" if len(refusals) == 1 else f"{len(refusals)} operators"
    return UnsupportedModelError(
        "\n".join([f"{count} of this ONNX model cannot be imported into torch ({kinds}):", *lines]),
        "ONNX Runtime and OpenVINO read the file as it is: edgekit compile net.onnx --target linux-x86",
    )
