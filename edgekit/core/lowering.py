"""Lowering: typed options of one compilation. Each backend maps them to its own tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Scheme = Literal[
    "float16",
    "dynamic_wi8_afp32",
    "weight_only_wi8_afp32",
    "static_wi8_ai8",
    "weight_only_wi4_afp32",
    "palette_4",
    "palette_2",
    "palette_1",
    "auto",
]
"""Quantization schemes by the names in use: w = weights, a = activations, i = integer, fp = float, digits = bits.

`auto` is the ladder: the flow tries schemes and compiles the smallest that keeps the budget; no backend ever sees it.
"""

AUTO: Scheme = "auto"

IoType = Literal["float32", "int8", "uint8"]

InputLayout = Literal["NCHW", "NHWC"]

Sparse = Literal["auto", "off", "size", "speed"]
"""Whether weights that are mostly zeros are stored as such.

`size`: smaller on disk, computed as if dense. `speed`: computed as sparse, where the runtime can. `auto`: whatever makes
the artifact smaller at no cost in latency; nothing, where no weight has enough zeros. `off`: never.
"""

Ranges = Literal["mse", "entropy", "percentile", "minmax"]
"""How the range of an activation is chosen: least squared error, least divergence of the distribution, all but the outermost
values, or all of them."""


@dataclass(frozen=True)
class Quantize:
    """How weights and activations are stored and computed.

    Attributes:
        scheme: The quantization scheme.
        io: The element type of the model's inputs and outputs; float unless integer is asked for.
        calibration: How many examples of the calibration split set the ranges of activations.
        ranges: How a static scheme's ranges of activations are chosen, where the backend lets edgekit choose them.
        bias_correction: Whether weights are rounded and biases set by calibration examples so that each layer keeps
            its results, where the backend lets edgekit do so.
        block_size: How many weights of one output channel share a scale, for 4-bit weights; all of them where None.
    """

    scheme: Scheme
    io: IoType = "float32"
    calibration: int = 128
    ranges: Ranges = "mse"
    bias_correction: bool = True
    block_size: int | None = None


@dataclass(frozen=True)
class Lowering:
    """Typed options of one compilation.

    Attributes:
        quantize: The quantization, or None for float32 throughout.
        overrides: A quantization scheme, or `float32`, for single layers, by torch module path; `*` in a path stands
            for any part of it (`encoder.*.attention`). A layer takes the last entry that fits it.
        layout: The layout in which the artifact takes an input, by input name; the model's own where it is not named.
        batch_sizes: Batch sizes that the artifact takes, the first of them unless told otherwise; the model's own where
            none is given.
        sparse: How weights are stored that pruning left mostly zeros.
    """

    quantize: Quantize | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    layout: Mapping[str, InputLayout] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = ()
    sparse: Sparse = "auto"

    @property
    def precision(self) -> str:
        """The name of the precision that this lowering yields: `float32` or a scheme's name."""
        return self.quantize.scheme if self.quantize else "float32"
