"""Matrix products: `nn.Linear` where the weights are constants."""

from __future__ import annotations

from edgekit.frontends._onnx_import.call import Call, is_known, scalar
from edgekit.frontends._onnx_import.libs import Value, nn, torch
from edgekit.frontends._onnx_import.ops.convolution import filled
from edgekit.frontends._onnx_import.registry import handles

_MATRIX = 2


def _linear(call: Call, x: Value, weight: Value, bias: Value) -> Value:
    """`weight` is (out, in), as torch keeps it."""
    return call.module(filled(nn.Linear, weight, bias, weight.shape[1], weight.shape[0]), x)


@handles("MatMul", widens=True)
def matmul(call: Call, a: Value, b: Value) -> Value:
    """Matrix product with numpy's broadcasting."""
    if is_known(b) and not is_known(a) and b.ndim == _MATRIX and a.ndim > 1 and b.is_floating_point():
        return _linear(call, a, b.t(), None)
    if is_known(b) and not is_known(a) and b.is_floating_point() and b.ndim > 1:
        b = call.builder.parameter(b)
    elif is_known(a) and not is_known(b) and a.is_floating_point() and a.ndim > 1:
        a = call.builder.parameter(a)
    return torch.matmul(a, b)


@handles("Gemm", widens=True)
def gemm(call: Call, a: Value, b: Value, c: Value = None) -> Value:
    """α·A·B + β·C, each matrix transposed on request."""
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    if call.attr("transA", 0):
        a = a.t()
    if is_known(b, c) and not is_known(a) and b.is_floating_point():
        weight = b if call.attr("transB", 0) else b.t()
        if c is None or tuple(c.shape) in ((weight.shape[0],), (1, weight.shape[0])):
            bias = None if c is None else c.reshape(-1) * beta
            return _linear(call, a, weight * alpha if alpha != 1.0 else weight, bias)
    if is_known(b) and not is_known(a) and b.is_floating_point():
        b = call.builder.parameter(b)
    if call.attr("transB", 0):
        b = b.t()
    product = torch.matmul(a, b)
    if alpha != 1.0:
        product = product * alpha
    if c is not None:
        product = product + (scalar(c) if beta == 1.0 else c * beta)
    return product.to(a.dtype)


@handles("Einsum")
def einsum(call: Call, *operands: Value) -> Value:
    """Sums of products in index notation."""
    return torch.einsum(call.attr("equation").replace(" ", ""), *operands)


@handles("MatMulInteger")
def matmul_integer(call: Call, a: Value, b: Value, a_zero: Value = None, b_zero: Value = None) -> Value:
    """Matrix product of integers less their zero points."""
    a, b = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        zero = a_zero.to(torch.int32)
        a = a - (zero.reshape(-1, 1) if zero.ndim == 1 and zero.numel() > 1 else zero)
    if b_zero is not None:
        b = b - b_zero.to(torch.int32)
    return torch.matmul(a, b)
