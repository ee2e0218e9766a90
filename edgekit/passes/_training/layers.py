"""The layers of a program whose weights can be put on a grid, and how many bits each gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.core.errors import PassError
from edgekit.core.extras import require
from edgekit.core.layer_paths import fits, no_layer
from edgekit.core.program import TORCH_EXTRA, TorchProgram

_AXES = {
    "aten.conv1d.default": 0,
    "aten.conv1d.padding": 0,
    "aten.conv2d.default": 0,
    "aten.conv2d.padding": 0,
    "aten.conv3d.default": 0,
    "aten.conv3d.padding": 0,
    "aten.linear.default": 0,
    "aten.conv_transpose1d.default": 1,
    "aten.conv_transpose2d.input": 1,
    "aten.conv_transpose3d.input": 1,
}
"""Operators with weights, and the axis of the weight that counts output channels."""
_FUSED = ("aten.batch_norm", "aten.relu", "aten.hardtanh", "aten.clamp", "aten._native_batch_norm")
"""What runtimes compute within the layer before it: between the two there is no tensor that could be rounded."""


@dataclass(frozen=True)
class Layer:
    """One weight that can be put on a grid.

    Attributes:
        path: The path of the module that has it.
        parameter: Its name in the module.
        axis: The axis that counts output channels.
        plain: Whether the module is torch's own convolution or linear layer, whose call is the operator.
        fused: Whether runtimes compute what comes next within the layer.
    """

    path: str
    parameter: str
    axis: int
    plain: bool
    fused: bool

    @property
    def name(self) -> str:
        """The parameter's name in the whole module."""
        return f"{self.path}.{self.parameter}".lstrip(".")

    @property
    def key(self) -> str:
        """What grids and backends call it: the module's path; with the parameter where that is not `weight`."""
        return self.path if self.parameter == "weight" else self.name


def layers_of(program: TorchProgram) -> tuple[list[Layer], list[str]]:
    """The layers in calling order, and a note for each weight of theirs that has to stay as it is."""
    parameters = program.exported.graph_signature.inputs_to_parameters
    shared = _shared(program.module)
    found: dict[str, Layer] = {}
    notes = []
    for node in program.exported.graph.nodes:
        axis = _AXES.get(str(node.target)) if node.op == "call_function" else None
        if axis is None:
            continue
        name = parameters.get(getattr(node.args[1], "name", ""), "").removeprefix("inner.")
        path, _, parameter = name.rpartition(".")
        stack = node.meta.get("nn_module_stack") or {"": ("?", "")}
        if not name:
            notes.append(f"'{next(reversed(stack.values()))[0].removeprefix('inner.')}' stays: it computes its weight")
        elif name in shared:
            notes.append(f"'{path}' stays: its weight is shared with '{shared[name]}'")
        elif axis == 1 and program.module.get_submodule(path).groups > 1:
            notes.append(f"'{path}' stays: it is a grouped transposed convolution")
        else:
            module = program.module.get_submodule(path)
            fused = any(str(user.target).startswith(_FUSED) for user in node.users)
            fused = fused or (name in found and found[name].fused)
            found[name] = Layer(path, parameter, axis, parameter == "weight" and _is_plain(module), fused)
    return list(found.values()), notes


def _shared(module: Any) -> dict[str, str]:
    """Parameters that have more than one name, with another of their names."""
    names = list(module.named_parameters(remove_duplicate=False))
    count = Counter(id(parameter) for _, parameter in names)
    return {
        name: next(other for other, same in names if same is parameter and other != name).rpartition(".")[0]
        for name, parameter in names
        if count[id(parameter)] > 1
    }


def _is_plain(module: Any) -> bool:
    nn = require("torch", TORCH_EXTRA, "quantization-aware training").nn
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


def bits_by_layer(
    layers: Sequence[Layer],
    bits: int,
    *,
    keep_first_last: bool,
    keep: Sequence[str] = (),
    overrides: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """How many bits each layer gets, by its key; layers that stay as they are have none.

    Args:
        layers: The layers, in calling order.
        bits: For a layer that nothing else is said of.
        keep_first_last: Whether the first and the last layer get 8 bits where the others get fewer than 4.
        keep: Layers that stay float, by path; `*` stands for any part of it, a module's path for all within it.
        overrides: Bits by path, the same way; the last that fits decides.

    Raises:
        ConfigError: A path fits no layer; the nearest is offered.
        PassError: No layer is left, or none that gets the bits asked for.
    """
    found = {layer.key: bits for layer in layers}
    if keep_first_last and bits < 4 and layers:
        found |= {layers[0].key: 8, layers[-1].key: 8}
    chosen = {key: own for pattern, own in (overrides or {}).items() for key in _fitting(pattern, found, "overrides")}
    kept = {key for pattern in keep for key in _fitting(pattern, found, "keep")}
    found = {key: own for key, own in (found | chosen).items() if key not in kept}
    if not found:
        raise PassError("The pass 'quantize_aware' has no layer left to quantize: `keep` names all of them.")
    if bits not in found.values():
        ends = "the first and the last get 8 bits, and " if keep_first_last and bits < 4 else ""
        raise PassError(
            f"The pass 'quantize_aware' has no layer left for {bits} bits: of {len(layers)} layers with weights,"
            f" {ends}the others are named in `keep` or `overrides`.",
            "Write keep_first_last: false" if ends else "Name fewer layers.",
        )
    return found


def _fitting(pattern: str, keys: Mapping[str, int], option: str) -> list[str]:
    found = [key for key in keys if fits(key, pattern)]
    if not found:
        raise no_layer(f"'{pattern}' in `{option}` of quantize_aware fits no layer with weights", pattern, keys)
    return found
