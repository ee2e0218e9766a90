"""Quantized values, computed as what they stand for: rounded in float32, kept in their integer types."""

from __future__ import annotations

from typing import Any

from edgekit.frontends._onnx_import.call import Call, axis_of
from edgekit.frontends._onnx_import.dtypes import torch_dtype
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import Value, torch
from edgekit.frontends._onnx_import.ops.convolution import convolved
from edgekit.frontends._onnx_import.registry import handles


def _spread(value: Value, x: Value, axis: int, block: int) -> Value:
    """A scale or zero point in a shape that broadcasts with `x`: one for all, one a channel, or one a block."""
    if value.numel() == 1 and not block:
        return value.reshape(())
    axis = axis_of(axis, x.ndim)
    if block:
        repeated = torch.repeat_interleave(value, block, dim=axis)
        return torch.narrow(repeated, axis, 0, x.shape[axis])
    if value.ndim != 1:
        raise Refused(f"its scale has the shape {list(value.shape)}; expected one number, or one a channel")
    return value.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def quantized(x: Value, scale: Value, zero: Value, dtype: Any) -> Value:
    """Real numbers as integers, the nearest even one, clipped to the type."""
    info = torch.iinfo(dtype)
    y = torch.round(x / scale)
    if zero is not None:
        y = y + zero.to(y.dtype)
    return torch.clamp(y, info.min, info.max).to(dtype)


def dequantized(x: Value, scale: Value, zero: Value) -> Value:
    """The real numbers that integers stand for."""
    y = x.to(torch.float32)
    if zero is not None:
        y = y - zero.to(torch.float32)
    return y * scale.to(torch.float32)


@handles("QuantizeLinear")
def quantize_linear(call: Call, x: Value, scale: Value, zero: Value = None) -> Value:
    """Quantization by tensor, by axis or by block."""
    code = call.attr("output_dtype", 0)
    dtype = torch_dtype(code) if code else (zero.dtype if zero is not None else torch.uint8)
    if dtype.is_floating_point:
        raise Refused(f"it quantizes to {dtype}, which no backend takes")
    axis, block = call.attr("axis", 1), call.attr("block_size", 0)
    scale = _spread(scale, x, axis, block)
    zero = None if zero is None else _spread(zero, x, axis, block)
    wide = torch.float32 if not call.attr("precision", 0) else torch_dtype(call.attr("precision"))
    return quantized(x.to(wide), scale.to(wide), zero, dtype)


@handles("DequantizeLinear")
def dequantize_linear(call: Call, x: Value, scale: Value, zero: Value = None) -> Value:
    """Dequantization by tensor, by axis or by block; of constants it folds into float weights."""
    axis, block = call.attr("axis", 1), call.attr("block_size", 0)
    code = call.attr("output_dtype", 0)
    dtype = torch_dtype(code) if code else scale.dtype
    spread = _spread(scale, x, axis, block)
    zero = None if zero is None else _spread(zero, x, axis, block)
    return dequantized(x, spread, zero).to(dtype)


@handles("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Value) -> tuple[Value, Value, Value]:
    """uint8 with the range of the data itself."""
    zero = torch.zeros((), dtype=torch.float32)
    low, high = torch.minimum(torch.amin(x), zero), torch.maximum(torch.amax(x), zero)
    scale = (high - low) / 255.0
    point = torch.clamp(torch.round(-low / scale), 0, 255).to(torch.uint8)
    return quantized(x, scale, point, torch.uint8), scale, point


@handles("QLinearMatMul")
def qlinear_matmul(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> Value:
    """Matrix product of quantized matrices."""
    left = dequantized(a, _spread(a_scale, a, -2, 0), _spread(a_zero, a, -2, 0))
    right = dequantized(b, _spread(b_scale, b, -1, 0), _spread(b_zero, b, -1, 0))
    return quantized(torch.matmul(left, right), y_scale.to(torch.float32), y_zero, y_zero.dtype)


@handles("QLinearConv")
def qlinear_conv(
    call: Call,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    weight: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Value = None,
) -> Value:
    """Convolution of quantized images."""
    real = dequantized(x, x_scale, x_zero)
    kernel = dequantized(weight, _spread(w_scale, weight, 0, 0), _spread(w_zero, weight, 0, 0))
    if bias is not None:
        bias = bias.to(torch.float32) * (x_scale * w_scale).reshape(-1)
    return quantized(convolved(call, real, kernel, bias), y_scale, y_zero, y_zero.dtype)
