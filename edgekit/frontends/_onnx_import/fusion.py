"""Clean-up of a finished graph: a constant added to a layer's result is that layer's bias."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from edgekit.frontends._onnx_import.libs import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def merge_biases(root: Any, graph: Any, shapes: Mapping[Any, tuple[int, ...]]) -> None:
    """Give linear layers and convolutions without a bias the constant that is added behind them.

    Exporters write `x @ W + b` as two nodes; passes and int8 converters look for one layer.

    Args:
        root: Holds the layers and the constants.
        graph: The fx graph, changed in place.
        shapes: Shape of each node's value.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not operator.add or node.kwargs:
            continue
        for layer, constant in (node.args, tuple(reversed(node.args))):
            if _is_bias(root, layer, constant, shapes):
                root.get_submodule(layer.target).bias = nn.Parameter(
                    getattr(root, constant.target).detach().reshape(-1).clone()
                )
                node.replace_all_uses_with(layer)
                graph.erase_node(node)
                if not constant.users:
                    graph.erase_node(constant)
                break


def _is_bias(root: Any, layer: Any, constant: Any, shapes: Mapping[Any, tuple[int, ...]]) -> bool:
    if getattr(layer, "op", "") != "call_module" or getattr(constant, "op", "") != "get_attr" or len(layer.users) != 1:
        return False
    module = root.get_submodule(layer.target)
    if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)) or module.bias is not None:
        return False
    if getattr(root, constant.target).dtype != module.weight.dtype:
        return False
    result, added = shapes[layer], shapes[constant]
    # One number for each channel: sizes of 1 everywhere else.
    axis = 1 if isinstance(module, _CONVOLUTIONS) else len(result) - 1
    wanted = tuple(size if i == axis else 1 for i, size in enumerate(result))
    return (*[1] * (len(result) - len(added)), *added) == wanted
