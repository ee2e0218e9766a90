"""Which operators of an exported program litert-torch cannot take, with the place of each in the person's own code."""

from __future__ import annotations

import operator as python_operator
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekit.backends.base import Issue
from edgekit.core.extras import require

_EXTRA = "litert-convert"
_WHY = "the backend litert"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_VENDORED = ("/site-packages/", "/dist-packages/")
# What the exporter adds for its own checks and the converter drops.
_CHECKS = re.compile(r"aten\.(_assert\w*|sym_constrain_range\w*|_assert_tensor_metadata|lift_fresh_copy|detach_?)\b")
_COMPLEX_TAKEN = re.compile(r"aten\.(fft_rfft|_fft_r2c|abs)\b")
"""A spectrum's magnitude: the one use of complex numbers that has a lowering."""
_DATA_DEPENDENT = "its result's shape depends on the data; LiteRT needs static shapes"


def unsupported_operators(exported: Any) -> list[Issue]:
    """What cannot be converted, told from the graph alone, in a moment: nothing is decomposed or lowered.

    An operator that torch takes apart by itself is not looked into: that it fails is then seen in the conversion.
    """
    torch = require("torch", _EXTRA, _WHY)
    known = _known(torch)
    issues = []
    for node in _calls(exported.graph_module):
        issue = _issue(torch, node, known)
        if issue is not None:
            issues.append(issue)
    return _once(issues)


def without_lowering(exported: Any) -> list[Issue]:
    """The same after torch has taken the program apart: exact, and as slow as the first half of a conversion."""
    registry = require("litert_torch.backend.lowerings.registry", _EXTRA, _WHY)
    decompositions = require("litert_torch.fx_infra.decomp", _EXTRA, _WHY)
    program = exported.run_decompositions(decompositions.pre_lower_decomp())
    return _once(
        [
            Issue(str(node.target), "litert-torch has no lowering for it", place_of(node))
            for node in _calls(program.graph_module)
            if registry.lookup(node.target) is None
        ]
    )


def listed(issues: list[Issue]) -> str:
    """Issues as lines of a message."""
    return "\n".join(f"{one.what}{f' ({one.where})' if one.where else ''}: {one.reason}." for one in issues)


def place_of(node: Any) -> str:
    """The module's path and the line of source that a node comes from; empty where the program does not say."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = re.sub(r"^L\['self'\]\.?", "", str(stack[-1][0])) if stack else ""
    frames = [(match["file"], match["line"]) for match in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    frames = [frame for frame in frames if not frame[0].startswith("<")]
    own = [frame for frame in frames if not any(part in frame[0] for part in _VENDORED)] or frames
    line = f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
    return ", ".join(part for part in (path, line) if part)


def _calls(module: Any) -> Iterator[Any]:
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is not python_operator.getitem:
            yield node


def _issue(torch: Any, node: Any, known: Callable[[Any], bool]) -> Issue | None:
    target, place = node.target, place_of(node)
    if isinstance(target, torch._ops.HigherOrderOperator):  # torch has no public name for the class
        if target.name() in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            return None
        return Issue(
            str(target), "control flow that depends on the data", place, "Both branches must be computed: torch.where."
        )
    values = [value for value in _values(node.meta.get("val")) if hasattr(value, "dtype")]
    if any(not isinstance(size, int) for value in values for size in value.shape):
        return Issue(str(target), _DATA_DEPENDENT, place, "Give the result a fixed size: a mask, topk, or padding.")
    if _is_scalar_read(torch, target):
        return Issue(str(target), "it reads a value of a tensor into the program", place, "Keep it a tensor.")
    if _is_complex(node) and not _COMPLEX_TAKEN.search(str(target)):
        return Issue(str(target), "it is complex", place, "Compute real and imaginary parts apart.")
    if not known(target):
        return Issue(str(target), "litert-torch has no lowering for it", place, "Write it with other operators.")
    return None


def _is_complex(node: Any) -> bool:
    metas = [node.meta.get("val"), *(given.meta.get("val") for given in node.all_input_nodes)]
    values = [value for meta in metas for value in _values(meta)]
    return any(value.dtype.is_complex for value in values if hasattr(value, "dtype"))


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _is_scalar_read(torch: Any, target: Any) -> bool:
    return target in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


def _known(torch: Any) -> Callable[[Any], bool]:
    lowerings = require("litert_torch.backend.lowerings", _EXTRA, _WHY)
    decompositions = require("litert_torch.fx_infra.decomp", _EXTRA, _WHY)
    tables = decompositions.pre_convert_decomp() | decompositions.pre_lower_decomp()
    aten = torch.ops.aten
    # The one operator that the converter takes from its second table of decompositions.
    tables[aten.multinomial.default] = None
    kept_whole = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}

    def known(target: Any) -> bool:
        if not isinstance(target, torch._ops.OpOverload):
            return True  # a Python function of the exporter's own on sizes
        if target in kept_whole or target in tables or lowerings.lookup(target) is not None:
            return True
        if _CHECKS.search(str(target)) or target._can_decompose():
            return True
        functional = _functional(torch, target)
        return functional is not None and known(functional)

    return known


def _functional(torch: Any, target: Any) -> Any:
    """What the exporter puts in the place of an operator that changes its argument."""
    name = target._schema.name.partition("::")[2]
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _once(issues: list[Issue]) -> list[Issue]:
    return list(dict.fromkeys(issues))
