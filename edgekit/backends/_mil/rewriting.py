"""Changes to an exported program that make it fit Core ML's interface: each exports it anew behind a small module.

It is the converter's side; the evaluator does not use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Affine = tuple[tuple[float, ...], tuple[float, ...]]
"""Scale and bias, a value for each channel."""


def example_inputs(torch: Any, exported: Any) -> tuple[Any, ...]:
    """Zeros in the shape and type of each input."""
    user = exported.graph_signature.user_inputs
    values = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in user]
    return tuple(torch.zeros(value.shape, dtype=value.dtype) for value in values)


def with_normalization(torch: Any, exported: Any, affine: Sequence[Affine | None]) -> Any:
    """The program behind scale and bias by channel: Core ML's image inputs have one scale for all channels.

    Args:
        torch: The library.
        exported: The program.
        affine: Scale and bias for each input, or None where it is taken as it is.
    """
    inner = exported.module()

    class Normalized(torch.nn.Module):  # type: ignore[misc]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            for place, pair in enumerate(affine):
                if pair is not None:
                    self.register_buffer(f"scale_{place}", torch.tensor(pair[0]).reshape(1, -1, 1, 1))
                    self.register_buffer(f"bias_{place}", torch.tensor(pair[1]).reshape(1, -1, 1, 1))

        def _scaled(self, place: int, tensor: Any) -> Any:
            if affine[place] is None:
                return tensor
            return tensor * getattr(self, f"scale_{place}") + getattr(self, f"bias_{place}")

        def forward(self, *tensors: Any) -> Any:
            return self.inner(*(self._scaled(place, tensor) for place, tensor in enumerate(tensors)))

    return torch.export.export(Normalized(), example_inputs(torch, exported), strict=False)


def first_places(exported: Any) -> list[int]:
    """For each output the place of the first output that is the same value."""
    names = list(exported.graph_signature.user_outputs)
    return [names.index(name) for name in names]


def passed_through(exported: Any) -> list[int]:
    """Places of outputs that are inputs unchanged."""
    inputs = set(exported.graph_signature.user_inputs)
    return [place for place, name in enumerate(exported.graph_signature.user_outputs) if name in inputs]


def only_outputs(torch: Any, exported: Any, places: Sequence[int]) -> Any:
    """The program with only some of its outputs."""
    inner = exported.module()

    class Fewer(torch.nn.Module):  # type: ignore[misc]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            results = self.inner(*tensors)
            return tuple(results[place] for place in places)

    return torch.export.export(Fewer(), example_inputs(torch, exported), strict=False)
