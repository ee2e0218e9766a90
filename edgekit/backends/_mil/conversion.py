"""From an exported program to a Core ML model: what coremltools is given, in which order, and what to say when it fails.

It is the converter's side; the evaluator does not use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.backends._mil import recurrent_lowering
from edgekit.core.errors import EdgekitError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.program import first_line

EXTRA = "coreml"
_WHY = "the backend coreml"
_KEPT_WHOLE = ("lstm.input", "prelu.default")
_GRU = "gru.input"
_UNKNOWN_OPERATOR = (
    re.compile(r"Unsupported fx node (?P<node>[\w.]+), kind (?P<kind>[\w.]+)"),
    re.compile(r"PyTorch convert function for op '(?P<kind>[^']+)' not implemented"),
)


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

    The ways: recurrent layers and PReLU kept as operators of Core ML; everything decomposed as torch does it; the
    TorchScript path.

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
        except EdgekitError:
            raise
        except Exception as error:  # noqa: BLE001  # coremltools raises every kind there is; each means: try the next
            failures.append(error)
    raise _refusal(exported, failures) from failures[0]


def _ways(
    exported: Any, interface: Interface, has_gru: bool
) -> Iterator[tuple[Callable[[], Any], tuple[str, ...]]]:
    torch = require("torch", EXTRA, _WHY)
    found = {str(node.target).removeprefix("aten.") for node in exported.graph.nodes if node.op == "call_function"}
    kept = [name for name in (*_KEPT_WHOLE, *((_GRU,) if has_gru else ())) if name in found]
    notes = ()
    if _GRU in found and not has_gru:
        notes = ("the GRU is unrolled into its steps: Core ML has torch's GRU as an operator from iOS 18 on",)
    if kept:
        yield lambda: _from_exported(torch, exported, interface, kept), notes
    unrolled = tuple(f"{name.split('.')[0]} is unrolled into simpler operators" for name in kept)
    yield lambda: _from_exported(torch, exported, interface, ()), notes + unrolled
    yield lambda: _from_trace(torch, exported, interface), ("it was converted through TorchScript",)


def _from_exported(torch: Any, exported: Any, interface: Interface, kept: Sequence[str]) -> Any:
    table = torch.export.default_decompositions()
    for name in kept:
        base, overload = name.split(".")
        table.pop(getattr(getattr(torch.ops.aten, base), overload))
    if _has_tanh_gelu(exported):
        # coremltools 9 overlooks `approximate="tanh"` and writes the exact GELU: 74 dB instead of 130 and more.
        gelu = torch.ops.aten.gelu.default
        table[gelu] = torch._decomp.get_decompositions([gelu])[gelu]
    if kept:
        recurrent_lowering.register(gru=_GRU in kept)
    return _convert(exported.run_decompositions(table), interface)


def _has_tanh_gelu(exported: Any) -> bool:
    return any(
        str(node.target) == "aten.gelu.default" and node.kwargs.get("approximate", "none") != "none"
        for node in exported.graph.nodes
    )


def _from_trace(torch: Any, exported: Any, interface: Interface) -> Any:
    examples = tuple(
        torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in exported.graph_signature.user_inputs
    )
    with torch.no_grad():
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


def _refusal(exported: Any, failures: Sequence[Exception]) -> UnsupportedModelError:
    for error in failures:
        for pattern in _UNKNOWN_OPERATOR:
            match = pattern.search(str(error))
            if match:
                kind = match["kind"]
                return UnsupportedModelError(
                    f"Core ML cannot take the operator '{kind}'{_where(exported, kind)}.",
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
