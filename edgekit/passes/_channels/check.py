"""Whether a cut is right: the smaller network computes what the whole one does where nothing reads what was removed.

Graphs of dependencies can be wrong about code that slices, shuffles or reshapes; arithmetic is not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.program import TorchProgram
from edgekit.core.user_code import blame_user
from edgekit.passes._channels.cut import Removal, cut
from edgekit.passes._channels.groups import torch_
from edgekit.passes._graph import distance

_TOLERANCE = 1e-3


def wrong_groups(program: TorchProgram, removal: Removal) -> list[int]:
    """Which entries of a removal, taken alone, give a network that computes something else; none where all is right.

    Raises:
        PassError: The smaller network does not run, or only all entries together are wrong.
    """
    inputs = _inputs(program)
    if _is_right(program, removal, inputs):
        return []
    wrong = [number for number, one in enumerate(removal) if not _is_right(program, [one], inputs)]
    if not wrong:
        raise PassError("prune_channels: the smaller network does not compute what it should, whatever is left out.")
    return wrong


def runs_right(program: TorchProgram, removal: Removal) -> bool:
    """Whether the smaller network runs and computes what it should."""
    try:
        return _is_right(program, removal, _inputs(program))
    except PassError:
        return False


def _is_right(program: TorchProgram, removal: Removal, inputs: Mapping[str, Any]) -> bool:
    smaller = cut(copy.deepcopy(program.module), removal).eval()
    made = program.with_module(smaller)
    try:
        with blame_user("running the model with fewer channels"):
            answers = made.run(inputs)
    except ConfigError as error:
        raise _does_not_run(program, removal, inputs, error) from error
    whole = program.with_module(_without(program.module, smaller, removal))
    if any(answers[name].shape != value.shape for name, value in whole.run(inputs).items()):
        return False
    return distance(whole, made, inputs)[1] <= _TOLERANCE


def _does_not_run(program: TorchProgram, removal: Removal, inputs: Mapping[str, Any], error: ConfigError) -> PassError:
    """The error that names the layers whose channels the model's own code counts on."""
    guilty = list(removal)
    if len(removal) > 1:
        guilty = [one for one in removal if not _runs(program, [one], inputs)] or guilty
    paths = list(dict.fromkeys(path for group, _, _ in guilty for path in group.layers))
    named = ", ".join(f"'{path}'" for path in paths[:4]) + (", …" if len(paths) > 4 else "")
    return PassError(
        f"prune_channels: the model counts on all channels of {named}: {error.message}",
        f"Compute the size from the tensor, x.flatten(1) or x.shape, or leave the layer: skip: ['{paths[0]}']",
    )


def _runs(program: TorchProgram, removal: Removal, inputs: Mapping[str, Any]) -> bool:
    made = program.with_module(cut(copy.deepcopy(program.module), removal).eval())
    try:
        with blame_user("running the model with fewer channels"):
            made.run(inputs)
    except ConfigError:
        return False
    return True


def _inputs(program: TorchProgram) -> dict[str, Any]:
    """Random numbers in the shapes of the example inputs, which are often zeros; integers as they are."""
    import numpy as np

    generator = np.random.default_rng(0)
    random = {
        name: generator.standard_normal(value.shape).astype(value.dtype)
        if np.issubdtype(value.dtype, np.floating)
        else value
        for name, value in program.example_inputs.items()
    }
    answers = program.run(random)
    usable = all(np.isfinite(value).all() for value in answers.values() if np.issubdtype(value.dtype, np.floating))
    return random if usable else dict(program.example_inputs)


def _without(module: Any, smaller: Any, removal: Removal) -> Any:
    """The whole network, but nothing reads the removed channels, and norms over channels see the others only."""
    torch = torch_()
    nn = torch.nn
    whole = copy.deepcopy(module).eval()
    masked: dict[str, set[int]] = {}
    with torch.no_grad():
        for _, slices, _ in removal:
            for one in slices:
                layer = whole.get_submodule(one.path) if one.role != "parameter" else None
                if one.role == "in":
                    _forget(layer, one.indices)
                elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                    masked.setdefault(one.path, set()).update(one.indices)
    for path, gone in masked.items():
        whole.set_submodule(path, _masked(copy.deepcopy(smaller.get_submodule(path)), gone))
    return whole


def _forget(layer: Any, indices: tuple[int, ...]) -> None:
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    if getattr(layer, "transposed", False):
        weight[list(indices)] = 0
        return
    out, given = weight.shape[0] // groups, weight.shape[1]
    for channel in indices:
        number = channel // given
        weight[number * out : (number + 1) * out, channel % given] = 0


def _masked(norm: Any, gone: set[int]) -> Any:
    torch = torch_()
    axis = 1 if isinstance(norm, torch.nn.GroupNorm) else -1

    class Masked(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Any) -> Any:
            kept = torch.tensor([place for place in range(x.shape[axis]) if place not in gone])
            return torch.zeros_like(x).index_copy(axis, kept, self.norm(x.index_select(axis, kept)))

    return Masked()
