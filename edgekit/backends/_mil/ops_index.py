"""Indexing: slices, gathers and scatters."""

from __future__ import annotations

import math
from typing import Any

from edgekit.backends._mil.operators import Args, operator


def _positions(torch: Any, args: Args, x: Any) -> list[Any]:
    """The positions that begin, end, stride and masks pick along each axis of `x`."""
    rank = x.dim()
    begin, end = args.ints("begin"), args.ints("end")
    stride = args.ints("stride", (1,) * rank)
    masks = (args.flags(name, rank) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    from_edge, to_edge, single = masks
    found = []
    for axis, size in enumerate(x.shape):
        if single[axis]:
            found.append(torch.tensor([begin[axis] % size if begin[axis] < 0 else begin[axis]]))
            continue
        piece = slice(None if from_edge[axis] else begin[axis], None if to_edge[axis] else end[axis], stride[axis] or 1)
        found.append(torch.tensor(range(*piece.indices(size)), dtype=torch.int64))
    return found


@operator("slice_by_index")
def slice_by_index(torch: Any, args: Args) -> Any:
    """`x[begin:end:stride]` along each axis; masks open an end, or take a single position away."""
    x = args.tensor("x")
    for axis, places in enumerate(_positions(torch, args, x)):
        x = x.index_select(axis, places)
    single = args.flags("squeeze_mask", x.dim())
    return x.reshape([size for axis, size in enumerate(x.shape) if not single[axis]])


@operator("slice_update")
def slice_update(torch: Any, args: Args) -> Any:
    """`x` with the part that a slice picks replaced."""
    x, places = args.tensor("x").clone(), _positions(torch, args, args.tensor("x"))
    grid = torch.meshgrid(*places, indexing="ij")
    x[grid] = args.tensor("update").reshape([len(place) for place in places])
    return x


@operator("slice_by_size")
def slice_by_size(_torch: Any, args: Args) -> Any:
    """`size` values from `begin` on along each axis; -1 is all that follow."""
    x = args.tensor("x")
    for axis, (begin, size) in enumerate(zip(args.ints("begin"), args.ints("size"), strict=True)):
        start = begin + x.shape[axis] if begin < 0 else begin
        x = x.narrow(axis, start, x.shape[axis] - start if size == -1 else size)
    return x


def _wrapped(torch: Any, indices: Any, size: int) -> Any:
    """Positions from the end as positions from the start."""
    return torch.where(indices < 0, indices + size, indices)


@operator("gather")
def gather(torch: Any, args: Args) -> Any:
    """Slices of `x` along an axis, for each batch its own where asked."""
    x, indices, batch = args.tensor("x"), args.tensor("indices"), args.integer("batch_dims", 0)
    axis = args.integer("axis", 0) % x.dim()
    batch = batch + indices.dim() if batch < 0 else batch
    indices = _wrapped(torch, indices, x.shape[axis])
    lead = tuple(x.shape[:batch])
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_indices = indices.reshape(flat_x.shape[0], -1)
    rows = [flat_x[row].index_select(axis - batch, flat_indices[row]) for row in range(flat_x.shape[0])]
    tail = (*x.shape[batch:axis], *indices.shape[batch:], *x.shape[axis + 1 :])
    return torch.stack(rows).reshape(*lead, *tail)


@operator("gather_along_axis")
def gather_along_axis(torch: Any, args: Args) -> Any:
    """The value along an axis that each index names."""
    x, axis = args.tensor("x"), args.integer("axis", 0)
    indices = _wrapped(torch, args.tensor("indices"), x.shape[axis])
    return torch.take_along_dim(x, indices, dim=axis)


@operator("gather_nd")
def gather_nd(torch: Any, args: Args) -> Any:
    """Slices of `x` at positions that are given as vectors."""
    x, indices, batch = args.tensor("x"), args.tensor("indices"), args.integer("batch_dims", 0)
    depth = indices.shape[-1]
    lead = tuple(x.shape[:batch])
    flat_x = x.reshape(math.prod(lead), *x.shape[batch:])
    flat_indices = indices.reshape(math.prod(lead), -1, depth)
    rows = [flat_x[row][_columns(torch, flat_indices[row], flat_x.shape[1:])] for row in range(flat_x.shape[0])]
    return torch.stack(rows).reshape(*indices.shape[:-1], *x.shape[batch + depth :])


def _columns(torch: Any, indices: Any, sizes: Any) -> tuple[Any, ...]:
    return tuple(_wrapped(torch, indices[..., axis], sizes[axis]) for axis in range(indices.shape[-1]))


@operator("scatter")
def scatter(torch: Any, args: Args) -> Any:
    """`data` with slices along an axis updated at the indices."""
    data, axis = args.tensor("data").clone(), args.integer("axis", 0)
    axis = axis % data.dim()
    indices = _wrapped(torch, args.tensor("indices"), data.shape[axis])
    updates = args.tensor("updates").movedim(tuple(range(axis, axis + indices.dim())), tuple(range(indices.dim())))
    return _updated(torch, args, data.movedim(axis, 0), (indices,), updates).movedim(0, axis)


@operator("scatter_nd")
def scatter_nd(torch: Any, args: Args) -> Any:
    """`data` updated at positions that are given as vectors."""
    data, indices = args.tensor("data").clone(), args.tensor("indices")
    return _updated(torch, args, data, _columns(torch, indices, data.shape), args.tensor("updates"))


@operator("scatter_along_axis")
def scatter_along_axis(torch: Any, args: Args) -> Any:
    """`data` updated along an axis at the place that each index names."""
    data, indices, axis = args.tensor("data").clone(), args.tensor("indices"), args.integer("axis", 0)
    places = list(torch.meshgrid(*[torch.arange(size) for size in indices.shape], indexing="ij"))
    places[axis] = _wrapped(torch, indices, data.shape[axis])
    return _updated(torch, args, data, tuple(places), args.tensor("updates"))


def _updated(torch: Any, args: Args, data: Any, places: tuple[Any, ...], updates: Any) -> Any:
    """`data` with `updates` put in, combined by the operation's mode; one index a time where places meet."""
    mode = args.text("mode", "add")
    if mode == "update":
        data[places] = updates
        return data
    if mode in ("add", "sub"):
        return data.index_put(places, updates if mode == "add" else -updates, accumulate=True)
    combine = {"mul": torch.mul, "div": torch.true_divide, "max": torch.maximum, "min": torch.minimum}.get(mode)
    if combine is None:
        raise args.refuse(f"mode '{mode}'")
    flat_places = [place.reshape(-1) for place in places]
    flat_updates = updates.reshape(flat_places[0].numel(), *data.shape[len(places) :])
    for row in range(flat_places[0].numel()):
        at = tuple(int(place[row]) for place in flat_places)
        data[at] = combine(data[at], flat_updates[row])
    return data
