"""Convolutions: modules where the weights are constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.frontends._onnx_import.call import Call, is_known
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import F, Value, nn, torch
from edgekit.frontends._onnx_import.registry import handles
from edgekit.frontends._onnx_import.window import Window, torch_pads, window_of

_CONV = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
_TRANSPOSED = {
    1: (nn.ConvTranspose1d, F.conv_transpose1d),
    2: (nn.ConvTranspose2d, F.conv_transpose2d),
    3: (nn.ConvTranspose3d, F.conv_transpose3d),
}


def filled(make: Any, weight: Value, bias: Value, *sizes: int, **options: Any) -> Any:
    """A module made without memory of its own, holding `weight` and `bias`."""
    module = make(*sizes, bias=bias is not None, device="meta", **options)
    module.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.contiguous())
    return module


@handles("Conv")
def conv(call: Call, x: Value, weight: Value, bias: Value = None) -> Value:
    """Convolution over one, two or three axes."""
    return convolved(call, x, weight, bias)


def convolved(call: Call, x: Value, weight: Value, bias: Value) -> Value:
    """A convolution with the attributes of `call`."""
    spatial = x.ndim - 2
    if spatial not in _CONV:
        raise Refused(f"it convolves over {spatial} axes; torch can do 1 to 3")
    window = window_of(call, tuple(weight.shape[2:]), x.shape[2:])
    padding: Sequence[int] = window.before
    if not window.symmetric:
        x, padding = F.pad(x, torch_pads(window.before, window.after)), (0,) * spatial
    groups = call.attr("group", 1)
    make, function = _CONV[spatial]
    if not is_known(weight, bias) or not weight.is_floating_point():
        return function(x, weight, bias, window.strides, tuple(padding), window.dilations, groups)
    module = filled(
        make,
        weight,
        bias,
        weight.shape[1] * groups,
        weight.shape[0],
        kernel_size=window.kernel,
        stride=window.strides,
        padding=tuple(padding),
        dilation=window.dilations,
        groups=groups,
    )
    return call.module(module, x)


@handles("ConvTranspose")
def conv_transpose(call: Call, x: Value, weight: Value, bias: Value = None) -> Value:
    """Transposed convolution; padding that torch does not have is cut off its result."""
    spatial = x.ndim - 2
    if spatial not in _TRANSPOSED:
        raise Refused(f"it convolves over {spatial} axes; torch can do 1 to 3")
    window, extra = _transposed_window(call, x.shape[2:], tuple(weight.shape[2:]))
    padding = tuple(max(min(b, a), 0) for b, a in zip(window.before, window.after, strict=True))
    groups = call.attr("group", 1)
    make, function = _TRANSPOSED[spatial]
    # torch wants less additional output than a step is wide; what is more is padded with zeros, and gets the bias then.
    fits = all(e < max(s, d) for e, s, d in zip(extra, window.strides, window.dilations, strict=True))
    within = extra if fits else (0,) * spatial
    before = [p - b for p, b in zip(padding, window.before, strict=True)]
    after = [p - a + e - w for p, a, e, w in zip(padding, window.after, extra, within, strict=True)]
    grows = any(n > 0 for n in (*before, *after))
    inner_bias = None if grows else bias
    if is_known(weight, bias) and weight.is_floating_point():
        module = filled(
            make,
            weight,
            inner_bias,
            weight.shape[0],
            weight.shape[1] * groups,
            kernel_size=window.kernel,
            stride=window.strides,
            padding=padding,
            output_padding=within,
            dilation=window.dilations,
            groups=groups,
        )
        y = call.module(module, x)
    else:
        y = function(x, weight, inner_bias, window.strides, padding, within, groups, window.dilations)
    if any((*before, *after)):
        y = F.pad(y, torch_pads(before, after))
    return y + bias.reshape((-1, *[1] * spatial)) if grows and bias is not None else y


def _transposed_window(call: Call, sizes: Sequence[int], kernel: tuple[int, ...]) -> tuple[Window, tuple[int, ...]]:
    """The window of a transposed convolution, and its output padding."""
    spatial = len(kernel)
    strides = tuple(call.attr("strides", [1] * spatial))
    dilations = tuple(call.attr("dilations", [1] * spatial))
    extra = tuple(call.attr("output_padding", [0] * spatial))
    pads = tuple(call.attr("pads", [0] * 2 * spatial))
    before, after = pads[:spatial], pads[spatial:]
    auto, wanted = call.attr("auto_pad", "NOTSET"), call.attr("output_shape", None)
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * s for size, s in zip(sizes, strides, strict=True)]
    elif auto == "VALID":
        before = after = (0,) * spatial
    if wanted is not None:
        full = [
            s * (size - 1) + e + (k - 1) * d + 1
            for s, size, e, k, d in zip(strides, sizes, extra, kernel, dilations, strict=True)
        ]
        totals = [f - w for f, w in zip(full, wanted[-spatial:], strict=True)]
        extra = tuple(e + max(-t, 0) for e, t in zip(extra, totals, strict=True))
        totals = [max(t, 0) for t in totals]
        before = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals)
        after = tuple(t - b for t, b in zip(totals, before, strict=True))
    return Window(kernel, strides, dilations, before, after), extra


@handles("ConvInteger")
def conv_integer(call: Call, x: Value, weight: Value, x_zero: Value = None, w_zero: Value = None) -> Value:
    """Convolution of integers; computed in float32, exact while sums stay below 2²⁴."""
    x = x.to(torch.float32)
    if x_zero is not None:
        x = x - x_zero.to(torch.float32)
    weight = weight.to(torch.float32)
    if w_zero is not None:
        shape = (-1, *[1] * (weight.ndim - 1)) if w_zero.numel() > 1 else ()
        weight = weight - w_zero.to(torch.float32).reshape(shape)
    return torch.round(convolved(call, x, weight, None)).to(torch.int32)


@handles("Col2Im")
def col2im(call: Call, x: Value, image_operand: Value, block_operand: Value) -> Value:
    """Blocks added up into an image of any number of axes."""
    image, block = call.known_ints(1) or [], call.known_ints(2) or []
    spatial = len(image)
    strides, dilations = call.attr("strides", [1] * spatial), call.attr("dilations", [1] * spatial)
    pads = call.attr("pads", [0] * 2 * spatial)
    padded = [n + pads[i] + pads[i + spatial] for i, n in enumerate(image)]
    positions = torch.arange(torch.Size(padded).numel()).reshape(padded)
    for axis in range(spatial):
        positions = positions.unfold(axis, (block[axis] - 1) * dilations[axis] + 1, strides[axis])
    taps = tuple([slice(None)] * spatial + [slice(None, None, d) for d in dilations])
    positions = positions[taps].flatten(0, spatial - 1).flatten(1).t().reshape(-1)
    batch, channels = x.shape[0], x.shape[1] // torch.Size(block).numel()
    values = x.reshape((batch, channels, -1))
    zeros = torch.zeros((batch, channels, torch.Size(padded).numel()), dtype=x.dtype)
    summed = torch.index_add(zeros, 2, positions, values).reshape((batch, channels, *padded))
    crops = [-n for n in torch_pads(pads[:spatial], pads[spatial:])]
    return F.pad(summed, crops) if any(crops) else summed
