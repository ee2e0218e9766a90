"""Factorize layers: fewer weights and fewer multiplications where a layer's matrix is nearly of low rank.

Linear layers and 1×1 convolutions by a singular value decomposition, other convolutions by Tucker-2, by a spatial
factorization or by CP (see `_low_rank.factors` for each and its source)::

    before   fc (4096 → 1000)
    after    fc.0 (4096 → 120) ──▶ fc.1 (120 → 1000)

A layer is only taken apart where both its weights and its multiplications become fewer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.layer_paths import fits_any, require_each_fits
from edgekit.core.model import Model
from edgekit.core.program import TorchProgram
from edgekit.core.task import Task
from edgekit.passes._graph import Layer, layers_in, tied_parameters
from edgekit.passes._low_rank import ranks
from edgekit.passes._low_rank.factors import (
    Factorized,
    chain,
    fill,
    is_linear,
    kernel_of,
    macs_of,
    torch_,
    weights_of,
)
from edgekit.passes.base import Pass, PassContext, PassResult

Convolution = Literal["tucker2", "spatial", "cp", "none"]


@dataclass(frozen=True)
class LowRankOptions:
    """How ranks are chosen, by one of the first four, and what is factorized.

    Attributes:
        energy: The share of the sum of squared singular values that each layer keeps.
        ratio: The share of each layer's full rank that is kept.
        evbmf: Whether each layer keeps the components that are no noise, as variational Bayes has it.
        budget: The share of the weights of all layers that may be left; the energy is then found, and the same for all.
        convolutions: How convolutions with a kernel of more than one place are factorized.
        layers: The layers to factorize, by module path; `*` stands for any part of it. All where none are given.
        skip: Layers that stay as they are.
    """

    energy: float | None = None
    ratio: float | None = None
    evbmf: bool = False
    budget: float | None = None
    convolutions: Convolution = "tucker2"
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        chosen = [name for name in ("energy", "ratio", "budget") if getattr(self, name) is not None]
        chosen += ["evbmf"] if self.evbmf else []
        if len(chosen) != 1:
            said = " and ".join(chosen) if chosen else "none"
            raise ConfigError(
                f"low_rank takes one of energy, ratio, evbmf and budget; it was given {said}.",
                "low_rank: {energy: 0.6}",
            )
        for name in ("energy", "ratio", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"low_rank: {name} is a share between 0 and 1; it cannot be {value}.")


@dataclass(frozen=True)
class _Candidate:
    """A layer that can be taken apart.

    Attributes:
        path: The module path.
        module: The layer.
        method: By which factorization.
        places: Places of its input and its output.
        spectra: For each rank, the singular values that it is chosen from, with rows and columns of their matrix.
    """

    path: str
    module: Any
    method: Any
    places: tuple[int, int]
    spectra: tuple[tuple[Any, int, int], ...]


class LowRank(Pass):
    """Factorizes linear layers and convolutions, where that makes them smaller and cheaper."""

    summary: ClassVar[str] = (
        "factorize layers (SVD, Tucker-2, spatial, CP) where that saves weights and multiplications"
    )
    Options: ClassVar[type[Any]] = LowRankOptions
    before: ClassVar[tuple[str, ...]] = ("learned_rounding", "quantize_aware")

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: `layers` or `skip` names what is no layer.
        """
        program = model.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        candidates = self._candidates(program)
        chosen = self._chosen(candidates)
        paying = {c.path: how for c, how in zip(candidates, chosen, strict=True) if _pays(c, how)}
        if not paying:
            return PassResult(model, modified=False, notes=(self._nothing(candidates),))
        module = copy.deepcopy(program.module)
        total = len(paying)
        with context.progress.step("factorizing layers", total) as step:
            for path, how in paying.items():
                _replace(module, path, how, weights=True)
                step.advance(1)
        made = program.with_module(module.eval())
        return PassResult(
            replace(model, program=made, digest=made.digest()),
            modified=True,
            notes=self._notes(candidates, paying),
            structure={"layers": {path: {"method": h.method, "ranks": list(h.ranks)} for path, h in paying.items()}},
        )

    def ensures(self, before: Model, after: Model) -> None:
        """See `Pass.ensures`; factors must not be views of one another, and numbers."""
        super().ensures(before, after)
        program = after.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - as above
        for name, parameter in program.module.named_parameters():
            if not bool(torch_().isfinite(parameter).all()):
                raise PassError(f"The factorization left '{name}' with values that are no numbers.")

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`."""
        for path, how in structure["layers"].items():
            _replace(module, path, Factorized(how["method"], tuple(how["ranks"])), weights=False)
        return module

    def _candidates(self, program: TorchProgram) -> list[_Candidate]:
        found: dict[str, Layer] = {}
        used_twice = set()
        for layer in layers_in(program):
            if layer.path in found:
                used_twice.add(layer.path)
            found[layer.path] = layer
        options = self.options
        require_each_fits(self.name, {"layers": options.layers, "skip": options.skip}, list(found))
        wanted = [
            path
            for path in found
            if (not options.layers or fits_any(path, options.layers)) and not fits_any(path, options.skip)
        ]
        modules, tied = dict(program.module.named_modules()), tied_parameters(program.module)
        candidates = []
        for path in wanted:
            layer = found[path]
            # A parameter that is no module's `weight` belongs to a layer that computes with it in its own way.
            module = modules.get(path) if layer.weight == f"{path}.weight" else None
            if module is None or layer.weight in tied or (layer.shared and path not in used_twice):
                continue
            method = self._method(module, layer)
            if method is not None:
                candidates.append(_Candidate(path, module, method, _places(layer), _spectra(module, method)))
        return candidates

    def _method(self, module: Any, layer: Layer) -> Any:
        """How a module is factorized; None where it is not."""
        nn = torch_().nn
        # Exactly this: attention reads the weights of its own class of linear layers past their forward.
        if type(module) is nn.Linear:
            return "svd"
        if not isinstance(module, nn.Conv2d) or module.groups != 1 or module.padding_mode != "zeros":
            return None
        if isinstance(module.padding, str) or not _convolves_only(module, layer):
            return None
        if kernel_of(module) == (1, 1):
            # Two 1×1 convolutions in a row: the padding would get through the first one's bias, which there is none of.
            return "svd" if tuple(module.padding) == (0, 0) else None
        return None if self.options.convolutions == "none" else self.options.convolutions

    def _chosen(self, candidates: Sequence[_Candidate]) -> list[Factorized]:
        options = self.options
        if options.budget is None:
            return [self._ranked(candidate, options.energy) for candidate in candidates]

        def cost(energy: float) -> int:
            return sum(_kept_weights(candidate, self._ranked(candidate, energy)) for candidate in candidates)

        allowed = int(options.budget * sum(candidate.module.weight.numel() for candidate in candidates))
        energy = ranks.common_energy(cost, allowed)
        return [self._ranked(candidate, energy) for candidate in candidates]

    def _ranked(self, candidate: _Candidate, energy: float | None) -> Factorized:
        found = []
        for values, rows, columns in candidate.spectra:
            if energy is not None:
                found.append(ranks.by_energy(values, energy))
            elif self.options.ratio is not None:
                found.append(ranks.by_ratio(values, self.options.ratio))
            else:
                found.append(ranks.by_evbmf(values, rows, columns))
        return Factorized(candidate.method, tuple(found))

    def _nothing(self, candidates: Sequence[_Candidate]) -> str:
        if not candidates:
            return "there is no layer that can be factorized"
        return f"none of {len(candidates)} layers would have fewer weights and fewer multiplications"

    def _notes(self, candidates: Sequence[_Candidate], paying: Mapping[str, Factorized]) -> tuple[str, ...]:
        weights = macs = weights_left = macs_left = 0
        for candidate in candidates:
            whole = (candidate.module.weight.numel(), macs_of(candidate.module, None, candidate.places))
            weights, macs = weights + whole[0], macs + whole[1]
            how = paying.get(candidate.path)
            left = _cost(candidate, how) if how else whole
            weights_left, macs_left = weights_left + left[0], macs_left + left[1]
        return (
            f"{len(paying)} of {len(candidates)} layers factorized",
            f"their weights {weights:,} → {weights_left:,}, their multiplications {macs:,} → {macs_left:,}",
        )


def _cost(candidate: _Candidate, how: Factorized) -> tuple[int, int]:
    return weights_of(candidate.module, how), macs_of(candidate.module, how, candidate.places)


def _pays(candidate: _Candidate, how: Factorized) -> bool:
    weights, macs = _cost(candidate, how)
    return weights < candidate.module.weight.numel() and macs < macs_of(candidate.module, None, candidate.places)


def _kept_weights(candidate: _Candidate, how: Factorized) -> int:
    whole: int = candidate.module.weight.numel()
    return weights_of(candidate.module, how) if _pays(candidate, how) else whole


def _convolves_only(module: Any, layer: Layer) -> bool:
    """Whether a convolution of a class of its own does what torch's does, for inputs of the size that it gets here.

    Classes that pad as TensorFlow does are common; one that standardizes its weights must not be taken for a plain one.
    """
    torch = torch_()
    if type(module) is torch.nn.Conv2d:
        return True
    shape = layer.data.meta["val"].shape
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(module.weight.dtype)
    with torch.no_grad():
        plain = torch.nn.Conv2d._conv_forward(module, given, module.weight, module.bias)
        own = module(given)
    return bool(isinstance(own, torch.Tensor) and own.shape == plain.shape and torch.allclose(own, plain, atol=1e-5))


def _places(layer: Layer) -> tuple[int, int]:
    """Places of a layer's input and of its output: what its weights are used at."""
    import math

    before, after = layer.data.meta["val"].shape, layer.node.meta["val"].shape
    if layer.kind == "linear":
        return (math.prod(before[1:-1]), math.prod(after[1:-1]))
    return (math.prod(before[2:]), math.prod(after[2:]))


def _spectra(module: Any, method: str) -> tuple[tuple[Any, int, int], ...]:
    """The singular values that each rank is chosen from."""
    torch = torch_()
    weight = module.weight.detach().to(torch.float64)
    if is_linear(module) or method == "svd":
        matrices = [weight.flatten(1)]
    elif method == "spatial":
        out, given, high, wide = weight.shape
        matrices = [weight.permute(0, 3, 1, 2).reshape(out * wide, given * high)]
    else:
        matrices = [weight.flatten(1), weight.transpose(0, 1).flatten(1)]
    found = tuple((torch.linalg.svdvals(matrix).numpy(), *map(int, matrix.shape)) for matrix in matrices)
    # One rank for all four factors of CP: that of the unfolding that needs most.
    return found if method == "tucker2" else (max(found, key=lambda one: min(one[1:])),)


def _replace(root: Any, path: str, how: Factorized, *, weights: bool) -> None:
    layer = root.get_submodule(path)
    made = chain(layer, how).to(layer.weight.dtype)
    if weights:
        fill(made, layer, how)
    root.set_submodule(path, made)


__all__ = ["LowRank", "LowRankOptions"]
