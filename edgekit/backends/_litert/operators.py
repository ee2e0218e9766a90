"""Which operators of an exported program litert-torch cannot take, with the place of each in the person's own code."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edgekit.backends import _graph
from edgekit.backends._graph import place_of
from edgekit.backends.base import Issue, listed
from edgekit.core.extras import require

__all__ = ["listed", "place_of", "unsupported_operators", "without_lowering"]

_EXTRA = "litert-convert"
_WHY = "the backend litert"
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
    for node in _graph.calls(exported.graph_module):
        issue = _issue(torch, node, known)
        if issue is not None:
            issues.append(issue)
    return _graph.once(issues)


def without_lowering(exported: Any) -> list[Issue]:
    """The same after torch has taken the program apart: exact, and as slow as the first half of a conversion."""
    registry = require("litert_torch.backend.lowerings.registry", _EXTRA, _WHY)
    decompositions = require("litert_torch.fx_infra.decomp", _EXTRA, _WHY)
    program = exported.run_decompositions(decompositions.pre_lower_decomp())
    return _graph.once(
        [
            Issue(str(node.target), "litert-torch has no lowering for it", place_of(node))
            for node in _graph.calls(program.graph_module)
            if registry.lookup(node.target) is None
        ]
    )


def _issue(torch: Any, node: Any, known: Callable[[Any], bool]) -> Issue | None:
    target, place = node.target, place_of(node)
    if isinstance(target, torch._ops.HigherOrderOperator):  # torch has no public name for the class
        if not _graph.is_control_flow(torch, target):
            return None
        return Issue(
            str(target), "control flow that depends on the data", place, "Both branches must be computed: torch.where."
        )
    if _graph.is_shaped_by_data(node):
        return Issue(str(target), _DATA_DEPENDENT, place, "Give the result a fixed size: a mask, topk, or padding.")
    if _graph.is_scalar_read(torch, target):
        return Issue(str(target), "it reads a value of a tensor into the program", place, "Keep it a tensor.")
    if _graph.is_complex(node) and not _COMPLEX_TAKEN.search(str(target)):
        return Issue(str(target), "it is complex", place, "Compute real and imaginary parts apart.")
    if not known(target):
        return Issue(str(target), "litert-torch has no lowering for it", place, "Write it with other operators.")
    return None


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
        functional = _graph.functional(torch, target)
        return functional is not None and known(functional)

    return known
