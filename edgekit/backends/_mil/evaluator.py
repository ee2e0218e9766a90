"""The reference evaluator: an `.mlpackage` computed in torch, every value rounded to its MIL type."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import _mil
from edgekit.backends._mil import constexpr
from edgekit.backends._mil.numeric import as_tensor, settle
from edgekit.backends._mil.operators import TABLE, Args, RunBlock
from edgekit.backends._mil.package import Feature, Package, read_package
from edgekit.backends._mil.program import Block, Operation, Reference
from edgekit.core.errors import ConfigError, EdgekitError, UnsupportedModelError, VerificationError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

_OPERATOR_MODULES = "ops_"


def load_operators() -> Mapping[str, Any]:
    """The table of all operators, filled on first use."""
    for module in pkgutil.iter_modules(_mil.__path__):
        if module.name.startswith(_OPERATOR_MODULES):
            importlib.import_module(f"{_mil.__name__}.{module.name}")
    return TABLE


class ReferenceEvaluator:
    """Computes the ML Program of one package.

    It reads nothing but the package: graph, weights and interface are the package's own.

    Args:
        path: The `.mlpackage`.

    Raises:
        ConfigError: A piece of the package is missing or damaged.
        UnsupportedModelError: It uses an operator that is not known here; all of them are named.
    """

    def __init__(self, path: Path) -> None:
        self._torch = require("torch", "torch", "the reference evaluation of Core ML packages")
        self.package: Package = read_package(path)
        self._table = load_operators()
        self._refuse_unknown()
        self._constants: dict[int, dict[str, Any]] = {}
        self._decompressed: dict[str, Array] = {}
        self._prepare(self.package.function.block, ChainMap())
        self._last_use = _last_uses(self.package.function.block)
        self._kept: dict[str, Any] = {}

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """The declared inputs."""
        return self.package.inputs

    @property
    def outputs(self) -> tuple[Feature, ...]:
        """The declared outputs."""
        return self.package.outputs

    def operators(self) -> dict[str, int]:
        """How often each operator occurs, constants left out."""
        counts: dict[str, int] = {}
        for operation in self.package.function.operations():
            if operation.kind != "const":
                counts[operation.kind] = counts.get(operation.kind, 0) + 1
        return dict(sorted(counts.items()))

    def intermediate_names(self) -> tuple[str, ...]:
        """Names of what the operations of the main block give, in order, constants left out."""
        return tuple(
            output.name
            for operation in self.package.function.block.operations
            if operation.kind != "const" and operation.kind not in constexpr.KINDS
            for output in operation.outputs
        )

    def decompressed(self) -> dict[str, Array]:
        """The compressed weights by name, as they were decompressed."""
        return dict(self._decompressed)

    def run(self, inputs: Mapping[str, Array], keep: Collection[str] = ()) -> dict[str, Array]:
        """The outputs for one set of inputs.

        Args:
            inputs: Arrays by input name, of exactly the declared shapes.
            keep: Names of intermediate values to keep for `intermediates`.

        Raises:
            ConfigError: An input is missing, unknown, or of another shape.
            VerificationError: An operation gave another shape than the program states.
        """
        environment: MutableMapping[str, Any] = dict(self._bound(inputs))
        self._kept = {name: environment[name] for name in keep if name in environment}
        with self._torch.no_grad():
            self._execute(self.package.function.block, environment, set(keep))
        missing = [name for name in keep if name not in self._kept]
        if missing:
            raise ConfigError(f"The ML Program has no value '{missing[0]}' that could be kept.")
        return {feature.name: self._result(feature, environment) for feature in self.outputs}

    def intermediates(self, names: Iterable[str]) -> dict[str, Array]:
        """Values that the last `run` was told to keep.

        Raises:
            ConfigError: One was not kept.
        """
        found = {}
        for name in names:
            if name not in self._kept:
                raise ConfigError(f"The value '{name}' was not kept.", "Name it in the `keep` of run().")
            found[name] = self._kept[name].numpy()
        return found

    def kept_floats(self) -> dict[str, Array]:
        """All floating-point tensors that the last `run` was told to keep, in computed order."""
        return {
            name: value.numpy()
            for name, value in self._kept.items()
            if isinstance(value, self._torch.Tensor) and value.is_floating_point()
        }

    def with_block(self, block: Block) -> ReferenceEvaluator:
        """The evaluator of a changed main block with the same weights, which can be changed apart from these.

        The converter uses it to see what a program computes that is not written yet.
        """
        other = copy.copy(self)
        package, function = self.package, self.package.function
        other.package = replace(package, function=replace(function, block=block))
        other._constants = self._constants | {id(block): dict(self._constants[id(function.block)])}
        other._last_use = _last_uses(block)
        other._kept = {}
        return other

    def set_constant(self, name: str, value: Array) -> None:
        """Have another value for a constant of the main block, or one more constant."""
        self._constants[id(self.package.function.block)][name] = as_tensor(self._torch, value)

    def constant_of(self, operation: Operation, parameter: str, default: Any = None) -> Any:
        """A constant argument of an operation of the main block, a tensor or a string; `default` where it has none."""
        if parameter not in operation.inputs:
            return default
        return self._argument(operation.inputs[parameter], self._constants[id(self.package.function.block)])

    def bound(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        """The inputs as the program's values, by name.

        Raises:
            ConfigError: An input is missing, unknown, or of another shape.
        """
        return dict(self._bound(inputs))

    def step(self, index: int, scope: MutableMapping[str, Any]) -> None:
        """Compute one operation of the main block; what it gives is added to `scope`, what is read no more leaves it.

        Args:
            index: Its place.
            scope: Values by name, constants left out.
        """
        block = self.package.function.block
        operation = block.operations[index]
        if operation.kind != "const" and operation.kind not in constexpr.KINDS:
            values = self._apply(operation, ChainMap(scope, self._constants[id(block)]))
            scope.update(zip((output.name for output in operation.outputs), values, strict=True))
        for name in self._last_use.get(index, ()):
            scope.pop(name, None)

    def compute(self, operation: Operation, given: Mapping[str, Any]) -> Any:
        """What an operation of the main block gives, not rounded to its type.

        Args:
            operation: The operation.
            given: Arguments in place of its own, tensors or arrays; None for one to leave out.
        """
        import numpy as np

        constants = self._constants[id(self.package.function.block)]
        values = {
            name: self._argument(arguments, constants)
            for name, arguments in operation.inputs.items()
            if name not in given
        }
        replaced = {
            name: as_tensor(self._torch, value) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        with self._torch.no_grad():
            return self._table[operation.kind](
                self._torch, Args(operation.kind, operation.label, {**values, **replaced})
            )

    def _refuse_unknown(self) -> None:
        if self.package.states:
            raise UnsupportedModelError(f"The Core ML model keeps state between calls: {self.package.states[0]}.")
        used = {operation.kind for operation in self.package.function.operations()}
        unknown = sorted(used - self._table.keys() - constexpr.KINDS - {"const"})
        if unknown:
            raise UnsupportedModelError(
                f"The reference evaluator does not know these Core ML operators: {', '.join(unknown)}.",
                f"It knows {len(self._table) + len(constexpr.KINDS)} operators.",
            )

    def _prepare(self, block: Block, raw: ChainMap[str, Any]) -> None:
        """Read and decompress the constants of a block and of those in it, once."""
        for operation in block.operations:
            if operation.kind == "const":
                if "val" not in operation.attributes:
                    raise ConfigError(f"The operation {operation.label} has no value.", "Compile the model anew.")
                raw[operation.outputs[0].name] = operation.attributes["val"]
            elif operation.kind in constexpr.KINDS:
                parameters = dict(operation.attributes) | {
                    name: _constant_of(operation, arguments, raw) for name, arguments in operation.inputs.items()
                }
                values = constexpr.decompress(operation.kind, operation.label, parameters)
                named = dict(zip((output.name for output in operation.outputs), values, strict=True))
                raw.update(named)
                self._decompressed.update(named)
        self._constants[id(block)] = {
            name: as_tensor(self._torch, raw[name]) for name in _read_names(block) if name in raw.maps[0]
        }
        for operation in block.operations:
            for inner in operation.blocks:
                self._prepare(inner, raw.new_child())

    def _execute(self, block: Block, environment: MutableMapping[str, Any], keep: set[str]) -> list[Any]:
        environment.update(self._constants[id(block)])
        main = block is self.package.function.block
        for index, operation in enumerate(block.operations):
            if operation.kind == "const" or operation.kind in constexpr.KINDS:
                continue
            for output, value in zip(operation.outputs, self._apply(operation, environment), strict=True):
                environment[output.name] = value
                if output.name in keep:
                    self._kept[output.name] = value
            if main:
                for name in self._last_use.get(index, ()):
                    environment.pop(name, None)
        return [environment[name] for name in block.outputs]

    def _apply(self, operation: Operation, environment: MutableMapping[str, Any]) -> list[Any]:
        values = {name: self._argument(arguments, environment) for name, arguments in operation.inputs.items()}
        types = tuple(output.type for output in operation.outputs)
        blocks = tuple(self._block(inner, environment) for inner in operation.blocks)
        args = Args(operation.kind, operation.label, values, blocks)
        try:
            given = self._table[operation.kind](self._torch, args)
        except EdgekitError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise VerificationError(f"The operation {operation.label} cannot be computed: {error}") from error
        found = list(given) if isinstance(given, tuple | list) else [given]
        if len(found) != len(types):
            raise VerificationError(f"The operation {operation.label} gives {len(found)} values, not {len(types)}.")
        settled = [settle(self._torch, value, kind) for value, kind in zip(found, types, strict=True)]
        for value, output in zip(settled, operation.outputs, strict=True):
            _check_shape(operation, value, output.type.shape if output.type.kind == "tensor" else None)
        return settled

    def _argument(self, arguments: tuple[Any, ...], environment: Mapping[str, Any]) -> Any:
        values = [
            environment[item.name] if isinstance(item, Reference) else as_tensor(self._torch, item)
            for item in arguments
        ]
        return values[0] if len(values) == 1 else values

    def _block(self, block: Block, outer: MutableMapping[str, Any]) -> RunBlock:
        def run(values: Sequence[Any]) -> list[Any]:
            scope: MutableMapping[str, Any] = ChainMap({}, outer)
            scope.update(zip((item.name for item in block.inputs), values, strict=True))
            return self._execute(block, scope, set())

        return run

    def _bound(self, inputs: Mapping[str, Array]) -> Iterator[tuple[str, Any]]:
        declared = {item.name: item.type for item in self.package.function.inputs}
        unknown = sorted(set(inputs) - set(declared))
        if unknown:
            raise ConfigError(f"The Core ML model has no input '{unknown[0]}'.", f"It has: {', '.join(declared)}.")
        for name, kind in declared.items():
            if name not in inputs:
                raise ConfigError(f"The input '{name}' of the Core ML model is missing.")
            tensor = as_tensor(self._torch, inputs[name].copy())
            if len(kind.shape) != tensor.dim() or any(
                size not in (None, given) for size, given in zip(kind.shape, tensor.shape, strict=True)
            ):
                raise ConfigError(f"The input '{name}' has shape {tuple(tensor.shape)}; the model takes {kind}.")
            yield name, settle(self._torch, tensor, kind)

    def _result(self, feature: Feature, environment: Mapping[str, Any]) -> Array:
        import numpy as np

        if feature.name not in environment:
            raise ConfigError(f"The ML Program does not compute the output '{feature.name}'.", "Compile it anew.")
        value = environment[feature.name]
        if isinstance(value, dict):
            return np.array([list(value.values())], np.float32)
        if not hasattr(value, "numpy"):
            return np.array(value)
        array: Array = value.numpy()
        return array.astype(feature.dtype) if feature.dtype else array


def _constant_of(operation: Operation, arguments: tuple[Any, ...], raw: Mapping[str, Any]) -> Any:
    item = arguments[0]
    if not isinstance(item, Reference):
        return item
    if item.name not in raw:
        raise ConfigError(f"The compressed weight {operation.label} reads '{item.name}', which is no constant.")
    return raw[item.name]


def _references(operation: Operation) -> Iterator[str]:
    for arguments in operation.inputs.values():
        yield from (item.name for item in arguments if isinstance(item, Reference))
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _references(inner)


def _read_names(block: Block) -> set[str]:
    """Names that the operations of a block compute with, those of compressed weights' pieces left out."""
    names = set(block.outputs)
    for operation in block.operations:
        if operation.kind not in constexpr.KINDS:
            names.update(_references(operation))
    return names


def _last_uses(block: Block) -> dict[int, list[str]]:
    """Which values are read for the last time by which operation, so that memory is free again."""
    last: dict[str, int] = {}
    for index, operation in enumerate(block.operations):
        for name in _references(operation):
            last[name] = index
    found: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in block.outputs:
            found.setdefault(index, []).append(name)
    return found


def _check_shape(operation: Operation, value: Any, stated: tuple[int | None, ...] | None) -> None:
    if stated is None or not hasattr(value, "dim"):
        return
    given = tuple(value.shape)
    fits = len(given) == len(stated) and all(s in (None, g) for s, g in zip(stated, given, strict=True))
    if not fits:
        sizes = ", ".join("?" if size is None else str(size) for size in stated)
        raise VerificationError(
            f"The operation {operation.label} gives the shape {given}; the program states ({sizes}).",
            "The package is damaged, or was made by a converter that disagrees with Core ML's definition.",
        )
