"""One layer of a torch model quantized, the others left as they are: the real numbers that integers would stand for.

Weights are rounded where they are: symmetric, one scale an output channel, clipped where that loses least for 4 bits
and fewer; palettes by k-means over the whole tensor. Activations are rounded on their way into every operator that takes
the layer's weights, whether a module is called or a function, so that attention written by hand counts as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.backends._quantize.modules import modules_of
from edgekit.backends._quantize.ranges import Histogram
from edgekit.core.attention import without_fast_path
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.lowering import Scheme
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, ExportedProgramOnly, TorchProgram
from edgekit.core.progress import Silent
from edgekit.flow.evaluate import run_batches

if TYPE_CHECKING:
    from edgekit.core.task import Array

STATIC: Scheme = "static_wi8_ai8"
BITS: Mapping[str, int] = {
    "float16": 16,
    "weight_only_wi8_afp32": 8,
    STATIC: 8,
    "weight_only_wi4_afp32": 4,
    "palette_4": 4,
    "palette_2": 2,
    "palette_1": 1,
}
"""Bits of one weight, by the precisions that can be tried on a single layer."""
_STEPS = 255
_CLIPS = 40
_NARROWEST = 0.3
"""The narrowest clipping of a channel that is tried, as a share of its largest weight."""
_ROUNDS = 25
_SAMPLED = 1 << 16
_BATCH = 32

Range = tuple[float, float]
Place = tuple[str, int, int]
"""A layer, which of its operators in calling order, and which of that one's arguments."""


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        path: Its torch module path, as overrides name it.
        weights: How many it has.
        channels: How many output channels.
        axis: The axis of the weight that counts them.
        module: Whether it is a module's own `weight`; backends name no other parameters by themselves.
    """

    path: str
    weights: int
    channels: int
    axis: int
    module: bool = True


def stored_bytes(layer: Layer, precision: str) -> int:
    """Bytes of a layer's weights in a precision, scales or palette included; float32 is one as well."""
    if precision == "float32":
        return 4 * layer.weights
    bits = BITS[precision]
    payload = -(-layer.weights * bits // 8)
    if bits == 16:
        return payload
    return payload + 4 * (2**bits if precision.startswith("palette") else layer.channels)


def rounded_weight(weight: Array, axis: int, precision: str) -> Array:
    """The values that a precision stores in place of a weight's.

    Args:
        weight: Any shape.
        axis: The axis that counts output channels.
        precision: One of `BITS`.
    """
    import numpy as np

    if precision == "float16":
        return np.asarray(weight, np.float16).astype(weight.dtype)
    if precision.startswith("palette"):
        return _palette(weight, 2 ** BITS[precision])
    rows = np.moveaxis(np.asarray(weight, np.float64), axis, 0)
    flat = rows.reshape(rows.shape[0], -1)
    largest = 2 ** (BITS[precision] - 1) - 1
    peak = np.abs(flat).max(axis=1, keepdims=True, initial=0.0)
    clips = [1.0] if BITS[precision] > 4 else list(np.linspace(1.0, _NARROWEST, _CLIPS))
    best, error = flat, np.full(peak.shape, np.inf)
    for clip in clips:
        scale = np.where(peak > 0, peak * clip / largest, 1.0)
        tried = np.clip(np.round(flat / scale), -largest, largest) * scale
        wrong = ((tried - flat) ** 2).sum(axis=1, keepdims=True)
        best, error = np.where(wrong < error, tried, best), np.minimum(wrong, error)
    return np.ascontiguousarray(np.moveaxis(best.reshape(rows.shape), 0, axis)).astype(weight.dtype)


def _palette(weight: Array, size: int) -> Array:
    """Each weight's nearest of `size` values that k-means over a sample of them chose."""
    import numpy as np

    flat = np.asarray(weight, np.float64).ravel()
    if len(np.unique(flat)) <= size:
        return weight.copy()
    sample = np.sort(flat[:: max(1, flat.size // _SAMPLED) | 1])
    values = np.quantile(sample, (np.arange(size) + 0.5) / size)
    totals = np.concatenate([[0.0], np.cumsum(sample)])
    for _ in range(_ROUNDS):
        ends = np.searchsorted(sample, (values[1:] + values[:-1]) / 2)
        ends = np.concatenate([[0], ends, [sample.size]])
        counts = np.diff(ends)
        values = np.where(counts > 0, np.diff(totals[ends]) / np.maximum(counts, 1), values)
    nearest = values[np.searchsorted((values[1:] + values[:-1]) / 2, flat)]
    return np.asarray(nearest.reshape(weight.shape), weight.dtype)


class Subject:
    """A torch model whose layers are quantized one at a time; afterwards it is what it was.

    Args:
        model: Its program is a live module or a `.pt2`.

    Raises:
        UnsupportedModelError: It is neither.
    """

    def __init__(self, model: Model) -> None:
        program = model.program
        if not isinstance(program, TorchProgram | ExportedProgramOnly):
            raise UnsupportedModelError(f"{model.source} is no torch program.", "Import it into torch first.")
        self.model = model
        exported = program.exported
        tensors = {_path(name): tensor for name, tensor in exported.state_dict.items()}
        names = {name.removeprefix("inner.") for name in exported.state_dict}
        self.skipped: dict[str, str] = {}
        self._weights: dict[str, Any] = {}
        self._owners: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        """How many operators of each layer have run in this batch."""
        layers = []
        for module in modules_of(exported):
            tensor = tensors[module.path]
            known = self._owners.setdefault(_storage(tensor), module.path)
            if known != module.path:
                self.skipped[module.path] = f"shares its weights with {known}"
                continue
            self._weights[module.path] = tensor
            own = f"{module.path}.weight" in names
            layers.append(Layer(module.path, tensor.numel(), int(tensor.shape[module.axis]), module.axis, own))
        self.layers = tuple(layers)
        self._state = {
            _storage(tensor)
            for tensor in (*exported.state_dict.values(), *exported.constants.values())
            if hasattr(tensor, "untyped_storage")
        }
        owners = {layer.path if layer.module else layer.path.rpartition(".")[0] for layer in layers}
        self.skipped |= _vectors(exported.state_dict, owners | self.skipped.keys())

    @contextlib.contextmanager
    def quantized(self, layer: Layer, precision: str, ranges: Mapping[Place, Range]) -> Iterator[None]:
        """While the block runs the layer has the precision's weights, and activations where that is static.

        Args:
            layer: One of `layers`.
            precision: One of `BITS`.
            ranges: What `observed` gave, for a static precision.
        """
        torch = require("torch", TORCH_EXTRA, "a torch model")
        weight = self._weights[layer.path].data
        before = weight.clone()
        rounded = rounded_weight(before.numpy(), layer.axis, precision)

        def change(place: Place, value: Any) -> Any:
            return _rounded(torch, value, ranges.get(place)) if place[0] == layer.path else value

        watched = self._watching(torch, change) if precision == STATIC else contextlib.nullcontext()
        try:
            weight.copy_(torch.from_numpy(rounded))
            with watched:
                yield
        finally:
            weight.copy_(before)

    @contextlib.contextmanager
    def observed(self) -> Iterator[dict[Place, Histogram]]:
        """Histograms of the activations that go into each layer's operators while the block runs."""
        torch = require("torch", TORCH_EXTRA, "a torch model")
        found: dict[Place, Histogram] = {}

        def look(place: Place, value: Any) -> Any:
            found.setdefault(place, Histogram()).add(value.detach().numpy())
            return value

        with self._watching(torch, look):
            yield found

    def outputs(self, inputs: Mapping[str, Array], batch: int) -> Iterator[dict[str, Array]]:
        """The outputs of any number of examples, a batch at a time, each with its own examples along the first axis.

        Args:
            inputs: Arrays by input name, shape (N, …).
            batch: How many examples are run at once: the model's own number, or more where `batches` says it can.
        """
        sized = replace(
            self.model, inputs=tuple(replace(spec, shape=(batch, *spec.shape[1:])) for spec in self.model.inputs)
        )
        model = self.model if batch == self.model.inputs[0].batch_size else sized
        for start in range(0, len(next(iter(inputs.values()))), batch):
            self._counts.clear()
            taken = {name: value[start : start + batch] for name, value in inputs.items()}
            with without_fast_path():
                found = run_batches(model, taken, Silent())
            yield found

    def batches(self, inputs: Mapping[str, Array]) -> int:
        """How many examples can be run at once: many where that gives what one at a time gives, else the model's own."""
        import numpy as np

        own = self.model.inputs[0].batch_size
        if own != 1 or not isinstance(self.model.program, TorchProgram):
            return own
        few = {name: value[:2] for name, value in inputs.items()}
        if len(next(iter(few.values()))) < 2:
            return own
        single = list(self.outputs(few, 1))
        try:
            (together,) = self.outputs(few, 2)
        except Exception:  # noqa: BLE001  # whatever a module raises for a batch that it was not written for
            return own
        for name, value in together.items():
            wanted = np.concatenate([one[name] for one in single])
            if wanted.shape != value.shape or not np.allclose(wanted, value, rtol=1e-3, atol=1e-4, equal_nan=True):
                return own
        return _BATCH

    def _watching(self, torch: Any, change: Callable[[Place, Any], Any]) -> Any:
        from torch.utils._python_dispatch import TorchDispatchMode

        owners, state, counts = self._owners, self._state, self._counts

        class Watch(TorchDispatchMode):  # type: ignore[misc]  # torch is seen as Any
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = kwargs or {}
                path = next((owners[key] for key in map(_storage, _tensors(torch, args)) if key in owners), None)
                # A view of a weight is the weight still; what is made in place cannot be made from a copy.
                if path is None or any(returned.alias_info for returned in func._schema.returns):
                    return func(*args, **kwargs)
                number = counts[path] = counts.get(path, -1) + 1
                taken = [
                    change((path, number, place), value)
                    if isinstance(value, torch.Tensor) and value.is_floating_point() and _storage(value) not in state
                    else value
                    for place, value in enumerate(args)
                ]
                return func(*taken, **kwargs)

        return Watch()


def _path(name: str) -> str:
    return name.removeprefix("inner.").removesuffix(".weight")


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _tensors(torch: Any, args: Any) -> Iterator[Any]:
    for value in args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(torch, value)


def _rounded(torch: Any, value: Any, span: Range | None) -> Any:
    """Real numbers on the 256 steps of a range; as they are where the range is not known or holds nothing but 0."""
    if span is None or span[0] == span[1]:
        return value
    scale = (span[1] - span[0]) / _STEPS
    zero_point = round(-span[0] / scale)
    return (torch.clamp(torch.round(value / scale) + zero_point, 0, _STEPS) - zero_point) * scale


def _vectors(state: Mapping[str, Any], owners: Collection[str]) -> dict[str, str]:
    """Modules that have nothing but vectors, such as norms: they are stored in float by every scheme."""
    found = {}
    for name, tensor in state.items():
        owner = name.removeprefix("inner.").rpartition(".")[0]
        if tensor.dim() == 1 and tensor.is_floating_point() and owner not in owners:
            found[owner] = "has vectors only, which stay in float"
    return found
