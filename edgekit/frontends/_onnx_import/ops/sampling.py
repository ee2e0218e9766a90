"""Padding, and sampling of images at computed places."""

from __future__ import annotations

from edgekit.frontends._onnx_import.call import Call, axis_of
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import F, Value, np, torch
from edgekit.frontends._onnx_import.registry import handles

_NUMPY_MODE = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
_TORCH_MODE = {"reflect": "reflect", "edge": "replicate"}
_IMAGE = 4
_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@handles("Pad", since=11)
def pad(call: Call, x: Value, pads: Value, value: Value = None, axes: Value = None) -> Value:
    """Padding by a constant or by the tensor's own values; negative padding crops."""
    amounts = call.known_ints(1) or []
    along = [axis_of(a, x.ndim) for a in (call.known_ints(3) or range(x.ndim))]
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(along):
        before[axis], after[axis] = amounts[i], amounts[i + len(along)]
    mode = call.attr("mode", "constant")
    if mode == "constant":
        fill = call.known(2)
        return _constant_pad(x, before, after, 0 if fill is None or not fill.numel() else fill.reshape(-1)[0].item())
    if mode not in _NUMPY_MODE:
        raise Refused(f"it has an unknown mode '{mode}'")
    if _torch_can(x, before, after, mode):
        return F.pad(x, [before[-1], after[-1], before[-2], after[-2]][: 2 * (x.ndim - 2)], mode=_TORCH_MODE[mode])
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            x = _index_pad(x, axis, before[axis], after[axis], mode)
    return x


def _constant_pad(x: Value, before: list[int], after: list[int], fill: float) -> Value:
    if not any((*before, *after)):
        return x
    pairs = [n for axis in reversed(range(x.ndim)) for n in (before[axis], after[axis])]
    while len(pairs) > 2 and pairs[-2:] == [0, 0]:  # one pair has to stay
        pairs = pairs[:-2]
    return F.pad(x, pairs, value=fill)


def _torch_can(x: Value, before: list[int], after: list[int], mode: str) -> bool:
    """Whether it is a padding of an image's last two axes, within what torch allows."""
    if mode not in _TORCH_MODE or x.ndim != _IMAGE or any((*before[:-2], *after[:-2])) or not x.is_floating_point():
        return False
    amounts = (*before, *after)
    sizes = (*x.shape, *x.shape)
    return all(0 <= n < size for n, size in zip(amounts, sizes, strict=True))


def _index_pad(x: Value, axis: int, before: int, after: int, mode: str) -> Value:
    places = np.pad(np.arange(x.shape[axis]), (max(before, 0), max(after, 0)), mode=_NUMPY_MODE[mode])
    places = places[max(-before, 0) : len(places) - max(-after, 0)]
    return torch.index_select(x, axis, torch.from_numpy(np.ascontiguousarray(places)))


@handles("GridSample")
def grid_sample(call: Call, x: Value, grid: Value) -> Value:
    """An image sampled at the places of a grid."""
    mode = call.attr("mode", "linear")
    padding, align = call.attr("padding_mode", "zeros"), bool(call.attr("align_corners", 0))
    return F.grid_sample(x, grid, mode=_GRID_MODES.get(mode, mode), padding_mode=padding, align_corners=align)


@handles("AffineGrid")
def affine_grid(call: Call, theta: Value, size: Value) -> Value:
    """The grid of an affine map."""
    return F.affine_grid(theta, call.known_ints(1), align_corners=bool(call.attr("align_corners", 0)))
