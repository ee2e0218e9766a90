"""Rounding inside a module that trains: forward as the grid says, backward as if there were no rounding.

The straight-through estimator (Bengio et al., 2013) lets gradients pass the rounding; step sizes are learned (Esser et
al., "Learned Step Size Quantization", ICLR 2020). A step is kept as its logarithm: it stays above zero, and Adam, whose
steps do not know how large a parameter is, moves it by a share of itself.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA
from edgekit.passes._training.levels import fitted_range, fitted_scale, levels_of, nearest

_SAMPLES = 8192
"""Values of one tensor and batch that ranges are fitted to."""


@functools.cache
def _functions() -> tuple[Any, Any, Any]:
    """The autograd functions, made when torch is needed: to levels, to integers, and the scaling of a gradient."""
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")

    # Not `x + (rounded - x).detach()`: that is off the grid by rounding errors.
    class ToLevels(torch.autograd.Function):  # type: ignore[misc, name-defined]  # torch is seen as Any
        @staticmethod
        def forward(_ctx: Any, values: Any, levels: tuple[float, ...]) -> Any:
            return nearest(values, levels)

        @staticmethod
        def backward(_ctx: Any, gradient: Any) -> tuple[Any, None]:
            return gradient, None

    class ToIntegers(torch.autograd.Function):  # type: ignore[misc, name-defined]  # torch is seen as Any
        @staticmethod
        def forward(_ctx: Any, values: Any) -> Any:
            return torch.round(values)

        @staticmethod
        def backward(_ctx: Any, gradient: Any) -> Any:
            return gradient

    class ScaledGradient(torch.autograd.Function):  # type: ignore[misc, name-defined]  # torch is seen as Any
        @staticmethod
        def forward(ctx: Any, values: Any, factor: float) -> Any:
            ctx.factor = factor
            return values.view_as(values)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
            return gradient * ctx.factor, None

    return ToLevels, ToIntegers, ScaledGradient


def _to_levels(values: Any, levels: tuple[float, ...]) -> Any:
    return _functions()[0].apply(values, levels)


def _to_integers(values: Any) -> Any:
    return _functions()[1].apply(values)


def _with_gradient(values: Any, factor: float) -> Any:
    """The same values, whose gradient is multiplied by a factor."""
    return _functions()[2].apply(values, factor)


@functools.cache
def weight_grid() -> Any:
    """The parametrization of a weight: the class, made when torch is needed."""
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")

    class WeightGrid(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        """Rounds a weight to a grid per output channel.

        Args:
            weight: The weight, as it is before.
            bits: Bits of the grid.
            axis: The axis of the weight that counts output channels.
        """

        def __init__(self, weight: Any, bits: int, axis: int) -> None:
            super().__init__()
            self.axis = axis
            self.bits = bits
            self.log_step = torch.nn.Parameter(self._fitted(weight).log())

        @property
        def levels(self) -> tuple[float, ...]:
            return levels_of(self.bits)

        def _fitted(self, weight: Any) -> Any:
            return fitted_scale(weight.detach(), self.levels, self.axis)

        def refit(self, weight: Any) -> None:
            """Set the steps anew from the weights, after `bits` has changed."""
            with torch.no_grad():
                self.log_step.copy_(self._fitted(weight).log())

        def scale(self, weight: Any) -> Any:
            """The scale of each channel: learned, but for one bit, where the weights say it."""
            return self._fitted(weight) if self.bits == 1 else self.log_step.exp()

        def on_grid(self, weight: Any) -> tuple[Any, Any]:
            """The levels of the weights, and the scales, without gradients."""
            with torch.no_grad():
                scale = self.scale(weight)
                # Without this, some zeros are negative.
                return nearest(weight / scale, self.levels) + 0.0, scale

        def forward(self, weight: Any) -> Any:
            scale, levels = self.scale(weight), self.levels
            if self.bits > 1:
                per_channel = weight.numel() / scale.numel()
                scale = _with_gradient(scale, 1 / math.sqrt(per_channel * levels[-1]))
                weight = (weight / scale).clamp(levels[0], levels[-1])
            else:
                weight = weight / scale
            return _to_levels(weight, levels) * scale

    return WeightGrid


@functools.cache
def activation_grid() -> Any:
    """The rounding of an activation: the class, made when torch is needed."""
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")

    class ActivationGrid(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        """Rounds an activation to 2**bits levels, one scale for the whole tensor; zero is one of them.

        The scale is learned, the zero point stays as it was fitted. Passes everything on unrounded until `fit`.

        Args:
            bits: Bits of the grid.
        """

        def __init__(self, bits: int) -> None:
            super().__init__()
            self.bits = bits
            self.log_step = torch.nn.Parameter(torch.zeros(()))
            self.register_buffer("zero", torch.zeros((), dtype=torch.int64))
            self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
            self.observing = False
            self._seen: list[tuple[Any, float, float]] = []

        def fit(self) -> None:
            """Set scale and zero point by what was seen while `observing`; as before where nothing was."""
            if self._seen:
                samples = torch.cat([part for part, _, _ in self._seen])
                low, high = min(low for _, low, _ in self._seen), max(high for _, _, high in self._seen)
                scale, zero = fitted_range(samples, low, high, self.bits)
                with torch.no_grad():
                    self.log_step.fill_(math.log(scale))
                    self.zero.fill_(zero)
                    self.ready.fill_(True)
            self._seen = []

        def range(self) -> tuple[float, float] | None:
            """The least and largest value on the grid; None where it never saw a value."""
            if not bool(self.ready):
                return None
            scale, zero = float(self.log_step.detach().exp()), int(self.zero)
            return -zero * scale, (2**self.bits - 1 - zero) * scale

        def forward(self, values: Any) -> Any:
            if not values.is_floating_point():
                return values
            if self.observing:
                flat = values.detach().flatten()
                part = flat[:: max(1, math.ceil(flat.numel() / _SAMPLES))].clone()
                self._seen.append((part, float(flat.min()), float(flat.max())))
                return values
            if not bool(self.ready):
                return values
            zero, top = int(self.zero), 2**self.bits - 1
            scale = _with_gradient(self.log_step.exp(), 1 / math.sqrt(values.numel() * top))
            levels = (float(-zero), float(top - zero))
            return _to_integers((values / scale).clamp(*levels)) * scale

    return ActivationGrid
