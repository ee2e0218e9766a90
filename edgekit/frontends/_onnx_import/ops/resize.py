"""Resize: torch's `interpolate` where it computes exactly the same, else indices and small matrices."""

from __future__ import annotations

from typing import Any

from edgekit.frontends._onnx_import.call import Call, axis_of
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.interpolation import AxisResize
from edgekit.frontends._onnx_import.libs import F, Value, np, torch
from edgekit.frontends._onnx_import.registry import handles

_TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_TORCH_CUBIC = {4: "bicubic"}
_TORCH_COEFFICIENT = -0.75
_SAME = 1e-6


@handles("Resize", since=11)
def resize(call: Call, x: Value, roi: Value = None, scales: Value = None, sizes: Value = None) -> Value:
    """Nearest, linear or cubic, in all of ONNX's coordinate systems."""
    plan = _plan(call, x)
    mode = call.attr("mode", "nearest")
    if all(axis.unchanged for axis in plan):
        return x
    result = _nearest(call, x, plan) if mode == "nearest" else _weighted(call, x, plan, mode)
    return _extrapolated(call, result, plan)


def _plan(call: Call, x: Value) -> list[AxisResize]:
    """What happens to each axis."""
    axes = [axis_of(a, x.ndim) for a in call.attr("axes", list(range(x.ndim)))]
    scales, sizes = call.known(2), call.known_ints(3)
    if scales is not None and scales.numel():
        factors = [float(s) for s in scales.reshape(-1).tolist()]
        outputs = [int(np.floor(f * x.shape[a])) for f, a in zip(factors, axes, strict=True)]
    elif sizes:
        factors = [s / x.shape[a] for s, a in zip(sizes, axes, strict=True)]
        outputs = sizes
        policy = call.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(axes)
            outputs = [int(factor * x.shape[a] + 0.5) for a in axes]
    else:
        raise Refused("it has neither scales nor sizes")
    coordinates = call.attr("coordinate_transformation_mode", "half_pixel")
    regions = _regions(call, len(axes)) if coordinates == "tf_crop_and_resize" else [(0.0, 1.0)] * len(axes)
    plan = [AxisResize(size, size, 1.0, "half_pixel") for size in x.shape]
    for axis, factor, count, region in zip(axes, factors, outputs, regions, strict=True):
        plan[axis] = AxisResize(x.shape[axis], count, factor, coordinates, region)
    return plan


def _regions(call: Call, count: int) -> list[tuple[float, float]]:
    roi = call.known(1)
    if roi is None or roi.numel() != 2 * count:
        raise Refused("it crops and resizes without a region (roi)")
    values = [float(v) for v in roi.tolist()]
    return list(zip(values[:count], values[count:], strict=True))


def _spatial_only(x: Value, plan: list[AxisResize]) -> bool:
    """Whether torch's `interpolate` takes such axes."""
    return x.ndim in _TORCH_LINEAR and plan[0].unchanged and plan[1].unchanged and x.is_floating_point()


def _nearest(call: Call, x: Value, plan: list[AxisResize]) -> Value:
    rounding = call.attr("nearest_mode", "round_prefer_floor")
    indices = [axis.nearest(rounding) for axis in plan]
    if _spatial_only(x, plan):
        for mode, offset in (("nearest", 0.0), ("nearest-exact", 0.5)):
            if all(np.array_equal(i, _torch_nearest(a, offset)) for i, a in zip(indices[2:], plan[2:], strict=True)):
                return F.interpolate(x, size=tuple(a.outputs for a in plan[2:]), mode=mode)
    for axis, (index, step) in enumerate(zip(indices, plan, strict=True)):
        if not step.unchanged:
            x = torch.index_select(x, axis, torch.from_numpy(index))
    return x


def _torch_nearest(axis: AxisResize, offset: float) -> Any:
    scale = np.float32(axis.size) / np.float32(axis.outputs)
    at = np.floor((np.arange(axis.outputs, dtype=np.float32) + np.float32(offset)) * scale)
    return np.minimum(at.astype(np.int64), axis.size - 1)


def _weighted(call: Call, x: Value, plan: list[AxisResize], mode: str) -> Value:
    cubic = call.attr("cubic_coeff_a", -0.75) if mode == "cubic" else None
    antialias, exclude = bool(call.attr("antialias", 0)), bool(call.attr("exclude_outside", 0))
    matrices = [axis.matrix(cubic, antialias, exclude) for axis in plan]
    names = _TORCH_LINEAR if cubic is None else _TORCH_CUBIC
    if _spatial_only(x, plan) and x.ndim in names:
        for align in (False, True):
            if all(_torch_does(a, m, cubic, align) for a, m in zip(plan[2:], matrices[2:], strict=True)):
                size = tuple(a.outputs for a in plan[2:])
                return F.interpolate(x, size=size, mode=names[x.ndim], align_corners=align)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(wide) if x.dtype != wide else x
    for axis, (matrix, step) in enumerate(zip(matrices, plan, strict=True)):
        if not step.unchanged:
            y = along(y, axis, torch.from_numpy(matrix).to(wide))
    if x.is_floating_point():
        return y if y.dtype == x.dtype else y.to(x.dtype)
    info = torch.iinfo(x.dtype)
    return torch.clamp(y, info.min, info.max).to(x.dtype)


def _torch_does(axis: AxisResize, matrix: Any, cubic: float | None, align: bool) -> bool:
    coordinates = "align_corners" if align else "half_pixel"
    own = AxisResize(axis.size, axis.outputs, axis.outputs / axis.size, coordinates)
    coefficient = None if cubic is None else _TORCH_COEFFICIENT
    return bool(np.allclose(own.matrix(coefficient), matrix, rtol=0, atol=_SAME))


def along(x: Value, axis: int, matrix: Any) -> Value:
    """`matrix` times the vectors along one axis."""
    if axis == x.ndim - 2:
        return torch.matmul(matrix, x)
    if axis == x.ndim - 1:
        return torch.matmul(x, matrix.t())
    return torch.movedim(torch.matmul(torch.movedim(x, axis, -1), matrix.t()), -1, axis)


def _extrapolated(call: Call, y: Value, plan: list[AxisResize]) -> Value:
    mask = torch.zeros([1] * len(plan), dtype=torch.bool)
    for axis, step in enumerate(plan):
        outside = torch.from_numpy(step.outside())
        mask = mask | outside.reshape([-1 if i == axis else 1 for i in range(len(plan))])
    if not bool(mask.any()):
        return y
    return torch.where(mask, torch.tensor(call.attr("extrapolation_value", 0.0), dtype=y.dtype), y)
