"""Model: a program with named inputs and outputs, example inputs, a digest, and the history of its passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from edgekit.core.program import Program
    from edgekit.core.task import Array

Layout = Literal["NCHW", "NHWC", "NC", "NCL", "NLC", "any"]
Dtype = Literal["float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


@dataclass(frozen=True)
class Normalize:
    """How raw values were normalized before training: `(value - mean) / std`, per channel or for all.

    Attributes:
        mean: In the units of the raw values.
        std: In the units of the raw values.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: What programs call it.
        shape: Static sizes; the first axis is the batch.
        dtype: Element type.
        layout: What the axes mean, where somebody said so.
        normalize: How raw values become these, where somebody said so.
        value_range: Smallest and largest value that makes sense, where somebody said so.
        labels: Names of the classes along the last axis of an output.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype = "float32"
    layout: Layout | None = None
    normalize: Normalize | None = None
    value_range: tuple[float, float] | None = None
    labels: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int:
        """Size of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1


@dataclass(frozen=True)
class PassRecord:
    """One pass in a model's history: enough to read what was done, and to do it again.

    Attributes:
        name: The pass.
        options: Its options, all of them, defaults included.
        modified: Whether it changed the model; what was undone did not.
        notes: What it found and did.
        structure: What it changed in the module tree, as data that the pass can replay on a fresh module.
        metrics_before: The task's metrics on the validation split before it.
        metrics_after: The same after it.
        parameters_before: Number of parameters before it.
        parameters_after: The same after it.
        macs_before: Multiply-accumulates for the example inputs before it; 0 where nobody counted.
        macs_after: The same after it.
        weight_bytes_before: Bytes of parameters and buffers, as a float file stores them, before it.
        weight_bytes_after: The same after it.
        zeros_before: How many parameters were exactly zero before it.
        zeros_after: The same after it.
        seconds: How long it took.
        kept: Whether the model is what it left; False where it broke the budget and was undone. What is said of after
            is then what it would have been.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    modified: bool = True
    notes: tuple[str, ...] = ()
    structure: Mapping[str, Any] = field(default_factory=dict)
    metrics_before: Mapping[str, float] = field(default_factory=dict)
    metrics_after: Mapping[str, float] = field(default_factory=dict)
    parameters_before: int = 0
    parameters_after: int = 0
    macs_before: int = 0
    macs_after: int = 0
    weight_bytes_before: int = 0
    weight_bytes_after: int = 0
    zeros_before: int = 0
    zeros_after: int = 0
    seconds: float = 0.0
    kept: bool = True

    def undone(self) -> PassRecord:
        """The record of the same pass where it was undone: nothing of it is to be done again."""
        return replace(self, modified=False, kept=False, structure={})

    def timeless(self) -> PassRecord:
        """The record without what differs from run to run: for what is hashed."""
        return replace(self, seconds=0.0)


@dataclass(frozen=True)
class Model:
    """A program and everything a backend or a pass needs to know of it.

    Attributes:
        name: What the model is called on devices and in results.
        program: What computes.
        inputs: Specs of the inputs, in calling order.
        outputs: Specs of the outputs, in order.
        example_inputs: One array an input, of exactly the spec's shape and dtype.
        digest: Hash of structure and weights; equal digests compute the same.
        source: Where it came from, as the person wrote it.
        history: The passes that made it, first to last.
    """

    name: str
    program: Program
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example_inputs: Mapping[str, Array]
    digest: str
    source: str
    history: tuple[PassRecord, ...] = ()
