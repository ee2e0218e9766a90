"""Put weights on a grid of a few bits, each rounded up or down as the layer's results ask for.

To nearest is the best rounding for a weight, not for what the layer computes. Whether each weight goes up or down is
learned, layer by layer, on calibration examples: M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos and T. Blankevoort,
"Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020. The data of a layer come from the layers
already rounded, the results to keep from the float model. What shift of an output channel's mean is left goes into its
bias: A. Finkelstein, U. Almog and M. Grobman, "Fighting Quantization Bias With Bias", 2019.

The module keeps its structure; its weights hold the grid's values, and the grids go to the backend with the history.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from edgekit.core.extras import require
from edgekit.core.grid import Grid, Trained, structure_of
from edgekit.core.layer_paths import fits, fits_any, no_layer
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.progress import Step
from edgekit.core.task import Task
from edgekit.passes._graph import Layer, layers_in, shortened
from edgekit.passes._rounding import Rows, activation_after, bias_shift, can_be_rows, grouped, learn, rows_of
from edgekit.passes._stepwise import Stepwise, calibration_batches
from edgekit.passes._training.levels import fitted_scale, levels_of
from edgekit.passes.base import Pass, PassContext, PassResult

_BITS = (8, 4, 3, 2)

_SHOWN = 3
_SMALL = 0.1
_MOST_ROWS = 16384
_MOST_BYTES = 128 << 20
"""Of the data and results of one layer's rows."""


@dataclass(frozen=True)
class LearnedRoundingOptions:
    """Options of `learned_rounding`.

    Attributes:
        bits: Bits of the weights: 8, 4, 3 or 2.
        small_bits: Bits of depthwise convolutions and of the smallest layers, which are together at most a tenth of the
            weights: they lose most at few bits and save least. Never fewer than `bits`.
        overrides: Bits of single layers, by torch module path; `*` stands for any part of it. The last that fits a
            layer decides.
        keep: Layers that stay float, by path, the same way.
        steps: Steps of learning for each layer.
        examples: How many examples of the calibration split are used.
        learning_rate: Of Adam, on what decides between up and down.
        correct_bias: Whether biases make good what is left of a shift.

    Raises:
        ValueError: A number out of its range; a recipe's error says the line.
    """

    bits: int = 4
    small_bits: int = 8
    overrides: Mapping[str, int] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    steps: int = 1000
    examples: int = 128
    learning_rate: float = 0.01
    correct_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is above 0, not {self.learning_rate}")
        chosen = {"bits": self.bits, "small_bits": self.small_bits}
        for name, bits in (chosen | {f"overrides of '{path}'": own for path, own in self.overrides.items()}).items():
            if bits not in _BITS:
                raise ValueError(f"{name} cannot be {bits}; choices: {', '.join(map(str, _BITS))}")


class LearnedRounding(Pass):
    """Rounds the weights of linear layers and convolutions to a grid, learned on calibration examples."""

    summary: ClassVar[str] = "put weights on a grid of 8, 4, 3 or 2 bits by learned rounding (AdaRound)"
    Options: ClassVar[type[Any]] = LearnedRoundingOptions
    after: ClassVar[tuple[str, ...]] = ("fold_batch_norm", "equalize")

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: The calibration split cannot be used, or a pattern fits no layer.
        """
        program = model.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        chosen, left = _chosen(program, self.options)
        if not chosen:
            return PassResult(model, False, ("no layer has weights to round", *shortened(left, _SHOWN, "stay float")))
        batches = calibration_batches(task, model, self.options.examples, self.name)
        rounding = _Rounding(program, batches, self.options, context.seed)
        work = sum(size for _, _, size in chosen)
        with context.progress.step("rounding layer by layer", work) as step:
            _each(rounding, chosen, work, step)
        module = copy.deepcopy(program.module)
        rounding.store(module)
        rounded = program.with_module(module.eval())
        notes = (
            *_counts(rounding.grids.values()),
            f"learning beat rounding to nearest in {rounding.learned} of {len(rounding.grids)} layers",
            *shortened(left, _SHOWN, "stay float"),
        )
        return PassResult(
            replace(model, program=rounded, digest=rounded.digest()), True, notes, structure_of(Trained(rounding.grids))
        )

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`; only values change."""
        return module


def _counts(grids: Collection[Grid]) -> list[str]:
    counts = Counter(grid.bits for grid in grids)
    return [f"{count} layer{'s' if count > 1 else ''} at {bits} bits" for bits, count in sorted(counts.items())]


def _each(rounding: _Rounding, chosen: Sequence[tuple[Layer, int, int]], work: int, step: Step) -> None:
    began, done = time.monotonic(), 0
    for layer, bits, size in chosen:
        left = f", about {(time.monotonic() - began) / done * (work - done):.0f} s left" if done else ""
        step.say(f"{layer.path}, {bits} bits{left}")
        rounding.round(layer, bits)
        done += size
        step.advance(size)


def _chosen(program: TorchProgram, options: LearnedRoundingOptions) -> tuple[list[tuple[Layer, int, int]], list[str]]:
    """Layers to round, with their bits and number of weights; and a note for each that stays float."""
    found = layers_in(program)
    _check_patterns((*options.keep, *options.overrides), list(dict.fromkeys(layer.path for layer in found)))
    parameters = dict(program.module.named_parameters(remove_duplicate=False))
    eligible, left = [], []
    for layer in found:
        weight = parameters[layer.weight]
        if fits_any(layer.path, options.keep):
            left.append(f"'{layer.path}' stays float, as `keep` says")
        elif layer.shared:
            left.append(f"'{layer.path}' stays float: its weights are used more than once")
        elif not can_be_rows(layer):
            left.append(f"'{layer.path}' stays float: it is a transposed or three-dimensional convolution")
        elif str(weight.dtype) != "torch.float32":
            left.append(f"'{layer.path}' stays float: its weights are {weight.dtype}")
        else:
            eligible.append((layer, weight))
    small = _small({layer.path: weight.numel() for layer, weight in eligible})
    chosen: list[tuple[Layer, int, int]] = []
    for layer, weight in eligible:
        depthwise = layer.groups > 1 and weight.shape[1] == 1
        usual = max(options.bits, options.small_bits) if depthwise or layer.path in small else options.bits
        fitting = [bits for pattern, bits in options.overrides.items() if fits(layer.path, pattern)]
        chosen.append((layer, fitting[-1] if fitting else usual, weight.numel()))
    return chosen, left


def _check_patterns(patterns: Sequence[str], paths: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fits(path, pattern) for path in paths):
            raise no_layer(f"'{pattern}' in the options of learned_rounding fits no layer with weights", pattern, paths)


def _small(sizes: Mapping[str, int]) -> set[str]:
    """The smallest layers that are together at most a tenth of the weights."""
    found, taken = set(), 0
    for path, size in sorted(sizes.items(), key=lambda item: (item[1], item[0])):
        taken += size
        if taken > _SMALL * sum(sizes.values()):
            break
        found.add(path)
    return found


class _Rounding:
    """The float program and the one whose weights are rounded, side by side.

    Attributes:
        grids: Of the layers rounded so far, by path.
        learned: In how many of them learning beat rounding to nearest.
    """

    def __init__(self, program: TorchProgram, batches: list[Any], options: LearnedRoundingOptions, seed: int) -> None:
        self._torch = require("torch", TORCH_EXTRA, "the pass learned_rounding")
        self._options = options
        self._plain, self._rounded = Stepwise(program, batches), Stepwise(program, batches)
        self._parameters = {name: value.detach() for name, value in program.module.named_parameters()}
        self._generator = self._torch.Generator().manual_seed(seed)
        self.grids: dict[str, Grid] = {}
        self.learned = 0

    def round(self, layer: Layer, bits: int) -> None:
        """Round one layer; those before it have been rounded already."""
        for side in (self._plain, self._rounded):
            side.run_to(layer.node)
        levels, weight = levels_of(bits), self._parameters[layer.weight]
        rows, products = self._rows(layer, weight), grouped(weight, layer.groups)
        scale = fitted_scale(weight, levels, 0).reshape(*products.shape[:2], 1)
        found, learned = learn(
            rows, products, scale, levels, self._options.steps, self._options.learning_rate, self._generator
        )
        self.learned += learned
        values = scale * found
        self._rounded.replaced[layer.weight] = values.reshape(weight.shape)
        self.grids[layer.path] = Grid(bits, levels, tuple(scale.flatten().tolist()))
        if self._options.correct_bias and layer.bias is not None:
            self._rounded.replaced[layer.bias] = self._parameters[layer.bias] + bias_shift(rows, values)

    def _rows(self, layer: Layer, weight: Any) -> Rows:
        row = 4 * (layer.groups * weight[0].numel() + weight.shape[0])
        share = max(1, min(_MOST_ROWS, _MOST_BYTES // row) // len(self._plain))
        data, plain = [], []
        pairs = zip(self._plain.values(layer.data), self._rounded.values(layer.data), strict=True)
        for before, now in pairs:
            rows = rows_of(layer, now, weight.shape)
            taken = self._torch.randperm(rows.shape[1], generator=self._generator)[:share]
            data.append(rows[:, taken])
            plain.append(rows_of(layer, before, weight.shape)[:, taken])
        products = grouped(weight, layer.groups)
        wanted = self._torch.bmm(self._torch.cat(plain, dim=1), products.transpose(1, 2))
        bias = self._parameters[layer.bias] if layer.bias is not None else self._torch.zeros(weight.shape[0])
        return Rows(
            self._torch.cat(data, dim=1),
            wanted,
            bias.reshape(layer.groups, 1, -1),
            activation_after(layer.node),
        )

    def store(self, module: Any) -> None:
        """Put what was found into a module of the same structure."""
        with self._torch.no_grad():
            for name, value in self._rounded.replaced.items():
                module.get_parameter(name).copy_(value)
