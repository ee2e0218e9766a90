"""Resizing along one axis as arithmetic: which input positions an output position takes, with which weights.

Everything is known before the model runs, so a resize is a choice of indices (nearest) or a small matrix (linear, cubic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import np


@dataclass(frozen=True)
class AxisResize:
    """How one axis is resized.

    Attributes:
        size: Input positions.
        outputs: Output positions.
        scale: Output positions an input position, as the model says it; need not be `outputs / size`.
        coordinates: ONNX's `coordinate_transformation_mode`.
        roi: Start and end of the region, normalized; only for `tf_crop_and_resize`.
    """

    size: int
    outputs: int
    scale: float
    coordinates: str
    roi: tuple[float, float] = (0.0, 1.0)

    @property
    def unchanged(self) -> bool:
        """Whether every output position is the input position of the same index."""
        return self.size == self.outputs and math.isclose(self.scale, 1.0) and self.roi == (0.0, 1.0)

    def positions(self) -> Any:
        """Where each output position lies on the input axis.

        In float32, as the runtimes compute it: a nearest position at an exact half would else fall to the other side.
        Lengths are those in whole positions, as in ONNX Runtime and torch; ONNX's own evaluator counts fractions of one.
        """
        at = np.arange(self.outputs, dtype=np.float32)
        scale, length = np.float32(self.scale), self.outputs
        mode = self.coordinates
        if mode == "half_pixel" or (mode == "pytorch_half_pixel" and length != 1):
            return (at + np.float32(0.5)) / scale - np.float32(0.5)
        if mode == "pytorch_half_pixel":
            return np.full(self.outputs, np.float32(-0.5))
        if mode == "asymmetric":
            return at / scale
        if mode == "align_corners":
            return at * np.float32(self.size - 1) / np.float32(length - 1) if length != 1 else np.zeros_like(at)
        if mode == "half_pixel_symmetric":
            offset = self.size / 2 * (1 - self.outputs / (self.scale * self.size))
            return np.float32(offset) + (at + np.float32(0.5)) / scale - np.float32(0.5)
        if mode == "tf_crop_and_resize":
            return self._cropped(at, length)
        raise Refused(f"it has an unknown coordinate_transformation_mode '{mode}'")

    def _cropped(self, at: Any, length: int) -> Any:
        start, end = self.roi
        if length == 1:
            return np.full(length, (start + end) * (self.size - 1) / 2)
        return start * (self.size - 1) + at * (end - start) * (self.size - 1) / (length - 1)

    def outside(self) -> Any:
        """Output positions that `tf_crop_and_resize` fills with the extrapolation value."""
        if self.coordinates != "tf_crop_and_resize":
            return np.zeros(self.outputs, dtype=bool)
        at = self.positions()
        return (at < 0) | (at > self.size - 1)

    def nearest(self, rounding: str) -> Any:
        """The input index of each output position."""
        at = self.positions()
        rounded = {
            "round_prefer_floor": lambda: np.ceil(at - 0.5),
            "round_prefer_ceil": lambda: np.floor(at + 0.5),
            "floor": lambda: np.floor(at),
            "ceil": lambda: np.ceil(at),
        }
        if rounding not in rounded:
            raise Refused(f"it has an unknown nearest_mode '{rounding}'")
        return np.clip(rounded[rounding](), 0, self.size - 1).astype(np.int64)

    def matrix(self, cubic: float | None, antialias: bool = False, exclude_outside: bool = False) -> Any:
        """Weights, float64 of shape (outputs, size).

        Args:
            cubic: The cubic kernel's coefficient; None for linear.
            antialias: Whether the kernel widens where the axis shrinks.
            exclude_outside: Whether taps beyond the ends weigh nothing, instead of repeating the end.
        """
        at = self.positions()
        stretch = min(self.scale, 1.0) if antialias else 1.0
        reach = math.ceil((1 if cubic is None else 2) / stretch)
        taps = np.floor(at).astype(np.int64)[:, None] + np.arange(-reach, reach + 2)[None, :]
        weights = _kernel((taps - at[:, None]) * stretch, cubic)
        if exclude_outside:
            weights = np.where((taps < 0) | (taps >= self.size), 0.0, weights)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
        result = np.zeros((self.outputs, self.size))
        rows = np.repeat(np.arange(self.outputs)[:, None], taps.shape[1], axis=1)
        np.add.at(result, (rows, np.clip(taps, 0, self.size - 1)), weights)
        return result


def _kernel(distance: Any, cubic: float | None) -> Any:
    t = np.abs(distance)
    if cubic is None:
        return np.maximum(0.0, 1.0 - t)
    near = (cubic + 2) * t**3 - (cubic + 3) * t**2 + 1
    far = cubic * t**3 - 5 * cubic * t**2 + 8 * cubic * t - 4 * cubic
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))  # the kernel's two pieces
