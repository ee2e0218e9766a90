"""Squeeze convolutions: a kernel of k×k places becomes one of 1×1, with k² times fewer weights and multiplications.

The first of SqueezeNet's strategies (F. Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters",
2016), on a network that is trained already::

    before   conv 3×3, 64 → 64, stride 2, padding 1
    after    conv 1×1, 64 → 64, stride 2

What such a layer computes is another thing: it no longer looks at its neighbours. So layers are named, never all of
them; the new weights are those that come closest, by least squares, to what the layer gave on the task's own examples
(what the layers before it give by then is taken into account); and `finetune` trains them on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.extras import require
from edgekit.core.layer_paths import fits_any, require_each_fits
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Split, Task, trainable
from edgekit.passes._graph import shortened, tied_parameters
from edgekit.passes._training.examples import first_examples
from edgekit.passes._training.loop import train
from edgekit.passes._training.options import Training
from edgekit.passes._training.own_loop import own_files
from edgekit.passes.base import Pass, PassContext, PassResult

if TYPE_CHECKING:
    from edgekit.core.task import Batch

_SHOWN = 4
_RIDGE = 1e-6
"""Added to the normal equations' diagonal, as a share of its mean: inputs that are always zero have no weights."""


@dataclass(frozen=True)
class SqueezeOptions:
    """Which convolutions lose their neighbourhood.

    Attributes:
        layers: The convolutions, by module path; `*` stands for any part of it.
        skip: Layers that stay as they are.
        batches: Batches of examples that the new weights are fitted to, of the calibration split, else the training one.
        finetune: How the model is trained afterwards; see `finetune`. Not at all where None.

    Raises:
        ValueError: An option has a value that cannot be; a recipe's error says the line.
    """

    layers: tuple[str, ...]
    skip: tuple[str, ...] = ()
    batches: int = 8
    finetune: Training | None = None

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if not self.layers:
            raise ValueError('layers has to name the convolutions: layers: ["features.4.*"]')
        if self.batches < 1:
            raise ValueError(f"batches has to be at least 1, not {self.batches}")


class Squeeze(Pass):
    """Replaces convolutions by such of one place."""

    summary: ClassVar[str] = "replace named k×k convolutions by 1×1, fitted to what they gave on examples"
    Options: ClassVar[type[Any]] = SqueezeOptions
    before: ClassVar[tuple[str, ...]] = ("learned_rounding", "prune_magnitude", "quantize_aware")

    @property
    def trains(self) -> bool:
        """See `Pass.trains`."""
        return self.options.finetune is not None

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """See `Pass.own_files`: the person's own training loop."""
        return own_files(self.options.finetune, task) if self.options.finetune is not None else ()

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: `layers` or `skip` fits no convolution, or the task lacks what training needs.
            PassError: Training came apart.
        """
        program, options = model.program, self.options
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        if options.finetune is not None:
            trainable(task, f"The pass '{self.name}'")
        paths, stay = self._chosen(program.module)
        if not paths:
            return PassResult(model, modified=False, notes=tuple(stay))
        batches = _examples(program, task, options.batches)
        module = copy.deepcopy(program.module).eval()
        with context.progress.step("squeezing convolutions", len(paths)) as step:
            errors = []
            for path in paths:
                errors.append(_squeeze(program, module, path, batches))
                step.advance(1)
        notes = [*_notes(program.module, paths, errors, batches), *shortened(stay, _SHOWN, "stay")]
        if options.finetune is not None:
            outcome = train(program.with_module(module), task, options.finetune, context, name=self.name)
            notes += outcome.notes()
        result = program.with_module(module.eval())
        return PassResult(
            replace(model, program=result, digest=result.digest()),
            modified=True,
            notes=tuple(notes),
            structure={"layers": list(paths)},
        )

    def ensures(self, before: Model, after: Model) -> None:
        """See `Pass.ensures`; weights must be numbers."""
        super().ensures(before, after)
        program = after.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - as above
        for name, parameter in program.module.named_parameters():
            if not bool(_torch().isfinite(parameter).all()):
                raise PassError(f"Squeezing left '{name}' with values that are no numbers.")

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`."""
        for path in structure["layers"]:
            module.set_submodule(path, _small(module.get_submodule(path)))
        return module

    def _chosen(self, module: Any) -> tuple[list[str], list[str]]:
        """The convolutions to replace, in the order of the module tree, and notes on those that stay."""
        found = {path: layer for path, layer in module.named_modules() if isinstance(layer, _convolutions())}
        require_each_fits(
            self.name, {"layers": self.options.layers, "skip": self.options.skip}, list(found), "convolution"
        )
        wanted = [
            path
            for path in found
            if path and fits_any(path, self.options.layers) and not fits_any(path, self.options.skip)
        ]
        tied = tied_parameters(module)
        reasons = {path: _unfit(found[path], f"{path}.weight" in tied) for path in wanted}
        stay = [f"'{path}' stays: {reason}" for path, reason in reasons.items() if reason is not None]
        if not wanted:
            raise ConfigError("squeeze: there is no layer left: `skip` names all of them.")
        return [path for path in wanted if reasons[path] is None], stay


def _torch() -> Any:
    return require("torch", TORCH_EXTRA, "the pass squeeze")


def _convolutions() -> tuple[Any, ...]:
    nn = _torch().nn
    return nn.Conv1d, nn.Conv2d, nn.Conv3d


def _unfit(layer: Any, tied: bool) -> str | None:
    """Why a convolution stays; None where it can be replaced."""
    if type(layer) not in _convolutions():
        return f"it is a {type(layer).__name__}, which may do more than torch's own convolution"
    if all(size == 1 for size in layer.kernel_size):
        return "its kernel has one place already"
    if tied:
        return "its weight is shared with another layer"
    if _padding(layer) is None:
        return "without the places at its border the output would be of another size (padding, or an even kernel)"
    return None


def _padding(layer: Any) -> tuple[int, ...] | None:
    """The padding of the 1×1 convolution whose places are the middles of the layer's; None where there is none."""
    reach = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":
        whole = list(reach)
    elif layer.padding == "valid":
        whole = [0] * len(reach)
    else:
        whole = [2 * size for size in layer.padding]
    left = [pad - far for pad, far in zip(whole, reach, strict=True)]
    # Half a place cannot be, and less than none would be a crop.
    if any(one < 0 for one in left) or any(far % 2 for far in reach):
        return None
    return tuple(one // 2 for one in left)


def _small(layer: Any) -> Any:
    """The convolution of one place that stands for a layer, with weights that are not set yet."""
    made = type(layer)(
        layer.in_channels,
        layer.out_channels,
        kernel_size=1,
        stride=layer.stride,
        padding=_padding(layer),
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )
    return made.to(layer.weight.dtype).train(layer.training)


def _examples(program: TorchProgram, task: Task | None, count: int) -> list[Batch]:
    """The first batches of the calibration split, else of the training one; none without a task."""
    if task is None:
        return []
    splits: tuple[Split, ...] = ("calibration", "train")
    return next((found for split in splits if (found := first_examples(program, task, split, count))), [])


def _squeeze(program: TorchProgram, module: Any, path: str, batches: Sequence[Batch]) -> float | None:
    """Replace one layer in place; what is left of its output's variance unexplained, None without examples."""
    torch = _torch()
    layer, made = program.module.get_submodule(path), _small(module.get_submodule(path))
    sums = None
    with torch.no_grad():
        for inputs, outputs in _pairs(program, module, path, batches):
            sums = _accumulated(sums, _at_places(made, inputs), outputs.transpose(0, 1).flatten(1), layer.groups)
        if sums is None:
            # Neighbours mostly see the same: the sum of a kernel is what it gives where they all do.
            made.weight.copy_(layer.weight.flatten(2).sum(2).reshape(made.weight.shape))
            if made.bias is not None:
                made.bias.copy_(layer.bias)
            left = None
        else:
            left = _fill(made, sums)
    for parameter, was in zip(made.parameters(), layer.parameters(), strict=True):
        parameter.requires_grad = was.requires_grad
    module.set_submodule(path, made)
    return left


def _pairs(program: TorchProgram, module: Any, path: str, batches: Sequence[Batch]) -> Iterator[tuple[Any, Any]]:
    """What the layer gets in the module as it is by now, and what it gave in the original, call by call."""
    made = module.get_submodule(path)
    got: list[Any] = []
    gave: list[Any] = []
    handles = (
        module.get_submodule(path).register_forward_pre_hook(lambda _, inputs: got.append(_batched(inputs[0], made))),
        program.module.get_submodule(path).register_forward_hook(
            lambda _, __, output: gave.append(_batched(output, made))
        ),
    )
    now = program.with_module(module)
    try:
        for batch in batches:
            for one in (now, program):
                one.run(batch)
            yield from zip(got, gave, strict=True)
            got.clear()
            gave.clear()
    finally:
        for handle in handles:
            handle.remove()


def _batched(values: Any, layer: Any) -> Any:
    """A copy, with the axis of the batch: activations after the layer may work in place."""
    return values.clone() if values.dim() == len(layer.stride) + 2 else values.unsqueeze(0).clone()


def _at_places(made: Any, inputs: Any) -> Any:
    """The input's values where the 1×1 convolution reads them: (channels, places of all examples)."""
    edges = [pad for pad in reversed(made.padding) for _ in range(2)]
    mode = "constant" if made.padding_mode == "zeros" else made.padding_mode
    values = _torch().nn.functional.pad(inputs, edges, mode=mode) if any(edges) else inputs
    values = values[(slice(None), slice(None), *(slice(None, None, step) for step in made.stride))]
    return values.transpose(0, 1).flatten(1)


def _accumulated(sums: Any, inputs: Any, outputs: Any, groups: int) -> Any:
    """Products, by group, of inputs (with a one, for the bias) among themselves and with the outputs, and their squares."""
    torch = _torch()
    wanted = outputs.to(torch.float64).reshape(groups, -1, outputs.shape[1])
    given = inputs.to(torch.float64).reshape(groups, -1, inputs.shape[1])
    given = torch.cat([given, torch.ones_like(given[:, :1])], 1)
    found = given @ given.transpose(1, 2), given @ wanted.transpose(1, 2), (wanted**2).sum(2)
    return found if sums is None else tuple(old + new for old, new in zip(sums, found, strict=True))


def _fill(made: Any, sums: Any) -> float:
    """Solve for weights (and the bias, where there is one); the share of the outputs' variance that is not explained."""
    torch = _torch()
    inner, cross, squares = sums
    count, means = inner[:, -1, -1], cross[:, -1]
    if made.bias is None:
        inner, cross = inner[:, :-1, :-1], cross[:, :-1]
    size = inner.shape[1]
    ridge = _RIDGE * inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    found = torch.linalg.solve(inner + ridge[:, None, None] * torch.eye(size, dtype=torch.float64), cross)
    weights = found[:, :-1] if made.bias is not None else found
    made.weight.copy_(weights.transpose(1, 2).reshape(made.weight.shape))
    if made.bias is not None:
        made.bias.copy_(found[:, -1].flatten())
    unexplained = squares - 2 * (found * cross).sum(1) + (found * (inner @ found)).sum(1)
    spread = squares - means**2 / count[:, None]
    return float(unexplained.sum() / spread.sum().clamp_min(torch.finfo(torch.float64).tiny))


def _notes(module: Any, paths: Sequence[str], errors: Sequence[float | None], batches: Sequence[Batch]) -> list[str]:
    layers = [module.get_submodule(path) for path in paths]
    before = sum(layer.weight.numel() for layer in layers)
    after = sum(layer.weight.numel() // layer.weight[0, 0].numel() for layer in layers)
    told = [f"{len(paths)} convolutions squeezed, their weights {before:,} → {after:,}, their multiplications likewise"]
    if not batches:
        return [*told, "no examples: each kernel is summed over its places"]
    worst = max(range(len(paths)), key=lambda n: errors[n] or 0.0)
    return [
        *told,
        f"fitted to examples; at worst, in '{paths[worst]}', {errors[worst] or 0:.0%} of the variance is lost",
    ]


__all__ = ["Squeeze", "SqueezeOptions"]
