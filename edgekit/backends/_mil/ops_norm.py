"""Normalizations."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.operators import Args, operator


def _scaled_by_channel(args: Args, normal: Any) -> Any:
    shape = (1, -1, *([1] * (normal.dim() - 2)))
    if args.has("gamma"):
        normal = normal * args.tensor("gamma").reshape(shape)
    return normal + args.tensor("beta").reshape(shape) if args.has("beta") else normal


@operator("batch_norm")
def batch_norm(torch: Any, args: Args) -> Any:
    """`(x - mean) / sqrt(variance + epsilon)` for each channel, then gamma and beta."""
    x, shape = args.tensor("x"), (1, -1, *([1] * (args.tensor("x").dim() - 2)))
    spread = torch.sqrt(args.tensor("variance") + args.number("epsilon", 1e-5)).reshape(shape)
    return _scaled_by_channel(args, (x - args.tensor("mean").reshape(shape)) / spread)


@operator("instance_norm")
def instance_norm(torch: Any, args: Args) -> Any:
    """Each channel of each example to mean 0 and variance 1, then gamma and beta."""
    x = args.tensor("x")
    return _scaled_by_channel(args, _normal(torch, x, tuple(range(2, x.dim())), args.number("epsilon", 1e-5)))


@operator("layer_norm")
def layer_norm(torch: Any, args: Args) -> Any:
    """`x` to mean 0 and variance 1 over the axes, then gamma and beta of the shape of those axes."""
    x = args.tensor("x")
    axes = sorted(axis % x.dim() for axis in args.ints("axes", tuple(range(x.dim()))))
    normal = _normal(torch, x, tuple(axes), args.number("epsilon", 1e-5))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    if args.has("gamma"):
        normal = normal * args.tensor("gamma").reshape(shape)
    return normal + args.tensor("beta").reshape(shape) if args.has("beta") else normal


def _normal(torch: Any, x: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=axes, keepdim=True) + epsilon)


@operator("l2_norm")
def l2_norm(torch: Any, args: Args) -> Any:
    """`x` over the root of its sum of squares (plus epsilon) along the last three axes."""
    x = args.tensor("x")
    return x / torch.sqrt((x**2).sum(dim=(-3, -2, -1), keepdim=True) + args.number("epsilon", 1e-6))


@operator("local_response_norm")
def local_response_norm(torch: Any, args: Args) -> Any:
    """`x / (k + alpha · mean of squares of `size` neighbouring channels) ^ beta`."""
    return torch.nn.functional.local_response_norm(
        args.tensor("x"),
        args.integer("size"),
        alpha=args.number("alpha", 1e-4),
        beta=args.number("beta", 0.75),
        k=args.number("k", 1.0),
    )
