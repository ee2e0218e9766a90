"""Normalization: modules where scale and bias are constants."""

from __future__ import annotations

from typing import Any

from edgekit.frontends._onnx_import.call import Call, axis_of, is_known
from edgekit.frontends._onnx_import.dtypes import torch_dtype
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import F, Value, nn, torch
from edgekit.frontends._onnx_import.registry import handles

_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_FLOAT = 1


def _affine(module: Any, weight: Value, bias: Value) -> Any:
    module.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.contiguous())
    return module


@handles("BatchNormalization")
def batch_norm(call: Call, x: Value, scale: Value, bias: Value, mean: Value, var: Value) -> Value:
    """Normalization by stored statistics."""
    if call.attr("training_mode", 0):
        raise Refused("it is in training mode; export the model in evaluation mode")
    eps = call.attr("epsilon", 1e-5)
    if (
        is_known(scale, bias, mean, var)
        and x.ndim in _BATCH
        and {t.dtype for t in (scale, bias, mean, var)} == {x.dtype}
    ):
        module = _BATCH[x.ndim](x.shape[1], eps=eps, momentum=1 - call.attr("momentum", 0.9))
        module.running_mean, module.running_var = mean.clone(), var.clone()
        return call.module(_affine(module, scale, bias), x)
    shape = (1, -1, *[1] * (x.ndim - 2))
    factor = scale / torch.sqrt(var + eps)
    y = (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    return y.to(x.dtype)


@handles("InstanceNormalization")
def instance_norm(call: Call, x: Value, scale: Value, bias: Value) -> Value:
    """Normalization of each channel of each item."""
    eps = call.attr("epsilon", 1e-5)
    if is_known(scale, bias) and x.ndim in _INSTANCE:
        module = _INSTANCE[x.ndim](x.shape[1], eps=eps, affine=True)
        return call.module(_affine(module, scale, bias), x)
    return F.instance_norm(x, weight=scale, bias=bias, eps=eps)


@handles("LayerNormalization")
def layer_norm(call: Call, x: Value, scale: Value, bias: Value = None) -> tuple[Value, ...]:
    """Normalization of the last axes."""
    axis, eps = axis_of(call.attr("axis", -1), x.ndim), call.attr("epsilon", 1e-5)
    normalized = tuple(x.shape[axis:])
    if call.wants(1) or call.wants(2) or not _fits(scale, normalized) or not _fits(bias, normalized):
        return _layer_norm_in_full(call, x, scale, bias, axis, eps)
    if not is_known(scale, bias):
        return (F.layer_norm(x, normalized, scale, bias, eps),)
    module = nn.LayerNorm(normalized, eps=eps, bias=bias is not None)
    return (call.module(_affine(module, scale, bias), x),)


def _fits(value: Value, normalized: tuple[int, ...]) -> bool:
    return value is None or tuple(value.shape) == normalized


def _layer_norm_in_full(
    call: Call, x: Value, scale: Value, bias: Value, axis: int, eps: float
) -> tuple[Value, Value, Value]:
    axes = tuple(range(axis, x.ndim))
    wide = x.to(torch_dtype(call.attr("stash_type", _FLOAT)))
    mean = torch.mean(wide, axes, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt(torch.mean(centred * centred, axes, keepdim=True) + eps)
    y = (centred * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@handles("RMSNormalization")
def rms_norm(call: Call, x: Value, scale: Value) -> Value:
    """Division by the root mean square of the last axes."""
    axis, eps = axis_of(call.attr("axis", -1), x.ndim), call.attr("epsilon", 1e-5)
    normalized = tuple(x.shape[axis:])
    if is_known(scale) and _fits(scale, normalized) and x.dtype == torch.float32:
        return call.module(_affine(nn.RMSNorm(normalized, eps=eps), scale, None), x)
    wide = x.to(torch_dtype(call.attr("stash_type", _FLOAT)))
    mean = torch.mean(wide * wide, tuple(range(axis, x.ndim)), keepdim=True)
    return (wide * torch.rsqrt(mean + eps)).to(x.dtype) * scale


@handles("GroupNormalization")
def group_norm(call: Call, x: Value, scale: Value, bias: Value) -> Value:
    """Normalization of groups of channels; opset 18 has one scale a group, 21 one a channel."""
    groups, eps = call.attr("num_groups"), call.attr("epsilon", 1e-5)
    channels = x.shape[1]
    if scale.shape[0] != channels:
        scale = torch.repeat_interleave(scale, channels // groups)
        bias = torch.repeat_interleave(bias, channels // groups)
    if not is_known(scale, bias):
        return F.group_norm(x, groups, scale, bias, eps)
    return call.module(_affine(nn.GroupNorm(groups, channels, eps=eps), scale, bias), x)


@handles("LpNormalization")
def lp_normalization(call: Call, x: Value) -> Value:
    """Division by the p-norm along an axis; 0 where the norm is 0."""
    axis, p = call.attr("axis", -1), call.attr("p", 2)
    total = torch.sum(torch.abs(x) if p == 1 else x * x, axis, keepdim=True)
    norm = total if p == 1 else torch.sqrt(total)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@handles("LRN")
def local_response_norm(call: Call, x: Value) -> Value:
    """Division by the energy of neighbouring channels."""
    size, alpha, beta = call.attr("size"), call.attr("alpha", 1e-4), call.attr("beta", 0.75)
    bias, channels = call.attr("bias", 1.0), x.shape[1]
    if size % 2:
        return F.local_response_norm(x, size, alpha, beta, bias)
    before, after = (size - 1) // 2, size // 2
    energy = F.pad(x * x, [0, 0] * (x.ndim - 2) + [before, after])
    total = sum(torch.narrow(energy, 1, i, channels) for i in range(size))
    return x / (bias + total * (alpha / size)) ** beta
