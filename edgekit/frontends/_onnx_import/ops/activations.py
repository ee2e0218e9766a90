"""Activation functions."""

from __future__ import annotations

from edgekit.frontends._onnx_import.call import Call, is_known
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import F, Value, nn, torch
from edgekit.frontends._onnx_import.registry import handles


@handles("Relu")
def relu(call: Call, x: Value) -> Value:
    """max(x, 0)."""
    return torch.relu(x)


@handles("Sigmoid")
def sigmoid(call: Call, x: Value) -> Value:
    """Logistic function."""
    return torch.sigmoid(x)


@handles("Softplus")
def softplus(call: Call, x: Value) -> Value:
    """log(1 + exp(x))."""
    return F.softplus(x)


@handles("Softsign")
def softsign(call: Call, x: Value) -> Value:
    """x / (1 + |x|)."""
    return F.softsign(x)


@handles("Mish")
def mish(call: Call, x: Value) -> Value:
    """x · tanh(softplus(x))."""
    return F.mish(x)


@handles("HardSwish")
def hard_swish(call: Call, x: Value) -> Value:
    """x · hardsigmoid(x) with slope 1/6."""
    return F.hardswish(x)


@handles("HardSigmoid")
def hard_sigmoid(call: Call, x: Value) -> Value:
    """A line, clipped to 0 … 1."""
    alpha, beta = call.attr("alpha", 0.2), call.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:  # torch's own
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@handles("Swish")
def swish(call: Call, x: Value) -> Value:
    """x · sigmoid(αx)."""
    alpha = call.attr("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@handles("Gelu")
def gelu(call: Call, x: Value) -> Value:
    """Gaussian error linear unit."""
    return F.gelu(x, approximate=call.attr("approximate", "none"))


@handles("Elu")
def elu(call: Call, x: Value) -> Value:
    """Exponential linear unit."""
    return F.elu(x, alpha=call.attr("alpha", 1.0))


@handles("Celu")
def celu(call: Call, x: Value) -> Value:
    """Continuously differentiable ELU."""
    return F.celu(x, alpha=call.attr("alpha", 1.0))


@handles("Selu")
def selu(call: Call, x: Value) -> Value:
    """Scaled ELU."""
    alpha, gamma = call.attr("alpha", 1.6732632423543772), call.attr("gamma", 1.0507009873554805)
    return F.elu(x, alpha=alpha) * gamma


@handles("LeakyRelu")
def leaky_relu(call: Call, x: Value) -> Value:
    """A slope below zero."""
    return F.leaky_relu(x, negative_slope=call.attr("alpha", 0.01))


@handles("ThresholdedRelu")
def thresholded_relu(call: Call, x: Value) -> Value:
    """x above the threshold, 0 below."""
    return F.threshold(x, call.attr("alpha", 1.0), 0.0)


@handles("Shrink")
def shrink(call: Call, x: Value) -> Value:
    """Towards zero by the bias, 0 within ± lambd."""
    lambd, bias = call.attr("lambd", 0.5), call.attr("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


@handles("PRelu")
def prelu(call: Call, x: Value, slope: Value) -> Value:
    """A learned slope below zero: a module where it is one a channel."""
    size = slope.numel()
    aligned = (*[1] * (x.ndim - slope.ndim), *slope.shape)
    per_channel = x.ndim > 1 and size == x.shape[1] and aligned == (1, size, *[1] * (x.ndim - 2))
    if is_known(slope) and x.is_floating_point() and x.ndim > 1 and (size == 1 or per_channel):
        module = nn.PReLU(size)
        module.weight = nn.Parameter(slope.reshape(size))
        return call.module(module, x)
    return torch.where(x < 0, x * slope, x)


@handles("Softmax", since=13)
def softmax(call: Call, x: Value) -> Value:
    """Exponentials that sum to 1."""
    return torch.softmax(x, call.attr("axis", -1))


@handles("LogSoftmax", since=13)
def log_softmax(call: Call, x: Value) -> Value:
    """Logarithm of softmax."""
    return torch.log_softmax(x, call.attr("axis", -1))


@handles("Hardmax", since=13)
def hardmax(call: Call, x: Value) -> Value:
    """1 at the first maximum, 0 elsewhere."""
    axis = call.attr("axis", -1) % x.ndim
    best = torch.argmax(x, dim=axis, keepdim=True)
    places = torch.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return (best == places).to(x.dtype)


@handles("Clip", since=11, widens=True)
def clip(call: Call, x: Value, low: Value = None, high: Value = None) -> Value:
    """Limits, each of which may be left out."""
    if low is None and high is None:
        return x
    if not is_known(low, high) or any(v is not None and v.numel() != 1 for v in (low, high)):
        return _clamp_by_tensors(x, low, high)
    return torch.clamp(x, *(None if v is None else v.item() for v in (low, high)))


def _clamp_by_tensors(x: Value, low: Value, high: Value) -> Value:
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@handles("Dropout", since=12)
def dropout(call: Call, x: Value, ratio: Value = None, training: Value = None) -> tuple[Value, Value]:
    """Nothing, at inference."""
    if training is not None and bool(call.known(2)):
        raise Refused("it drops values at random (training_mode); export the model in evaluation mode")
    return x, torch.ones_like(x, dtype=torch.bool) if call.wants(1) else None
