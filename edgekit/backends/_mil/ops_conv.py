"""Convolutions, transposed convolutions and pools, in one to three spatial dimensions."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.operators import Args, operator
from edgekit.backends._mil.padding import padded, pooled_size, spatial_pads


def _dilated(kernel: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))


@operator("conv")
def conv(torch: Any, args: Args) -> Any:
    """Convolution of `x` (n, channels, …) with `weight` (outputs, channels / groups, …)."""
    x, weight = args.tensor("x"), args.tensor("weight")
    rank = x.dim() - 2
    strides, dilations = args.ints("strides", (1,) * rank), args.ints("dilations", (1,) * rank)
    pads = spatial_pads(args, tuple(x.shape[2:]), _dilated(tuple(weight.shape[2:]), dilations), strides)
    function = getattr(torch.nn.functional, f"conv{rank}d")
    groups = args.integer("groups", 1)
    return function(
        padded(torch, x, pads), weight, args.optional("bias"), stride=strides, dilation=dilations, groups=groups
    )


@operator("conv_transpose")
def conv_transpose(torch: Any, args: Args) -> Any:
    """Transposed convolution of `x` with `weight` (channels, outputs / groups, …), cropped by its padding."""
    x, weight, bias = args.tensor("x"), args.tensor("weight"), args.optional("bias")
    rank = x.dim() - 2
    strides, dilations = args.ints("strides", (1,) * rank), args.ints("dilations", (1,) * rank)
    function = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    whole = function(x, weight, None, stride=strides, dilation=dilations, groups=args.integer("groups", 1))
    wanted = _transposed_sizes(args, tuple(x.shape[2:]), tuple(whole.shape[2:]), strides)
    before = _transposed_crop(args, tuple(whole.shape[2:]), wanted)
    crops = tuple(
        (-start, start + size - available)
        for start, size, available in zip(before, wanted, whole.shape[2:], strict=True)
    )
    result = padded(torch, whole, crops)
    return result if bias is None else result + bias.reshape(1, -1, *([1] * rank))


def _transposed_sizes(
    args: Args, sizes: tuple[int, ...], whole: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, ...]:
    if args.has("output_shape"):
        return args.ints("output_shape")[2:]
    kind = args.text("pad_type", "valid").lower()
    if kind == "same":
        return tuple(size * stride for size, stride in zip(sizes, strides, strict=True))
    if kind == "valid":
        return whole
    pad = args.ints("pad", (0,) * (2 * len(sizes)))
    return tuple(size - pad[2 * axis] - pad[2 * axis + 1] for axis, size in enumerate(whole))


def _transposed_crop(args: Args, whole: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    kind = args.text("pad_type", "valid").lower()
    if kind == "custom":
        return args.ints("pad", (0,) * (2 * len(whole)))[::2]
    if kind == "same":
        return tuple(max(size - target, 0) // 2 for size, target in zip(whole, wanted, strict=True))
    return (0,) * len(whole)


class _Windows:
    """The windows of a pool over `x`, in at least two spatial dimensions."""

    def __init__(self, args: Args) -> None:
        x = args.tensor("x")
        rank = x.dim() - 2
        self.rank = rank
        self.kernel = args.ints("kernel_sizes")
        self.strides = args.ints("strides", (1,) * rank)
        self.ceil_mode = args.flag("ceil_mode")
        self.pads = spatial_pads(args, tuple(x.shape[2:]), self.kernel, self.strides)
        self.counts = tuple(
            pooled_size(size, pad, kernel, stride, self.ceil_mode)
            for size, pad, kernel, stride in zip(x.shape[2:], self.pads, self.kernel, self.strides, strict=True)
        )
        self.x = x

    def sums(self, torch: Any, values: Any) -> Any:
        """The sum over each window of `values`, which has the padding in it; windows past the end are cut."""
        flat = values.unsqueeze(2) if self.rank == 1 else values
        kernel = (1, *self.kernel) if self.rank == 1 else self.kernel
        strides = (1, *self.strides) if self.rank == 1 else self.strides
        pool = torch.nn.functional.avg_pool3d if self.rank == 3 else torch.nn.functional.avg_pool2d
        found = pool(self._long_enough(torch, flat, 0.0), kernel, strides, divisor_override=1)
        return self._wanted(found.squeeze(2) if self.rank == 1 else found)

    def maxima(self, torch: Any) -> Any:
        """The largest value of each window."""
        low = float("-inf")
        values = self._long_enough(torch, padded(torch, self.x, self.pads, low), low)
        return self._wanted(getattr(torch.nn.functional, f"max_pool{self.rank}d")(values, self.kernel, self.strides))

    def _long_enough(self, torch: Any, values: Any, fill: float) -> Any:
        needed = [(count - 1) * s + k for count, s, k in zip(self.counts, self.strides, self.kernel, strict=True)]
        sizes = values.shape[-self.rank :]
        return padded(torch, values, tuple((0, max(0, n - s)) for n, s in zip(needed, sizes, strict=True)), fill)

    def _wanted(self, values: Any) -> Any:
        return values[(..., *(slice(count) for count in self.counts))]


@operator("max_pool")
def max_pool(torch: Any, args: Args) -> Any:
    """The largest value of each window."""
    return _Windows(args).maxima(torch)


@operator("avg_pool")
def avg_pool(torch: Any, args: Args) -> Any:
    """The mean of each window, the padding counted or not."""
    windows = _Windows(args)
    ones = torch.ones_like(windows.x[:1, :1])
    inside = 0.0 if args.flag("exclude_padding_from_average") else 1.0
    counts = windows.sums(torch, padded(torch, ones, windows.pads, inside))
    return windows.sums(torch, padded(torch, windows.x, windows.pads)) / counts


@operator("l2_pool")
def l2_pool(torch: Any, args: Args) -> Any:
    """The square root of the sum of squares of each window."""
    windows = _Windows(args)
    return torch.sqrt(windows.sums(torch, padded(torch, windows.x**2, windows.pads)))
