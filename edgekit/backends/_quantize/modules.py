"""Which module of the torch program a weight in a converted file comes from, told by the weight itself.

Converters rename, transpose, and multiply a batch norm into the weights before it. What stays is how large the weights
of one output channel are among each other: that is compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.core.layer_paths import fits, no_layer

if TYPE_CHECKING:
    from edgekit.core.task import Array

_CLOSE = 1e-4
"""How far two channels' shares may be apart: rounding in float32, not another layer."""
_SAMPLED = 4096
"""How many channels and weights of a large layer are enough to know it by."""


@dataclass(frozen=True)
class ModuleWeights:
    """The weights of one module.

    Attributes:
        path: The torch module path.
        weight: As the program has it.
        axis: The axis that counts output channels.
    """

    path: str
    weight: Array
    axis: int = 0


def modules_of(exported: Any) -> list[ModuleWeights]:
    """The modules of an exported program that have weights of two dimensions or more, in calling order.

    Args:
        exported: The `torch.export.ExportedProgram`.

    Returns:
        One entry a parameter named `….weight` (recurrent layers: `….weight_ih_l0` and the like, under that whole path).
    """
    transposed = _transposed(exported)
    found = []
    for name, parameter in exported.state_dict.items():
        if parameter.dim() < 2 or not parameter.is_floating_point():
            continue
        path = name.removeprefix("inner.").removesuffix(".weight")
        found.append(ModuleWeights(path, parameter.detach().numpy(), 1 if name in transposed else 0))
    return found


def _transposed(exported: Any) -> set[str]:
    """Parameters of transposed convolutions: their output channels stand second."""
    by_node = exported.graph_signature.inputs_to_parameters
    return {
        by_node[given.name]
        for node in exported.graph_module.graph.nodes
        if "conv_transpose" in str(node.target)
        for given in node.all_input_nodes[1:2]
        if given.name in by_node
    }


class Finder:
    """Finds the module of a weight.

    Args:
        modules: The program's modules.
    """

    def __init__(self, modules: Sequence[ModuleWeights]) -> None:
        self._known = [(module.path, _shares(module.weight, module.axis)) for module in modules]

    def path_of(self, weight: Array, axis: int) -> str | None:
        """The path of the module that a weight comes from; None where there is none like it.

        Args:
            weight: Real numbers, in any order of axes but with the output channels along `axis`.
            axis: That axis. For a layer whose groups of channels a converter has rearranged, any axis that counts them.
        """
        import numpy as np

        shares = _shares(weight, axis)
        best, distance = None, _CLOSE
        for path, known in self._known:
            if (
                known.shape == shares.shape
                and (apart := float(np.abs(np.subtract(known, shares)).max(initial=0.0))) < distance
            ):
                best, distance = path, apart
        return best


def _shares(weight: Array, axis: int) -> Array:
    """Sizes of each channel's weights, sorted, over the channel's norm; channels in their own order."""
    import numpy as np

    rows = np.moveaxis(np.asarray(weight, np.float64), axis, 0)
    rows = np.abs(rows.reshape(rows.shape[0], -1))[:_SAMPLED]
    rows = np.sort(rows, axis=1)[:, :: max(1, math.ceil(rows.shape[1] / _SAMPLED))]
    norms = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.asarray(rows / np.where(norms > 0, norms, 1.0))


def schemes_by_module(paths: Collection[str], overrides: Mapping[str, str], default: str) -> dict[str, str]:
    """The scheme of each module: the last override that fits its path, or a module that it is part of.

    Args:
        paths: The program's module paths that have weights.
        overrides: Schemes by path; `*` stands for any part.
        default: The scheme of a module that no override fits.

    Raises:
        ConfigError: An override fits no module; the nearest path is offered.
    """
    found = dict.fromkeys(paths, default)
    for pattern, scheme in overrides.items():
        named = [path for path in paths if fits(path, pattern)]
        if not named:
            raise no_layer(f"The override '{pattern}' fits no layer with weights", pattern, paths)
        found.update(dict.fromkeys(named, scheme))
    return found
