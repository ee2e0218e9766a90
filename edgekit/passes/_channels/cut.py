"""The cut: channels taken out of a module's tensors, what that changed as plain data, and the same shapes again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekit.core.errors import PassError
from edgekit.passes._channels.groups import Group, Slice, torch_

Removal = Sequence[tuple[Group, tuple[Slice, ...], int]]
"""Groups, the slices that each loses, and how many units these are."""


def cut(module: Any, removal: Removal) -> Any:
    """Take channels out of a module, in place.

    Args:
        module: The `nn.Module`, with the structure that the slices were found in.
        removal: What goes.

    Returns:
        The module.

    Raises:
        PassError: Groups of a grouped layer would not stay equal.
    """
    gone: dict[tuple[str, str, int], set[int]] = {}
    for _, slices, _ in removal:
        for one in slices:
            gone.setdefault((one.path, one.role, one.axis), set()).update(one.indices)
    for (path, role, axis), indices in gone.items():
        if role == "parameter":
            owner, _, name = path.rpartition(".")
            _shorten(module.get_submodule(owner), name, axis, indices)
        else:
            _cut_module(module.get_submodule(path), path, role, indices)
    for group, _, units in removal:
        for path, names in group.attributes.items():
            owner = module.get_submodule(path)
            for name, less in names.items():
                setattr(owner, name, getattr(owner, name) - less * units)
    return module


def _cut_module(layer: Any, path: str, role: str, gone: set[int]) -> None:
    nn = torch_().nn
    if isinstance(layer, nn.modules.conv._ConvNd):
        _cut_convolution(layer, path, role, gone)
    elif isinstance(layer, nn.Linear):
        _shorten(layer, "weight", 0 if role == "out" else 1, gone)
        if role == "out":
            _shorten(layer, "bias", 0, gone)
        _less(layer, "out_features" if role == "out" else "in_features", gone)
    elif isinstance(layer, nn.Embedding):
        _shorten(layer, "weight", 1, gone)
        _less(layer, "embedding_dim", gone)
    elif isinstance(layer, nn.LayerNorm):
        _shorten_all(layer, ("weight", "bias"), gone)
        layer.normalized_shape = (layer.normalized_shape[0] - len(gone),)
    elif isinstance(layer, nn.PReLU):
        if layer.num_parameters > 1:
            _shorten(layer, "weight", 0, gone)
            _less(layer, "num_parameters", gone)
    elif isinstance(layer, nn.GroupNorm):
        _shorten_all(layer, ("weight", "bias"), gone)
        _less(layer, "num_channels", gone)
    else:
        _shorten_all(layer, ("weight", "bias", "running_mean", "running_var"), gone)
        _less(layer, "num_features", gone)


def _cut_convolution(layer: Any, path: str, role: str, gone: set[int]) -> None:
    if role == "norm":
        _shorten_all(layer, ("weight", "bias"), gone)
        for name in ("in_channels", "out_channels", "groups"):
            _less(layer, name, gone)
        return
    channels = layer.out_channels if role == "out" else layer.in_channels
    in_group = channels // layer.groups
    places = {channel % in_group for channel in gone}
    per_group = [sum(channel // in_group == number for channel in gone) for number in range(layer.groups)]
    if len(set(per_group)) > 1 or (role == "in" and len(places) != per_group[0]):
        raise PassError(f"The groups of '{path}' would not stay equal.", f"prune_channels: {{skip: ['{path}']}}")
    if role == "out":
        _shorten(layer, "weight", 1 if layer.transposed else 0, gone)
        _shorten(layer, "bias", 0, gone)
        _less(layer, "out_channels", gone)
    else:
        _shorten(layer, "weight", 0 if layer.transposed else 1, places)
        _less(layer, "in_channels", gone)


def _less(layer: Any, name: str, gone: set[int]) -> None:
    setattr(layer, name, getattr(layer, name) - len(gone))


def _shorten_all(layer: Any, names: Iterable[str], gone: set[int]) -> None:
    for name in names:
        _shorten(layer, name, 0, gone)


def _shorten(owner: Any, name: str, axis: int, gone: set[int]) -> None:
    """Leave out places of one axis of a parameter or buffer, where there is one."""
    torch = torch_()
    tensor = getattr(owner, name, None)
    if tensor is None:
        return
    kept = torch.tensor([place for place in range(tensor.shape[axis]) if place not in gone], dtype=torch.long)
    _put(owner, name, tensor.detach().index_select(axis, kept).contiguous())


def _put(owner: Any, name: str, tensor: Any) -> None:
    old = getattr(owner, name)
    nn = torch_().nn
    setattr(owner, name, nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor)


def structure_of(before: Any, after: Any) -> dict[str, Any]:
    """What differs in the structure of two modules with the same paths, as plain data.

    Returns:
        `attributes`: path → name → number, or list of numbers; `tensors`: name → shape.
    """
    attributes: dict[str, dict[str, Any]] = {}
    modules = dict(before.named_modules())
    for path, module in after.named_modules():
        changed = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(module).items()
            if _is_size(value) and vars(modules[path]).get(name) != value
        }
        if changed:
            attributes[path] = changed
    was = _tensors(before)
    shapes = {name: list(one.shape) for name, one in _tensors(after).items() if one.shape != was[name].shape}
    return {"attributes": attributes, "tensors": shapes}


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_size(one) for one in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _tensors(module: Any) -> dict[str, Any]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def rebuild(module: Any, structure: Mapping[str, Any]) -> Any:
    """Give a fresh module the sizes that `structure_of` found, in place; the weights are loaded afterwards."""
    for path, names in structure["attributes"].items():
        owner = module.get_submodule(path)
        for name, value in names.items():
            setattr(owner, name, tuple(value) if isinstance(value, list | tuple) else value)
    for full, shape in structure["tensors"].items():
        path, _, name = full.rpartition(".")
        owner = module.get_submodule(path)
        _put(owner, name, getattr(owner, name).detach().new_zeros(tuple(shape)))
    return module
