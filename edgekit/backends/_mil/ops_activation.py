"""Activation functions."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.operators import Args, operator


def _per_channel(parameter: Any, x: Any) -> Any:
    """A parameter for each channel (axis 1) in a shape that broadcasts over `x`."""
    return parameter.reshape(1, -1, *([1] * (x.dim() - 2))) if parameter.dim() == 1 else parameter


@operator("relu")
def relu(torch: Any, args: Args) -> Any:
    """`max(x, 0)`."""
    return torch.relu(args.tensor("x"))


@operator("relu6")
def relu6(torch: Any, args: Args) -> Any:
    """`x` within [0, 6]."""
    return torch.clamp(args.tensor("x"), 0.0, 6.0)


@operator("clamped_relu")
def clamped_relu(torch: Any, args: Args) -> Any:
    """`x`, or `alpha · x` below zero, at most beta."""
    x = args.tensor("x")
    return torch.clamp(torch.where(x >= 0, x, x * args.number("alpha")), max=args.number("beta"))


@operator("leaky_relu")
def leaky_relu(torch: Any, args: Args) -> Any:
    """`x`, or `alpha · x` below zero."""
    x = args.tensor("x")
    return torch.where(x >= 0, x, x * args.number("alpha", 0.01))


@operator("thresholded_relu")
def thresholded_relu(torch: Any, args: Args) -> Any:
    """`x` from alpha on, zero below."""
    x = args.tensor("x")
    return torch.where(x >= args.number("alpha", 1.0), x, torch.zeros_like(x))


@operator("prelu")
def prelu(torch: Any, args: Args) -> Any:
    """`x`, or `alpha · x` below zero, with an alpha for each channel."""
    x = args.tensor("x")
    return torch.where(x >= 0, x, x * _per_channel(args.tensor("alpha"), x))


@operator("elu")
def elu(torch: Any, args: Args) -> Any:
    """`x`, or `alpha · (exp(x) - 1)` below zero."""
    x = args.tensor("x")
    return torch.where(x >= 0, x, args.number("alpha", 1.0) * torch.expm1(torch.clamp(x, max=0.0)))


@operator("gelu")
def gelu(torch: Any, args: Args) -> Any:
    """Gaussian error linear unit: exact, or by tanh or sigmoid."""
    x, mode = args.tensor("x"), args.text("mode", "EXACT")
    if mode == "EXACT":
        return torch.nn.functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return torch.nn.functional.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise args.refuse(f"mode '{mode}'")


@operator("linear_activation")
def linear_activation(_torch: Any, args: Args) -> Any:
    """`alpha · x + beta`."""
    return args.number("alpha", 1.0) * args.tensor("x") + args.number("beta", 0.0)


@operator("scaled_tanh")
def scaled_tanh(torch: Any, args: Args) -> Any:
    """`alpha · tanh(beta · x)`."""
    return args.number("alpha", 1.0) * torch.tanh(args.number("beta", 1.0) * args.tensor("x"))


@operator("sigmoid")
def sigmoid(torch: Any, args: Args) -> Any:
    """Logistic function."""
    return torch.sigmoid(args.tensor("x"))


@operator("sigmoid_hard")
def sigmoid_hard(torch: Any, args: Args) -> Any:
    """`alpha · x + beta` within [0, 1]."""
    return torch.clamp(args.number("alpha", 0.2) * args.tensor("x") + args.number("beta", 0.5), 0.0, 1.0)


@operator("silu")
def silu(torch: Any, args: Args) -> Any:
    """`x · sigmoid(x)`."""
    return torch.nn.functional.silu(args.tensor("x"))


@operator("softplus")
def softplus(torch: Any, args: Args) -> Any:
    """`log(1 + exp(x))`, without overflow."""
    x = args.tensor("x")
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("softplus_parametric")
def softplus_parametric(torch: Any, args: Args) -> Any:
    """`alpha · log(1 + exp(beta · x))`, with alpha and beta for each channel."""
    x = args.tensor("x")
    scaled = _per_channel(args.tensor("beta"), x) * x
    return _per_channel(args.tensor("alpha"), x) * torch.logaddexp(scaled, torch.zeros_like(scaled))


@operator("softsign")
def softsign(torch: Any, args: Args) -> Any:
    """`x / (1 + |x|)`."""
    return torch.nn.functional.softsign(args.tensor("x"))


@operator("softmax")
def softmax(torch: Any, args: Args) -> Any:
    """Exponentials along one axis, divided by their sum."""
    return torch.softmax(args.tensor("x"), args.integer("axis", -1))
