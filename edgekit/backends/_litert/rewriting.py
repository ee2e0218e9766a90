"""Operators of an exported program's module, replaced by functions of ours before litert-torch traces it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.core.extras import require


def replace_calls(module: Any, replacements: Mapping[Any, Callable[..., Any]]) -> int:
    """Have a module call a function in the place of an operator, in place; how many calls there were.

    Args:
        module: The exported program's module, with those inside it.
        replacements: By operator, a function that takes what the operator takes, by position or name.
    """
    torch = require("torch", "litert-convert", "the backend litert")
    count = 0
    for part in module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        found = [node for node in part.graph.nodes if node.op == "call_function" and node.target in replacements]
        for node in found:
            node.target = replacements[node.target]
        if found:
            part.recompile()
        count += len(found)
    return count
