"""What the graph of an exported program tells of its operators before a converter is called.

A backend says which operators its converter takes; here they are walked, taken apart where torch does so, and placed
in the person's own code.
"""

from __future__ import annotations

import operator as python_operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.backends.base import Issue
from edgekit.core.extras import require

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_VENDORED = ("/site-packages/", "/dist-packages/")
_CHECKS = re.compile(
    r"aten\.(_assert\w*|sym_\w+|_assert_tensor_metadata|lift_fresh_copy|detach_?|alias|item|_local_scalar_dense)\b"
)
"""What the exporter adds for itself, and what a converter drops or does with sizes."""
_FAST_PATHS = re.compile(r"mkldnn|cudnn|miopen|xnnpack|_for_cpu")
_WHY = "the check of a program's operators"
_OPAQUE = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
"""Operators on a graph of their own that stand for what is in it."""

Takes = Callable[[Any], bool]
"""Whether a converter takes the operator of a node."""


def calls(module: Any) -> Iterator[Any]:
    """The nodes of a graph module, and not of the graphs in it, that call an operator."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is not python_operator.getitem:
            yield node


def all_calls(module: Any) -> Iterator[Any]:
    """The same with those of the graphs in it: branches, loops, and what is run without gradients."""
    for part in module.modules():
        if hasattr(part, "graph"):
            yield from calls(part)


def place_of(node: Any) -> str:
    """The module's path and the line of source that a node comes from; empty where the program does not say."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = re.sub(r"^L\['self'\]\.?", "", str(stack[-1][0])) if stack else ""
    # The wrapper that gives a program its plain list of inputs and outputs.
    path = re.sub(r"^inner(\.|$)", "", path)
    frames = [(match["file"], match["line"]) for match in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    frames = [frame for frame in frames if not frame[0].startswith("<")]
    own = [frame for frame in frames if not any(part in frame[0] for part in _VENDORED)] or frames
    line = f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
    return ", ".join(part for part in (path, line) if part)


def values(value: Any) -> list[Any]:
    """The results of a node, as a list."""
    return list(value) if isinstance(value, tuple | list) else [value]


def is_complex(node: Any) -> bool:
    """Whether a node takes or gives complex numbers."""
    metas = [node.meta.get("val"), *(given.meta.get("val") for given in node.all_input_nodes)]
    found = [value for meta in metas for value in values(meta)]
    return any(value.dtype.is_complex for value in found if hasattr(value, "dtype"))


def is_shaped_by_data(node: Any) -> bool:
    """Whether the shape of a node's result is known only when it is run."""
    tensors = [value for value in values(node.meta.get("val")) if hasattr(value, "dtype")]
    return any(not isinstance(size, int) for value in tensors for size in value.shape)


def is_scalar_read(torch: Any, target: Any) -> bool:
    """Whether an operator takes a value out of a tensor."""
    return target in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


def is_control_flow(torch: Any, target: Any) -> bool:
    """Whether an operator runs one of several graphs, or one several times."""
    # torch has no public name for the class.
    return isinstance(target, torch._ops.HigherOrderOperator) and target.name() not in _OPAQUE


def functional(torch: Any, target: Any) -> Any:
    """What the exporter puts in the place of an operator that changes its argument; None where there is nothing."""
    name = target._schema.name.partition("::")[2]
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def once(issues: list[Issue]) -> list[Issue]:
    """Issues without their repetitions, in order."""
    return list(dict.fromkeys(issues))


def refused(
    exported: Any, takes: Takes, table: Mapping[Any, Any], reason: str, kept: frozenset[Any] = frozenset()
) -> list[Issue]:
    """The operators of a program that its converter does not take, nor what torch makes of them.

    An operator that changes its argument, and one that torch cannot take apart alone, is not suspected.

    Args:
        exported: The `torch.export.ExportedProgram`.
        takes: Whether the converter takes a node's operator.
        table: Decompositions that are done before the converter is called, by operator.
        reason: Why an operator cannot be.
        kept: Operators that are never suspected, whatever `takes` and `table` say.

    Returns:
        One issue a place.
    """
    torch = require("torch", "torch", _WHY)
    settled: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    issues = []
    for node in all_calls(exported.graph_module):
        # Whether an operator is taken can hang on the types of what it is given, and on nothing else that differs.
        key = (node.target, *(_types(given) for given in node.all_input_nodes))
        if key not in settled:
            settled[key] = tuple(_not_taken(torch, node, takes, table, kept))
        for target in settled[key]:
            within = "" if target == node.target else f", which {node.target} is made of"
            issues.append(Issue(str(target), reason + within, place_of(node), "Write it with other operators."))
    return once(issues)


def _types(node: Any) -> tuple[str, ...]:
    return tuple(str(getattr(value, "dtype", type(value))) for value in values(node.meta.get("val")))


def _not_taken(torch: Any, node: Any, takes: Takes, table: Mapping[Any, Any], kept: frozenset[Any]) -> Iterator[Any]:
    """Operators that are not taken: the node's own, or those that it is taken apart into."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or _CHECKS.search(str(target)) or target in kept:
        return  # a Python function on sizes, a graph of its own, or what is no work
    if target._schema.is_mutable:
        return  # exporters put another operator in its place; what torch makes of it alone is not what they see
    if takes(node):
        return
    if target in table or target._can_decompose():
        for part in _parts(torch, node, table):
            # Parts are what torch ends with: those that it could take apart further are no operators of their own.
            own = isinstance(part.target, torch._ops.OpOverload) and not part.target._can_decompose()
            if own and part.target not in table and _is_suspect(part, takes, kept):
                yield part.target
    elif _is_suspect(node, takes, kept):
        yield target


def _is_suspect(node: Any, takes: Takes, kept: frozenset[Any]) -> bool:
    target = node.target
    if target in kept or target._schema.is_mutable or _CHECKS.search(str(target)) or _FAST_PATHS.search(str(target)):
        return False
    return not takes(node)


def _parts(torch: Any, node: Any, table: Mapping[Any, Any]) -> list[Any]:
    """What torch takes an operator apart into, told from types and shapes; empty where it cannot alone."""
    make_fx = require("torch.fx.experimental.proxy_tensor", "torch", _WHY).make_fx
    given = node.all_input_nodes
    # By the table first: of an operator that is there, torch itself may take a path of this machine's own.
    apart = table.get(node.target, node.target)

    def call(*tensors: Any) -> Any:
        by_node = dict(zip(given, tensors, strict=True))
        args, kwargs = (torch.fx.node.map_arg(part, by_node.__getitem__) for part in (node.args, node.kwargs))
        return apart(*args, **kwargs)

    try:
        with torch.no_grad():
            module = make_fx(call, decomposition_table=dict(table))(*(one.meta["val"] for one in given))
    except Exception:  # noqa: BLE001  # it wants its surroundings: the conversion will show whether it is taken
        return []
    module.graph.eliminate_dead_code()
    return list(calls(module))
