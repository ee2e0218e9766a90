"""The ONNX project's own operator cases, run through edgekit's importer.

A case is one model of (mostly) one operator with inputs and expected outputs. Inputs that an importer of static graphs
must know (a `shape`, `axes` or `k` operand) are given to it as constants; the rest are inputs of the module.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgekit.core.errors import EdgekitError, UnsupportedModelError
from edgekit.frontends._onnx_import import import_onnx, inputs_needed_constant

EXCLUSIONS = Path(__file__).with_name("onnx_exclusions.yaml")
DEFAULT_RTOL, DEFAULT_ATOL = 1e-3, 1e-7


@dataclass(frozen=True)
class Exclusion:
    """Cases that are not tried, and why.

    Attributes:
        reason: Why.
        names: Patterns of case names.
        operators: Operators, any of which in the model excludes it.
        types: ONNX element types, any of which in an input or output excludes it.
    """

    reason: str
    names: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    def covers(self, case: Any) -> bool:
        """Whether it excludes a case."""
        if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in self.names):
            return True
        if self.operators and not set(self.operators).isdisjoint(operators_of(case.model.graph.node)):
            return True
        return bool(self.types) and not set(self.types).isdisjoint(types_of(case.model.graph))


@dataclass(frozen=True)
class Outcome:
    """What became of one case; `problem` is empty where it passed."""

    name: str
    operator: str
    problem: str


@cache
def all_cases() -> tuple[Any, ...]:
    """Every operator case of the installed onnx, in order of name."""
    with warnings.catch_warnings():
        # The cases divide by zero and overflow on purpose while they are made.
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return tuple(sorted(collect_testcases(None), key=lambda case: case.name))


@cache
def settings() -> dict[str, Any]:
    """The committed exclusions and the cases known to fail."""
    return yaml.safe_load(EXCLUSIONS.read_text(encoding="utf-8"))


@cache
def exclusions() -> tuple[Exclusion, ...]:
    """The committed exclusions."""
    fields = ("names", "operators", "types")
    return tuple(
        Exclusion(entry["reason"], *(tuple(entry.get(field, ())) for field in fields))
        for entry in settings()["exclusions"]
    )


def exclusion_of(case: Any) -> Exclusion | None:
    """The first exclusion that covers a case."""
    return next((exclusion for exclusion in exclusions() if exclusion.covers(case)), None)


def operators_of(nodes: Any) -> Iterator[str]:
    """Operators in a graph and its subgraphs; those outside the main domain with their domain."""
    for node in nodes:
        yield f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators_of(attribute.g.node)


def types_of(graph: Any) -> Iterator[str]:
    """Names of the element types (`FLOAT8E5M2`, …) and kinds (`sequence`, `optional`) of a graph's values."""
    import onnx

    for info in (*graph.input, *graph.output):
        kind = info.type.WhichOneof("value")
        if kind == "tensor_type":
            yield onnx.TensorProto.DataType.Name(info.type.tensor_type.elem_type)
        elif kind:
            yield kind.removesuffix("_type")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "output_dtype"):
                yield onnx.TensorProto.DataType.Name(attribute.i)


def operator_of(case: Any) -> str:
    """The operator that a case is about."""
    nodes = case.model.graph.node
    if len(nodes) == 1:
        return next(operators_of(nodes))
    return case.name.removeprefix("test_").split("_expanded")[0]


def run_case(case: Any, *, export: bool = False, constant: Iterable[str] = ()) -> Outcome:
    """Import a case's model, run it on the case's inputs, and compare.

    Args:
        case: The case.
        export: Whether to run what `torch.export` makes of the module.
        constant: Inputs that are constants in the model, as the weights of a real network are.
    """
    try:
        problem = next((p for data in case.data_sets if (p := _problem(case, *data, export, set(constant)))), "")
    except EdgekitError as error:
        problem = error.message
    except Exception as error:  # noqa: BLE001  # whatever a broken translation raises is this case's outcome, not the run's end
        problem = f"{type(error).__name__}: {error}"
    return Outcome(case.name, operator_of(case), problem)


def _problem(case: Any, inputs: Any, expected: Any, export: bool, constant: set[str]) -> str:
    import torch

    names = [info.name for info in case.model.graph.input]
    arrays = {n: _numpy(a) for n, a in zip(names, inputs, strict=False) if a is not None}
    imported = _imported(case.model, arrays, {name: array for name, array in arrays.items() if name in constant})
    args = tuple(_tensor(arrays[name]) for name in imported.input_names)
    module: Any = imported.module
    if export:
        module = torch.export.export(module, args, strict=False).module()
    with torch.no_grad():
        results = module(*args)
    results = results if isinstance(results, tuple) else (results,)
    return _difference(case, results, expected, imported.output_names)


def _imported(model: Any, arrays: dict[str, Any], constants: dict[str, Any]) -> Any:
    """The module, with those inputs as constants that have to be."""
    while True:
        free = {name: tuple(array.shape) for name, array in arrays.items() if name not in constants}
        try:
            return import_onnx(model, shapes=free, constants=constants)
        except UnsupportedModelError:
            needed = inputs_needed_constant(model, shapes=free, constants=constants)
            if not needed:
                raise
            constants = constants | {name: arrays[name] for name in needed}


def _numpy(value: Any) -> Any:
    """A case's value; those of types that numpy lacks come as ONNX tensors."""
    import onnx

    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _tensor(array: Any) -> Any:
    from edgekit.frontends._onnx_import.dtypes import tensor_from_array

    return tensor_from_array(array)


def _array(tensor: Any) -> Any:
    import torch

    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _difference(case: Any, results: Any, expected: Any, names: tuple[str, ...]) -> str:
    """The first difference, in words; empty where there is none. The comparison is that of ONNX's own runner."""
    if len(results) != len(expected):
        return f"{len(results)} outputs, expected {len(expected)}"
    rtol = DEFAULT_RTOL if case.rtol is None else case.rtol
    atol = DEFAULT_ATOL if case.atol is None else case.atol
    for name, result, value in zip(names, results, expected, strict=True):
        wanted, dtype = _numpy(value), str(result.dtype).removeprefix("torch.")
        if dtype != str(wanted.dtype):
            return f"output '{name}' is {dtype}, expected {wanted.dtype}"
        got = _array(result)
        if got.shape != wanted.shape:
            return f"output '{name}' has the shape {got.shape}, expected {wanted.shape}"
        if dtype == "bfloat16":
            # As ONNX's own runner: two units in the last place.
            got, rtol = got.astype(np.float32), max(rtol, 2**-6)
        if not np.allclose(got, wanted.astype(got.dtype), rtol=rtol, atol=atol, equal_nan=True):
            with np.errstate(all="ignore"):
                error = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
            return f"output '{name}' differs by up to {np.nanmax(error):.3g}"
    return ""
