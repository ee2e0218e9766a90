"""Fourier transforms as matrix products: real numbers throughout, because no target takes complex ones."""

from __future__ import annotations

import math
from typing import Any

from edgekit.frontends._onnx_import.call import Call, axis_of
from edgekit.frontends._onnx_import.functions import evaluate
from edgekit.frontends._onnx_import.libs import Value, torch
from edgekit.frontends._onnx_import.registry import handles


def _rotations(length: int, bins: int, used: int, inverse: bool, dtype: Any) -> tuple[Any, Any]:
    """Cosines and sines, each (bins, used), of a transform of `length` points, scaled where it is an inverse one."""
    turns = torch.outer(torch.arange(bins), torch.arange(used)) % length
    angles = turns.to(torch.float64) * (2 * math.pi / length)
    sign, scale = (1.0, 1.0 / length) if inverse else (-1.0, 1.0)
    return (torch.cos(angles) * scale).to(dtype), (torch.sin(angles) * (sign * scale)).to(dtype)


def transformed(x: Value, length: int, bins: int, inverse: bool) -> tuple[Value, Value]:
    """Real and imaginary part along the axis before the last; the last axis holds 1 (real) or 2 parts."""
    used = min(x.shape[-2], length)
    cosines, sines = _rotations(length, bins, used, inverse, x.dtype)
    real = torch.select(x, -1, 0)[..., :used]
    if x.shape[-1] == 1:
        return torch.matmul(real, cosines.t()), torch.matmul(real, sines.t())
    imaginary = torch.select(x, -1, 1)[..., :used]
    return (
        torch.matmul(real, cosines.t()) - torch.matmul(imaginary, sines.t()),
        torch.matmul(real, sines.t()) + torch.matmul(imaginary, cosines.t()),
    )


@handles("DFT", since=17)
def dft(call: Call, x: Value, length_operand: Value = None, axis_operand: Value = None) -> Value:
    """Discrete Fourier transform along an axis."""
    default = 1 if call.opset < 20 else -2  # the opset that moved the axis to an operand
    axis = call.attr("axis", default) if call.opset < 20 else call.known_int(2)
    axis = axis_of(default if axis is None else axis, x.ndim)
    inverse, onesided = bool(call.attr("inverse", 0)), bool(call.attr("onesided", 0))
    length = call.known_int(1) or (2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis])
    moved = torch.movedim(x, axis, -2)
    if inverse and onesided:
        moved = _both_sides(moved, length)
    bins = length // 2 + 1 if onesided and not inverse else length
    real, imaginary = transformed(moved, length, bins, inverse)
    parts = [real] if inverse and onesided else [real, imaginary]
    return torch.movedim(torch.stack(parts, -1), -2, axis)


def _both_sides(x: Value, length: int) -> Value:
    """The whole spectrum of a real signal from its half: the other half is its mirrored conjugate."""
    half = length // 2 + 1
    mirrored = torch.flip(x[..., 1 : length - half + 1, :], [-2])
    conjugate = torch.stack([torch.select(mirrored, -1, 0), -torch.select(mirrored, -1, 1)], -1)
    return torch.cat([x[..., :half, :], conjugate], -2)


@handles("MelWeightMatrix", since=17)
def mel_weight_matrix(call: Call, *operands: Value) -> tuple[Value, ...]:
    """Filters of a mel spectrogram: known, because its size is."""
    values = tuple(call.known(i) for i in range(len(operands)))
    return evaluate(call.op_type, "", call.attributes, values, call.opset, 1)


@handles("STFT", since=17)
def stft(call: Call, signal: Value, step_operand: Value, window: Value = None, length_operand: Value = None) -> Value:
    """Fourier transforms of overlapping frames: (batch, frames, bins, 2)."""
    step = call.known_int(1) or 1
    length = call.known_int(3) or (window.shape[0] if window is not None else signal.shape[1])
    onesided = bool(call.attr("onesided", 1))
    count = (signal.shape[1] - length) // step + 1
    places = (torch.arange(count) * step).reshape(-1, 1) + torch.arange(length)
    parts = signal if signal.ndim > 2 else torch.unsqueeze(signal, -1)  # (batch, samples)
    frames = torch.index_select(parts, 1, places.reshape(-1))
    frames = frames.reshape((signal.shape[0], count, length, parts.shape[-1]))
    if window is not None:
        frames = frames * window.reshape(-1, 1)
    real, imaginary = transformed(frames, length, length // 2 + 1 if onesided else length, inverse=False)
    return torch.stack([real, imaginary], -1)
