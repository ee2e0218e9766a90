"""Reductions, sorting and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.backends._mil.operators import Args, operator

_Reduce = Callable[[Any, Any, tuple[int, ...]], Any]


def _reduction(function: _Reduce) -> Callable[[Any, Args], Any]:
    """An operator over `axes` (all of them unless given); `function` keeps the reduced axes as 1."""

    def apply(torch: Any, args: Args) -> Any:
        x = args.tensor("x")
        axes = tuple(sorted(axis % max(x.dim(), 1) for axis in args.ints("axes", tuple(range(x.dim())))))
        kept = function(torch, x, axes)
        if args.flag("keep_dims"):
            return kept
        return kept.reshape([size for axis, size in enumerate(kept.shape) if axis not in axes])

    return apply


def _product(torch: Any, x: Any, axes: tuple[int, ...]) -> Any:
    for axis in axes:
        x = torch.prod(x, dim=axis, keepdim=True)
    return x


operator("reduce_sum")(_reduction(lambda torch, x, axes: torch.sum(x, dim=axes, keepdim=True)))
operator("reduce_mean")(_reduction(lambda torch, x, axes: torch.mean(x.float(), dim=axes, keepdim=True)))
operator("reduce_max")(_reduction(lambda torch, x, axes: torch.amax(x, dim=axes, keepdim=True)))
operator("reduce_min")(_reduction(lambda torch, x, axes: torch.amin(x, dim=axes, keepdim=True)))
operator("reduce_prod")(_reduction(_product))
operator("reduce_l1_norm")(_reduction(lambda torch, x, axes: torch.sum(torch.abs(x), dim=axes, keepdim=True)))
operator("reduce_l2_norm")(_reduction(lambda torch, x, axes: torch.sqrt(torch.sum(x * x, dim=axes, keepdim=True))))
operator("reduce_sum_square")(_reduction(lambda torch, x, axes: torch.sum(x * x, dim=axes, keepdim=True)))
operator("reduce_log_sum")(_reduction(lambda torch, x, axes: torch.log(torch.sum(x, dim=axes, keepdim=True))))
operator("reduce_log_sum_exp")(_reduction(lambda torch, x, axes: torch.logsumexp(x, dim=axes, keepdim=True)))


@operator("reduce_argmax")
def reduce_argmax(torch: Any, args: Args) -> Any:
    """Position of the largest value along one axis, the first of equals."""
    return _first_equal(torch, args, torch.amax)


@operator("reduce_argmin")
def reduce_argmin(torch: Any, args: Args) -> Any:
    """Position of the smallest value along one axis, the first of equals."""
    return _first_equal(torch, args, torch.amin)


def _first_equal(torch: Any, args: Args, extreme: Callable[..., Any]) -> Any:
    x, axis = args.tensor("x"), args.integer("axis", -1)
    # torch.argmax leaves open which of equal values it names; the first is what Core ML gives.
    hits = (x == extreme(x, dim=axis, keepdim=True)).to(torch.int8)
    places = torch.arange(x.shape[axis]).reshape([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])
    first = torch.where(hits.bool(), places, x.shape[axis]).amin(dim=axis, keepdim=args.flag("keep_dims"))
    return torch.clamp(first, max=x.shape[axis] - 1)


@operator("argsort")
def argsort(torch: Any, args: Args) -> Any:
    """Positions of the sorted values along one axis."""
    descending = not args.flag("ascending")
    return torch.argsort(args.tensor("x"), dim=args.integer("axis", -1), descending=descending, stable=True)


@operator("topk")
def topk(torch: Any, args: Args) -> Any:
    """The k largest (or smallest) values along one axis, and their positions."""
    x, axis = args.tensor("x"), args.integer("axis", -1)
    count = args.integer("k", 1)
    count = x.shape[axis] if count == -1 else count
    values, places = torch.sort(x, dim=axis, descending=not args.flag("ascending"), stable=True)
    found = values.narrow(axis, 0, count), places.narrow(axis, 0, count)
    return found if args.flag("return_indices", default=True) else found[0]


@operator("cumsum")
def cumsum(torch: Any, args: Args) -> Any:
    """Running sum along one axis, from either end, with or without the value itself."""
    x, axis, reverse = args.tensor("x"), args.integer("axis", 0), args.flag("reverse")
    turned = torch.flip(x, (axis,)) if reverse else x
    sums = torch.cumsum(turned, dim=axis)
    if args.flag("exclusive"):
        sums = sums - turned
    return torch.flip(sums, (axis,)) if reverse else sums


@operator("non_zero")
def non_zero(torch: Any, args: Args) -> Any:
    """Positions of the values that are not zero, one a row."""
    return torch.nonzero(args.tensor("x"))
