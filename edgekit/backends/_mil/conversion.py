"""From an exported program to a Core ML model: what coremltools is given, in which order, and what to say when it fails.

It is the converter's side; the evaluator does not use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.backends._mil import recurrent_lowering, rewriting
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.program import first_line

EXTRA = "coreml"
_WHY = "the backend coreml"
_ATTENTION = "scaled_dot_product_attention.default"
_KEPT_WHOLE = ("lstm.input", "prelu.default", _ATTENTION)
_GRU = "gru.input"
_NAMED_OPERATOR = (
    re.compile(r"Unsupported fx node [\w.]+, kind (?P<kind>[\w.]+)"),
    re.compile(r"PyTorch convert function for op '(?P<kind>[^']+)' not implemented"),
    re.compile(r"not supported for the upsample op (?P<kind>\w+)"),
)
_MOST_DECOMPOSITIONS = 20


@dataclass(frozen=True)
class Interface:
    """What the Core ML model takes and gives, in coremltools' own words.

    Attributes:
        inputs: `ct.TensorType` or `ct.ImageType`, in calling order.
        outputs: `ct.TensorType`, in order.
        classifier: `ct.ClassifierConfig`, or None.
        target: `ct.target`.
        precision: `ct.precision`.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    classifier: Any
    target: Any
    precision: Any


def convert(exported: Any, interface: Interface, has_gru: bool) -> tuple[Any, tuple[str, ...]]:
    """An `MLModel`, made by the first of the ways that works, and what is worth knowing of it.

    The ways: recurrent layers, attention and PReLU kept as operators of Core ML; everything decomposed as torch does
    it; the TorchScript path, which knows some operators (grid_sample, roll, unfold) that the others do not; at last
    the first one, with each operator that coremltools stumbles over decomposed where torch can.

    Args:
        exported: The `ExportedProgram`, as exported.
        interface: What it takes and gives.
        has_gru: Whether the target's Core ML has torch's GRU (from iOS 18 on).

    Raises:
        UnsupportedModelError: None of them works; the operator and where it stands are named.
    """
    failures: list[Exception] = []
    for way, note in _ways(exported, interface, has_gru):
        try:
            return way(), note
        except Exception as error:  # noqa: BLE001  # coremltools raises every kind there is; each means: try the next
            failures.append(error)
    raise _refusal(exported, failures) from failures[0]


def _ways(exported: Any, interface: Interface, has_gru: bool) -> Iterator[tuple[Callable[[], Any], tuple[str, ...]]]:
    torch = require("torch", EXTRA, _WHY)
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    found = {str(node.target).removeprefix("aten.") for node in calls}
    if any(node.kwargs.get("enable_gqa") for node in calls):
        # coremltools does not look at it.
        found.discard(_ATTENTION)
    kept = [name for name in (*_KEPT_WHOLE, *((_GRU,) if has_gru else ())) if name in found]
    notes: tuple[str, ...] = ()
    if _GRU in found and not has_gru:
        notes = ("the GRU is unrolled into its steps: Core ML has torch's GRU as an operator from iOS 18 on",)
    if kept:
        yield lambda: _from_exported(torch, exported, interface, kept), notes
    apart = tuple(f"{name.split('.')[0]} is taken apart into simpler operators" for name in kept)
    yield lambda: _from_exported(torch, exported, interface, ()), notes + apart
    yield lambda: _from_trace(torch, exported, interface), ("it was converted through TorchScript",)
    yield lambda: _from_exported(torch, exported, interface, kept, deeper=True), notes


def _from_exported(torch: Any, exported: Any, interface: Interface, kept: Sequence[str], deeper: bool = False) -> Any:
    table = torch.export.default_decompositions()
    for name in kept:
        table.pop(_overload(torch, name))
    # torch's own kind of table: of dict's ways to add, only this one works on it.
    table.update(_corrections(torch, exported))
    if kept:
        recurrent_lowering.register(gru=_GRU in kept)
    for _ in range(_MOST_DECOMPOSITIONS if deeper else 0):
        decomposed = exported.run_decompositions(table)
        try:
            return _convert(decomposed, interface)
        except Exception as error:
            more = _decomposition_of(torch, decomposed, _operator_in(error))
            if not more:
                raise
            table.update(more)
    return _convert(exported.run_decompositions(table), interface)


def _overload(torch: Any, name: str) -> Any:
    base, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, base), overload)


def _corrections(torch: Any, exported: Any) -> dict[Any, Any]:
    """Decompositions of what coremltools 9 translates wrongly without a word, where the program has it."""
    wrong = set()
    for node in exported.graph.nodes:
        target = str(node.target)
        if target == "aten.gelu.default" and node.kwargs.get("approximate", "none") != "none":
            # It writes the exact GELU: 74 dB instead of 140.
            wrong.add(torch.ops.aten.gelu.default)
        if target in ("aten.celu.default", "aten.selu.default") or (
            target == "aten.elu.default" and len(node.args) > 2
        ):
            # It drops the scales of the ELU that these become: 26 dB.
            wrong.add(torch.ops.aten.elu.default)
    return dict(torch._decomp.get_decompositions(sorted(wrong, key=str))) if wrong else {}


def _decomposition_of(torch: Any, decomposed: Any, operator: str) -> dict[Any, Any]:
    """What torch makes of an operator that coremltools does not take; empty where torch has nothing."""
    base = operator.partition(".")[0]
    known = torch._decomp.decomposition_table
    targets = {node.target for node in decomposed.graph.nodes if node.op == "call_function"}
    named = {target for target in targets if hasattr(target, "overloadpacket") and base == _base_name(target)}
    return {target: known[target] for target in named if target in known}


def _base_name(target: Any) -> str:
    return str(target.overloadpacket.__name__)


def _from_trace(torch: Any, exported: Any, interface: Interface) -> Any:
    with torch.no_grad():
        examples = rewriting.example_inputs(torch, exported)
        traced = torch.jit.trace(exported.module(), examples, check_trace=False)
    return _convert(traced.eval(), interface)


def _convert(source: Any, interface: Interface) -> Any:
    ct = require("coremltools", EXTRA, _WHY)
    return ct.convert(
        source,
        inputs=list(interface.inputs),
        outputs=list(interface.outputs),
        classifier_config=interface.classifier,
        minimum_deployment_target=interface.target,
        compute_precision=interface.precision,
        convert_to="mlprogram",
        skip_model_load=True,
    )


def _operator_in(error: Exception) -> str:
    """The torch operator that an error of coremltools is about; empty where it names none."""
    for pattern in _NAMED_OPERATOR:
        match = pattern.search(str(error))
        if match:
            return match["kind"]
    return ""


def _refusal(exported: Any, failures: Sequence[Exception]) -> UnsupportedModelError:
    for error in failures:
        operator = _operator_in(error)
        if operator:
            return UnsupportedModelError(
                f"Core ML cannot take the operator '{operator}'{_where(exported, operator)}.",
                "Replace it by simpler operators, or compile for a target of another backend.",
            )
    return UnsupportedModelError(
        f"coremltools cannot convert this model: {first_line(failures[0])}", "Run with --verbose for its own words."
    )


def _where(exported: Any, kind: str) -> str:
    """The module path and the source line of the first node of that kind, as far as the export knows them."""
    for node in exported.graph.nodes:
        if node.op != "call_function" or kind.partition(".")[0] not in str(node.target):
            continue
        path = [entry[0] for entry in node.meta.get("nn_module_stack", {}).values() if entry[0]]
        lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
        words = [f"in {path[-1].removeprefix('inner.')}"] if path else []
        words += [f"{lines[-1][0].rpartition('/')[2]}:{lines[-1][1]}"] if lines else []
        return f" ({', '.join(words)})" if words else ""
    return ""
