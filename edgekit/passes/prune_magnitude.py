"""Prune single weights: those that matter least become exact zeros, which sparse formats and compression leave out.

What matters least is what is smallest (Han et al., "Learning both Weights and Connections", NeurIPS 2015), or what the
loss would miss least: half of h·w², h the curvature along the weight (LeCun et al., "Optimal Brain Damage", NeurIPS
1990), estimated by the mean square of the gradient. Zeros come at once, or while the model trains, by the cubic schedule
of Zhu and Gupta ("To prune, or not to prune", 2017)::

    before   weight                ──▶ layer
    while    weight · mask(step)   ──▶ layer        (masks laid anew every `frequency` steps, and after each step)
    after    weight with zeros     ──▶ layer        (the same modules; nothing of the pruning is left in them)

Biases and norms are never pruned. Zeros by themselves make no runtime faster: the backend has to store them as such.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgekit.core.errors import ConfigError
from edgekit.core.extras import require
from edgekit.core.layer_paths import fits, fits_any, no_layer
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Task, TrainableTask, trainable
from edgekit.passes._graph import shortened
from edgekit.passes._sparsity import (
    Pattern,
    Schedule,
    Weight,
    curvature_of,
    keep_by_layer,
    keep_by_ratio,
    keep_globally,
    parse_pattern,
    share_at,
    spread,
    units_of,
    weights_in,
    zeros_for,
)
from edgekit.passes._training import examples
from edgekit.passes._training.hooks import Hooks
from edgekit.passes._training.loop import train
from edgekit.passes._training.options import Training
from edgekit.passes._training.own_loop import own_files
from edgekit.passes.base import Pass, PassContext, PassResult

_SHOWN = 8


@dataclass(frozen=True)
class PruneMagnitudeOptions:
    """Options of `prune_magnitude`.

    Attributes:
        sparsity: The share of the weights that are zero in the end. With a pattern N:M it follows from that.
        initial_sparsity: Where the polynomial schedule starts from.
        schedule: `polynomial` rises from `begin` to `end`, `constant` is there at `begin`. Without `finetune` neither
            has a say: all zeros come at once.
        begin: The share of the training before the first zero.
        end: The share of the training at which `sparsity` is reached; what is left mends what it cost.
        frequency: Steps of the optimizer between two layings of the masks.
        pattern: `none`; `2:4`, where two of each four input channels stay, and any other N:M; or blocks, as `1x4`: one
            output and four input channels. A layer that a pattern does not divide stays as it is.
        saliency: `magnitude`, or `obd`: what the loss would miss least, which needs a task with batches and a loss.
        scope: Whether each layer gets the same share of zeros, or the least of all layers go.
        layers: The layers to prune, by module path; `*` stands for any part of it. All where none are given.
        skip: Layers that stay as they are.
        finetune: How the model is trained while and after it is pruned; see `finetune`. Not at all where None.

    Raises:
        ValueError: Options that exclude each other or cannot be; a recipe's error says the line.
    """

    sparsity: float | None = None
    initial_sparsity: float = 0.0
    schedule: Schedule = "polynomial"
    begin: float = 0.0
    end: float = 0.75
    frequency: int = 10
    pattern: str | int = "none"
    saliency: Literal["magnitude", "obd"] = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    finetune: Training | None = None

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        pattern = parse_pattern(self.pattern)
        if pattern.share is None:
            if self.sparsity is None:
                raise ValueError("sparsity is missing: the share of the weights that become zero, as 0.8")
        elif self.sparsity is not None and abs(self.sparsity - pattern.share) > 1e-3:
            raise ValueError(
                f"pattern '{self.pattern}' makes {pattern.share:.4g} of the weights zero; leave sparsity out"
            )
        if pattern.kind == "ratio" and self.scope == "global":
            raise ValueError("scope global and a pattern N:M exclude each other: N:M fixes the share of every group")
        if not 0 < self.final < 1:
            raise ValueError(f"sparsity has to be above 0 and below 1, not {self.sparsity}; 1 would empty every layer")
        if not 0 <= self.initial_sparsity <= self.final:
            raise ValueError(f"initial_sparsity has to be between 0 and {self.final:g}, not {self.initial_sparsity}")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"begin and end are shares of the training, 0 ≤ begin < end ≤ 1, not {self.begin}, {self.end}"
            )
        if self.frequency < 1:
            raise ValueError(f"frequency has to be at least 1, not {self.frequency}")

    @property
    def final(self) -> float:
        """The share of zeros in the end."""
        share = parse_pattern(self.pattern).share
        return share if share is not None else float(self.sparsity or 0)


class PruneMagnitude(Pass):
    """Makes the weights that matter least exact zeros."""

    summary: ClassVar[str] = "make single weights zero (magnitude or OBD; at once or by a schedule; N:M, blocks)"
    Options: ClassVar[type[Any]] = PruneMagnitudeOptions
    # Whatever trains or recomputes weights without the masks fills the zeros again; finetune and quantize_aware keep them.
    after: ClassVar[tuple[str, ...]] = ("distill", "lora", "low_rank", "prune_channels", "squeeze")
    before: ClassVar[tuple[str, ...]] = ("learned_rounding", "quantize_aware")

    @property
    def trains(self) -> bool:
        """See `Pass.trains`."""
        return self.options.finetune is not None or self.options.saliency == "obd"

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """See `Pass.own_files`: the person's own training loop."""
        return own_files(self.options.finetune, task) if self.options.finetune else ()

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: `layers` or `skip` names no layer, a layer would lose all its weights, or the task cannot be
                trained with.
            PassError: Training came apart.
        """
        program, options = model.program, self.options
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        chosen, notes = self._chosen(program)
        if not chosen:
            return PassResult(model, modified=False, notes=(*notes, "there is no layer to prune"))
        training = options.finetune
        able = None
        if training is not None or options.saliency == "obd":
            able = trainable(task, f"The pass '{self.name}'")
        pruned = program.with_module(copy.deepcopy(program.module))
        masks = Masks(pruned, chosen, options, able)
        masks.check()
        trained = _train(pruned, masks, training, able, context, self.name) if training and able else ()
        # The weights that are kept need not be those of the last masks.
        masks.lay(options.final)
        fresh = copy.deepcopy(program.module)
        # Not the module that trained: that one has hooks on its gradients.
        fresh.load_state_dict(pruned.module.state_dict())
        result = program.with_module(fresh.eval())
        shares = {path: share for weight in chosen for path, share in _shares(fresh, weight)}
        told = (_overall(fresh, chosen), *_by_layer(shares), *_tied(chosen), *notes, *trained)
        structure = {"sparsity": shares, "pattern": _written(parse_pattern(options.pattern))}
        if result.weights_digest() == program.weights_digest():
            return PassResult(model, modified=False, notes=told, structure=structure)
        return PassResult(replace(model, program=result, digest=result.digest()), True, told, structure)

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`; the structure stays, the zeros come with the weights."""
        return module

    def _chosen(self, program: TorchProgram) -> tuple[list[Weight], list[str]]:
        found, notes = weights_in(program)
        options, pattern = self.options, parse_pattern(self.options.pattern)
        paths = [path for weight in found for path in weight.layers]
        for option in ("layers", "skip"):
            for wanted in getattr(options, option):
                if not any(fits(path, wanted) for path in paths):
                    raise no_layer(f"prune_magnitude: {option}: '{wanted}' fits no layer", wanted, paths, _SHOWN)
        chosen, misfits = [], []
        for weight in found:
            listed = not options.layers or any(fits_any(path, options.layers) for path in weight.layers)
            if not listed or any(fits_any(path, options.skip) for path in weight.layers):
                continue
            reason = weight.misfit(program.module.get_parameter(weight.parameter).shape, pattern)
            if reason:
                misfits.append(f"'{weight.layers[0]}' stays: {reason}")
            else:
                chosen.append(weight)
        return chosen, [*shortened(misfits, _SHOWN, "stay"), *shortened(notes, _SHOWN, "stay")]


class Masks:
    """The masks of a module's weights. They depend on the weights alone, so that a resumed run has the same.

    Args:
        program: The program around the module that is pruned in place.
        weights: The weights to prune.
        options: How.
        task: What the saliency `obd` is judged by; None where it is not asked for.
    """

    def __init__(
        self,
        program: TorchProgram,
        weights: Sequence[Weight],
        options: PruneMagnitudeOptions,
        task: TrainableTask | None,
    ) -> None:
        self.program, self.weights, self.options, self.task = program, weights, options, task
        self.pattern: Pattern = parse_pattern(options.pattern)
        self.held = {weight.parameter: program.module.get_parameter(weight.parameter) for weight in weights}
        self.masks: dict[str, Any] = {}
        self.curvature: dict[str, Any] | None = None

    def check(self) -> None:
        """See that the share that is asked for leaves every layer something.

        Raises:
            ConfigError: It does not.
        """
        final, scope = self.options.final, self.options.scope
        if self.pattern.kind == "ratio":
            return
        masks = self._made(final) if scope == "global" else {}
        for weight in self.weights:
            name, kind = weight.parameter, "blocks" if self.pattern.kind == "block" else "weights"
            units = units_of(self.held[name].detach(), weight.axis, self.pattern).numel()
            if bool(masks[name].any()) if masks else zeros_for(final, units) < units:
                continue
            raise ConfigError(
                f"prune_magnitude: sparsity {final:g} would empty the layer '{weight.layers[0]}': none of its {units}"
                f" {kind} would stay.",
                f"Leave it out (skip: ['{weight.layers[0]}']), lower sparsity"
                + (", or write scope: layer." if masks else "."),
            )

    def look(self) -> None:
        """Estimate the curvature anew, where the saliency needs it."""
        if self.options.saliency == "obd" and self.task is not None:
            self.curvature = curvature_of(self.program, self.task, self.held)

    def lay(self, share: float) -> None:
        """Choose the weights that become zero, and make them so."""
        self.masks = self._made(share)
        self.put()

    def put(self) -> None:
        """Make the weights that were chosen zero, whatever they have become."""
        with require("torch", TORCH_EXTRA, "pruning").no_grad():
            for name, mask in self.masks.items():
                # Not a product: that leaves -0.0, and keeps what is no number.
                self.held[name].masked_fill_(~mask, 0.0)

    def watch(self) -> None:
        """Keep the gradients of zeros at zero: a loop of the person's own, and the gradient's norm, know no masks."""
        for name, parameter in self.held.items():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, name=name: self._masked(gradient, name))

    def _masked(self, gradient: Any, name: str) -> Any:
        return gradient * self.masks[name] if name in self.masks else gradient

    def _made(self, share: float) -> dict[str, Any]:
        if self.options.saliency == "obd" and self.curvature is None:
            self.look()
        units = {w.parameter: units_of(self._saliency(w.parameter), w.axis, self.pattern) for w in self.weights}
        if self.pattern.kind == "ratio":
            kept = {name: keep_by_ratio(values, share, self.pattern) for name, values in units.items()}
        elif self.options.scope == "global":
            kept = keep_globally(units, share)
        else:
            kept = {name: keep_by_layer(values, share) for name, values in units.items()}
        return {w.parameter: spread(kept[w.parameter], w.axis, self.pattern) for w in self.weights}

    def _saliency(self, name: str) -> Any:
        weight = self.held[name].detach()
        return weight.abs() if self.curvature is None else self.curvature[name] * weight.square() / 2


class PruneHooks(Hooks):
    """Lays masks while the model trains.

    Args:
        masks: The masks.
        training: How it trains.
        steps: Steps of an epoch.
    """

    def __init__(self, masks: Masks, training: Training, steps: int) -> None:
        self.masks, self.training, self.steps = masks, training, steps
        self.epoch, self.step, self.reached = 0, 0, 0.0

    def share(self, point: float) -> float:
        """The share of zeros at a share of the training."""
        options = self.masks.options
        return share_at(
            point,
            options.schedule,
            initial=options.initial_sparsity,
            final=options.final,
            begin=options.begin,
            end=options.end,
        )

    def before_epoch(self, program: TorchProgram, epoch: int) -> None:
        """See `Hooks.before_epoch`: the masks are chosen from the weights as they are."""
        if self.training.loop is not None:
            return
        self.epoch, self.step = epoch, 0
        self.masks.look()
        self._lay((epoch - 1) / self.training.epochs)

    def after_step(self, module: Any) -> None:
        """See `Hooks.after_step`."""
        self.step += 1
        point = (self.epoch - 1 + min(self.step / self.steps, 1.0)) / self.training.epochs
        due = ((self.epoch - 1) * self.steps + self.step) % self.masks.options.frequency == 0
        if self.share(point) > self.reached and (due or self.share(point) == self.masks.options.final):
            self._lay(point)
        else:
            self.masks.put()

    def counts(self, epoch: int) -> bool:
        """See `Hooks.counts`: not before all zeros are there."""
        return self.share(epoch / self.training.epochs) == self.masks.options.final

    def _lay(self, point: float) -> None:
        self.reached = self.share(point)
        self.masks.lay(self.reached)


def _train(
    program: TorchProgram, masks: Masks, training: Training, able: TrainableTask, context: PassContext, name: str
) -> tuple[str, ...]:
    hooks = PruneHooks(masks, training, examples.count_batches(able))
    own = training.loop is not None
    # The project's own loop knows no schedule; and where nothing comes before the zeros, the first score is theirs.
    if own or hooks.share(0.0) == masks.options.final:
        masks.lay(masks.options.final)
    masks.watch()
    outcome = train(program, able, training, context, hooks, name=name)
    if own:
        # It may have filled zeros; what was pruned is what it trained for.
        masks.put()
    return ("pruned at once: the project's own loop knows no schedule", *outcome.notes()) if own else outcome.notes()


def _shares(module: Any, weight: Weight) -> list[tuple[str, float]]:
    values = module.get_parameter(weight.parameter)
    share = float((values == 0).sum()) / values.numel()
    return [(path, round(share, 6)) for path in weight.layers]


def _overall(module: Any, weights: Sequence[Weight]) -> str:
    held = [module.get_parameter(weight.parameter) for weight in weights]
    zeros, every = sum(int((values == 0).sum()) for values in held), sum(values.numel() for values in held)
    layers = sum(len(weight.layers) for weight in weights)
    return f"{zeros / every:.1%} of {every:,} weights in {layers} layer{'s' if layers > 1 else ''} are zero"


def _by_layer(shares: Mapping[str, float]) -> list[str]:
    return shortened([f"'{path}' {share:.1%}" for path, share in shares.items()], _SHOWN, "are in the history")


def _tied(weights: Sequence[Weight]) -> list[str]:
    return [f"{' and '.join(map(repr, w.layers))} share a weight: pruned once" for w in weights if len(w.layers) > 1]


def _written(pattern: Pattern) -> str:
    if pattern.kind == "single":
        return "none"
    return f"{pattern.kept}:{pattern.columns}" if pattern.kind == "ratio" else f"{pattern.rows}x{pattern.columns}"


__all__ = ["PruneMagnitude", "PruneMagnitudeOptions"]
