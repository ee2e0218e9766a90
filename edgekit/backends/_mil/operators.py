"""The table of operators, and the arguments that each of them is given.

An operator is a function of torch and of its arguments. torch comes as an argument so that this package imports
without it. Values are float32, int64 or bool tensors, or strings: the evaluator rounds what an operator gives to the
type that the program states for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.core.errors import ConfigError, UnsupportedModelError

Operator = Callable[[Any, "Args"], Any]

RunBlock = Callable[[Sequence[Any]], list[Any]]
"""A nested block as a function: the values of its inputs → those of its outputs."""

TABLE: dict[str, Operator] = {}
"""Every operator by its name in MIL."""


def operator(*kinds: str) -> Callable[[Operator], Operator]:
    """Enter a function into the table under the names `kinds`."""

    def enter(function: Operator) -> Operator:
        for kind in kinds:
            if kind in TABLE:
                raise ValueError(f"The operator {kind} is defined twice.")
            TABLE[kind] = function
        return function

    return enter


class Args:
    """The arguments of one operation.

    Args:
        kind: The operator.
        label: The operation, for messages.
        values: Arguments by parameter name; one that was given as several values is a list.
        blocks: Its nested blocks, each as a function of the block's inputs.
    """

    def __init__(
        self,
        kind: str,
        label: str,
        values: Mapping[str, Any],
        blocks: tuple[RunBlock, ...] = (),
    ) -> None:
        self.kind = kind
        self.label = label
        self.blocks = blocks
        self._values = values

    def has(self, name: str) -> bool:
        """Whether the parameter was given."""
        return self._values.get(name) is not None

    def value(self, name: str) -> Any:
        """The argument as it is.

        Raises:
            ConfigError: It was not given.
        """
        found = self._values.get(name)
        if found is None:
            raise ConfigError(f"The operation {self.label} lacks its argument '{name}'.", "Compile the model anew.")
        return found

    def tensor(self, name: str) -> Any:
        """The argument as one tensor.

        Raises:
            ConfigError: It was not given, or is no tensor.
        """
        found = self.value(name)
        if not hasattr(found, "dim"):
            raise ConfigError(f"The argument '{name}' of {self.label} is no tensor.", "Compile the model anew.")
        return found

    def optional(self, name: str) -> Any:
        """The argument as one tensor, or None where it was not given."""
        return self.tensor(name) if self.has(name) else None

    def tensors(self, name: str) -> list[Any]:
        """The argument as a list of tensors."""
        found = self.value(name)
        return list(found) if isinstance(found, list | tuple) else [found]

    def ints(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The argument as whole numbers, flat; `default` where it was not given."""
        if default is not None and not self.has(name):
            return default
        found = self.value(name)
        if isinstance(found, list):
            return tuple(int(item) for item in found)
        return tuple(int(item) for item in found.reshape(-1).tolist())

    def integer(self, name: str, default: int | None = None) -> int:
        """The argument as one whole number; `default` where it was not given."""
        if default is not None and not self.has(name):
            return default
        return int(self.tensor(name).item())

    def number(self, name: str, default: float | None = None) -> float:
        """The argument as one number; `default` where it was not given."""
        if default is not None and not self.has(name):
            return default
        return float(self.tensor(name).item())

    def flag(self, name: str, default: bool = False) -> bool:
        """The argument as a truth value; `default` where it was not given."""
        return bool(self.tensor(name).item()) if self.has(name) else default

    def flags(self, name: str, count: int) -> tuple[bool, ...]:
        """The argument as `count` truth values; all false where it was not given."""
        return tuple(bool(item) for item in self.ints(name, (0,) * count))

    def text(self, name: str, default: str | None = None) -> str:
        """The argument as a string; `default` where it was not given."""
        if default is not None and not self.has(name):
            return default
        return str(self.value(name))

    def refuse(self, what: str) -> UnsupportedModelError:
        """The error for a mode of this operator that is not known here."""
        return UnsupportedModelError(
            f"The operation {self.label} asks for {what}, which the reference evaluator does not know."
        )
