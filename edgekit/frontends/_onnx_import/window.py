"""Arithmetic of sliding windows: how much to pad, and what comes out. Plain numbers; no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.frontends._onnx_import.errors import Refused


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes.

    Attributes:
        kernel: Its sizes.
        strides: Its steps.
        dilations: Distances of its taps.
        before: Padding at the start of each axis; after: at the end.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Extent of the window with its dilation."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def symmetric(self) -> bool:
        """Whether the padding is the same on both sides."""
        return self.before == self.after

    def outputs(self, sizes: Sequence[int], ceil: bool) -> tuple[int, ...]:
        """Number of windows along each axis; a window that would start in the padding at the end is not one."""
        result = []
        for size, begin, end, reach, stride in zip(
            sizes, self.before, self.after, self.reach, self.strides, strict=True
        ):
            steps = (size + begin + end - reach) / stride
            count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
            if ceil and (count - 1) * stride >= size + begin:
                count -= 1
            result.append(count)
        return tuple(result)

    def padding_for(self, sizes: Sequence[int], counts: Sequence[int]) -> list[int]:
        """Padding in the order of torch's `pad` so that exactly `counts` windows fit; may be negative."""
        pads: list[int] = []
        for size, begin, count, reach, stride in reversed(
            list(zip(sizes, self.before, counts, self.reach, self.strides, strict=True))
        ):
            pads += [begin, (count - 1) * stride + reach - size - begin]
        return pads


def window_of(call: Any, kernel: Sequence[int], sizes: Sequence[int]) -> Window:
    """The window that a convolution's or pooling's attributes describe, for an input of spatial `sizes`."""
    spatial = len(kernel)
    strides = tuple(call.attr("strides", [1] * spatial))
    dilations = tuple(call.attr("dilations", [1] * spatial))
    pads = tuple(call.attr("pads", [0] * 2 * spatial))
    before, after = pads[:spatial], pads[spatial:]
    auto = call.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        before = after = (0,) * spatial
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        before = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals)
        after = tuple(t - b for t, b in zip(totals, before, strict=True))
    elif auto != "NOTSET":
        raise Refused(f"it has an unknown auto_pad '{auto}'")
    return Window(tuple(kernel), strides, dilations, before, after)


def torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding in the order of torch's `pad`: the last axis first."""
    return [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
