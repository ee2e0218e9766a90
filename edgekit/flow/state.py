"""A model that may not be in memory: what is known of it, and how to make it live when something needs that.

Most commands on an unchanged project never need the live model, and so never import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.core.model import Model, PassRecord, TensorSpec


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without having it in memory.

    Attributes:
        digest: Hash of structure and weights.
        format: What its program is on disk: `pt2` or `onnx`.
        inputs: Specs of the inputs.
        outputs: Specs of the outputs.
        parameters: Number of weights.
        deterministic: Whether its factory gives the same weights each time.
        history: The passes it went through.
    """

    digest: str
    format: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    deterministic: bool = True
    history: tuple[PassRecord, ...] = ()


def info_of(model: Model, deterministic: bool = True) -> ModelInfo:
    """What is known of a live model."""
    program = model.program
    return ModelInfo(
        model.digest,
        program.format,
        model.inputs,
        model.outputs,
        program.parameter_count(),
        deterministic,
        model.history,
    )


class ModelState:
    """A model, live or not.

    Args:
        info: What is known of it.
        make: Makes it live; called once, when first needed.
    """

    def __init__(self, info: ModelInfo, make: Callable[[], Model]) -> None:
        self.info = info
        self._make = make
        self._live: Model | None = None

    def live(self) -> Model:
        """The model in memory."""
        if self._live is None:
            self._live = self._make()
        return self._live
