"""Quantization-aware training: weights that lie on a grid of few levels, trained while they lie there.

Forward, each weight is `scale[channel] * level`; backward, gradients pass the rounding (straight-through estimator).
For 2 to 8 bits the scales are learned too (Esser et al., "Learned Step Size Quantization", ICLR 2020), from those with
the least squared error; for 1 bit a channel's scale is the mean size of its weights (Rastegari et al., "XNOR-Net",
ECCV 2016). Activations, where they are rounded, have a learned scale and a fitted zero point (after Bhalgat et al.,
"LSQ+", CVPR Workshops 2020)::

    before   weight ──▶ conv ──▶ batch_norm ──▶ relu
    while    weight ──▶ round to grid ──▶ conv ──▶ batch_norm ──▶ relu       (input rounded too with activation_bits)
    after    weight' = scale · level ──▶ conv ──▶ batch_norm ──▶ relu

A batch norm may stay behind its layer, which is best below 8 bits: it learns along. Grids and scales are those of the
module as it is. Where a backend multiplies the batch norm into the weights, each channel's scale is multiplied by γ/σ
and its levels stay, mirrored where γ is negative: all levels are symmetric, so that a mirrored one is a level too.

Weights that `prune_magnitude` has made zero stay zero, which 3 and more bits have a level for; fewer are refused for
such layers.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.grid import Trained, structure_of
from edgekit.core.model import Model
from edgekit.core.program import TorchProgram
from edgekit.core.task import Task, trainable
from edgekit.passes._training.grids import GridHooks, finished, fit_activations, install
from edgekit.passes._training.layers import Layer, bits_by_layer, layers_of
from edgekit.passes._training.levels import BITS, levels_of
from edgekit.passes._training.loop import Outcome, train
from edgekit.passes._training.masks import Zeros, zeros_of
from edgekit.passes._training.options import Training
from edgekit.passes._training.own_loop import own_files
from edgekit.passes.base import Pass, PassContext, PassResult

_SHOWN = 3


@dataclass(frozen=True)
class QuantizeAwareOptions:
    """Options of `quantize_aware`.

    Attributes:
        bits: Bits of the weights: 8, 4, 3, 2 or 1.
        activation_bits: 8 where the inputs of the layers are rounded too, as a static int8 scheme does; None leaves
            them float.
        keep_first_last: Whether the first and the last layer get 8 bits where the others get fewer than 4.
        keep: Layers that stay float, by torch module path; `*` stands for any part of it.
        overrides: Bits of single layers, by path; the last entry that fits a layer decides.
        progressive: Bits that come first, as `[8, 4]` before 2: half of the epochs are shared between them. Only for
            the layers that are to have fewer.
        finetune: How it is trained; see `finetune`.

    Raises:
        ValueError: Bits that are none of the choices; a recipe's error says the line.
    """

    bits: int
    activation_bits: Literal[8] | None = None
    keep_first_last: bool = True
    keep: tuple[str, ...] = ()
    overrides: Mapping[str, int] = field(default_factory=dict)
    progressive: tuple[int, ...] = ()
    finetune: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        choices = ", ".join(map(str, BITS))
        for name, value in (
            ("bits", self.bits),
            *((f"overrides of '{path}'", own) for path, own in self.overrides.items()),
        ):
            if value not in BITS:
                raise ValueError(f"{name} cannot be {value}; choices: {choices}")
        stages = (*self.progressive, self.bits)
        if any(stage not in BITS for stage in stages) or any(a <= b for a, b in itertools.pairwise(stages)):
            raise ValueError(f"progressive has to fall to more than {self.bits} bits, by the choices {choices}")
        if self.finetune.epochs < 2 * len(self.progressive):
            raise ValueError(
                f"progressive has {len(self.progressive)} stages, which takes finetune: {{epochs: {2 * len(self.progressive)}}} or more"
            )


class QuantizeAware(Pass):
    """Trains the model with its weights on a grid of few levels."""

    summary: ClassVar[str] = "train the model with weights of 8 to 1 bits"
    Options: ClassVar[type[Any]] = QuantizeAwareOptions

    @property
    def trains(self) -> bool:
        """See `Pass.trains`."""
        return True

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """See `Pass.own_files`: the person's own training loop."""
        return own_files(self.options.finetune, task)

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: The task cannot be trained with, `keep` or `overrides` name no layer, or a layer was pruned to
                zeros and is to have so few bits that none of its levels is zero.
            PassError: The model has no layer whose weights could be quantized, or training came apart.
        """
        program, options = model.program, self.options
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        able = trainable(task, f"The pass '{self.name}'")
        layers, skipped = layers_of(program)
        if not layers:
            reasons = "; ".join(skipped[:_SHOWN]) or "it has no convolution or linear layer with weights of its own"
            raise PassError(f"The pass '{self.name}' finds no layer of {model.source} to quantize: {reasons}.")
        bits = bits_by_layer(
            layers,
            options.bits,
            keep_first_last=options.keep_first_last,
            keep=options.keep,
            overrides=options.overrides,
        )
        zeros = zeros_of(model)
        _require_a_zero(layers, bits, zeros)
        trained = program.with_module(copy.deepcopy(program.module))
        grids = install(trained.module, layers, bits, options.activation_bits)
        fit_activations(trained, able)
        hooks = GridHooks(grids, able, options.progressive, options.finetune.epochs)
        outcome = train(trained, able, options.finetune, context, zeros.around(hooks, trained.module), name=self.name)
        zeros.put(trained.module)
        # The grids of the last epoch's stage, whatever epoch's weights are kept.
        fresh = copy.deepcopy(program.module)
        fixed = finished(trained.module, fresh, layers, grids)
        result = program.with_module(fresh.eval())
        notes = _notes(layers, fixed, skipped, outcome)
        new = replace(model, program=result, digest=result.digest())
        return PassResult(new, modified=True, notes=notes, structure=structure_of(fixed))

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`; the structure stays, the weights on their grids are loaded afterwards."""
        return module


def _require_a_zero(layers: Sequence[Layer], bits: Mapping[str, int], zeros: Zeros) -> None:
    """Refuse grids on which what was pruned could not stay zero.

    Raises:
        ConfigError: There is one.
    """
    lost = [
        (layer.key, share)
        for layer in layers
        if layer.key in bits and 0 not in levels_of(bits[layer.key]) and (share := zeros.share(layer.name))
    ]
    if lost:
        key, share = lost[0]
        fewest = min(own for own in BITS if 0 in levels_of(own))
        more = f", as would those of {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ConfigError(
            f"quantize_aware: the {share:.0%} zeros that prune_magnitude made in '{key}' would be lost{more}: no level"
            f" of {bits[key]} bit{'s' if bits[key] > 1 else ''} is zero.",
            f"Give it {fewest} bits or more (overrides: {{{key}: {fewest}}}), keep it float (keep: [{key}]), or leave"
            " out prune_magnitude.",
        )


def _notes(layers: list[Layer], fixed: Trained, skipped: list[str], outcome: Outcome) -> tuple[str, ...]:
    counts = Counter(grid.bits for grid in fixed.grids.values())
    told = [
        f"{count} layer{'s' if count > 1 else ''} at {bits} bit{'s' if bits > 1 else ''}"
        for bits, count in sorted(counts.items())
    ]
    float_layers = [layer.key for layer in layers if layer.key not in fixed.grids]
    if float_layers:
        told.append(f"{len(float_layers)} kept float")
    if fixed.ranges and outcome.after is not None:
        told.append(f"{outcome.metric} {outcome.after:.4g} with rounded activations")
    more = [f"and {len(skipped) - _SHOWN} more stay"] if len(skipped) > _SHOWN else []
    return (", ".join(told), *skipped[:_SHOWN], *more, *outcome.notes())
