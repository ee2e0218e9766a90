"""The ladder: `scheme: auto` tries schemes from the mildest on, and keeps the smallest artifact that the budget allows.

    float16 → static 8-bit → mixed: static 8-bit with the most sensitive layers in float32 → 8-bit weights → 4-bit weights

Each rung is built and measured like any other artifact, on the validation split. The mixed rungs are tried only where
static 8-bit loses too much; the float32 artifact is made as well, for what the others gain is told by it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit.backends.base import Backend, listed
from edgekit.core.errors import BackendError, BudgetError, ConfigError, UnsupportedModelError, VerificationError
from edgekit.core.lowering import AUTO, Lowering, Quantize, Scheme
from edgekit.core.stats import share_error
from edgekit.core.target import Target
from edgekit.core.units import format_bytes
from edgekit.flow import mixed, sensitivity
from edgekit.flow.accuracy import accuracy_of
from edgekit.flow.build import Builder, Built, choose_backend
from edgekit.flow.recipe import Budget
from edgekit.flow.rungs import Ladder, Rung, counted, document, none_inside, said, title

STATIC: Scheme = "static_wi8_ai8"
MIXED = "mixed"
DEFAULT_BUDGET = Budget(max_drop=0.01)
_BEFORE_MIXED: tuple[Scheme, ...] = ("float16", STATIC)
_AFTER_MIXED: tuple[Scheme, ...] = ("weight_only_wi8_afp32", "weight_only_wi4_afp32", "palette_4")
_KEPT_IN_FLOAT = 0.5
"""Where more of the layers than this would stay in float32, mixed precision is no longer what was asked for."""


class NoRungError(BudgetError):
    """No rung is inside the budget.

    Attributes:
        ladder: What was tried.
    """

    def __init__(self, message: str, hint: str = "", ladder: Ladder | None = None) -> None:
        super().__init__(message, hint)
        self.ladder = ladder
        self.details = {"ladder": document(ladder)} if ladder is not None else {}


@dataclass(frozen=True)
class Made:
    """What `make` gives.

    Attributes:
        built: The artifact that is kept.
        ladder: How it was chosen; None where the recipe names its scheme.
    """

    built: Built
    ladder: Ladder | None = None


def is_auto(builder: Builder, target: Target) -> bool:
    """Whether a target's recipe leaves the scheme to the ladder."""
    return builder.project.recipe_for(target).lowering.precision == AUTO


def make(builder: Builder, target: Target, backend_name: str | None = None, *, verify: bool = True) -> Made:
    """The artifact for a target: by its recipe's scheme, or the one that the ladder keeps.

    Raises:
        NoRungError: No rung of the ladder is inside the budget.
        ConfigError: The ladder is to be climbed without comparing artifacts with the model.
        EdgekitError: As `Builder.build`.
    """
    if not is_auto(builder, target):
        return Made(builder.build(target, backend_name, verify=verify))
    if not verify:
        raise ConfigError(
            "The scheme auto chooses by what each artifact costs: it cannot do without verification.",
            "Name a scheme in the recipe's lowering.quantize, or leave out --no-verify.",
        )
    ladder = climb(builder, target, backend_name)
    if ladder.kept is None or ladder.kept.built is None:
        raise NoRungError(none_inside(ladder), "Raise budget.max_drop in the recipe, or compile to float32.", ladder)
    return Made(ladder.kept.built, ladder)


def climb(builder: Builder, target: Target, backend_name: str | None = None) -> Ladder:
    """Try every rung that the backend can do, and tell of each.

    Raises:
        VerificationError: Not even the float32 artifact computes what the model computes.
    """
    return _Climb(builder, target, choose_backend(target, backend_name)).ladder()


class _Climb:
    def __init__(self, builder: Builder, target: Target, backend: Backend) -> None:
        self.builder, self.target, self.backend = builder, target, backend
        self.recipe = builder.project.recipe_for(target)
        self.quantize = self.recipe.lowering.quantize or Quantize(AUTO)
        self.budget = self.recipe.budget or DEFAULT_BUDGET
        data = builder.data
        self.by_metric = data is not None and data.split("validation") is not None
        self.calibrated = data is not None and data.split("calibration") is not None
        self.metric = self.budget.metric or (data.metric if data else "")

    def ladder(self) -> Ladder:
        self._say_how()
        plain = self.builder.made(
            self.target, self.backend.name, replace(self.recipe.lowering, quantize=None, overrides={})
        )
        self.baseline = self._judged(Rung("float32", plain.artifact.manifest.lowering, plain))
        self._tell(self.baseline)
        self._warn_of_chance(plain)
        rungs: list[Rung] = []
        for rung in self._rungs(rungs):
            self._tell(rung)
            rungs.append(rung)
        inside = [rung for rung in rungs if rung.inside]
        kept = min(inside, key=lambda rung: rung.bytes, default=None)
        ladder = Ladder(
            self.baseline, tuple(rungs), kept, self._allowed(plain), self._judged_by(), self.recipe.budget is None
        )
        if kept is not None:
            self.builder.progress.note(f"kept: {title(kept)}, the smallest inside the budget")
            if kept.bytes >= self.baseline.bytes:
                self.builder.progress.warn(
                    f"No scheme makes this model smaller than float32 ({format_bytes(self.baseline.bytes)}): leave out"
                    " `quantize` for it."
                )
        return ladder

    def _say_how(self) -> None:
        progress = self.builder.progress
        if self.recipe.budget is None:
            progress.note(f"The recipe has no budget: a drop of {DEFAULT_BUDGET.max_drop} (absolute) is allowed.")
        if not self.by_metric:
            progress.warn(
                "There are no validation examples: rungs are judged by how their outputs agree with the model's on golden"
                " and random inputs."
            )

    def _warn_of_chance(self, plain: Built) -> None:
        """A budget narrower than what the examples can tell apart decides by chance."""
        accuracy = accuracy_of(plain, "validation")
        error = share_error(accuracy.source.get(self.metric), accuracy.examples) if accuracy else None
        if accuracy is not None and error is not None and error > self._allowed(plain):
            self.builder.progress.warn(
                f"{accuracy.examples} validation examples tell {self.metric} with a standard error of {error:.2g}; the"
                f" budget is {self._allowed(plain):.2g}: more examples would decide better."
            )

    def _judged_by(self) -> str:
        if self.by_metric:
            return f"{self.metric} on the validation split"
        return "agreement and cosine of the outputs with the model's, on golden and random inputs"

    def _rungs(self, done: Sequence[Rung]) -> Iterator[Rung]:
        for scheme in _BEFORE_MIXED:
            yield self._rung(scheme, self._lowering(scheme))
        static = next(rung for rung in done if rung.name == STATIC)
        if static.built is not None and not static.inside:
            yield from self._mixed(static, done)
        for scheme in _AFTER_MIXED:
            # The one set of 4-bit weights that a backend has is shown; that it lacks the other is no news.
            if scheme in self.backend.schemes or scheme == "weight_only_wi8_afp32":
                yield self._rung(scheme, self._lowering(scheme))

    def _lowering(self, scheme: Scheme, in_float: Sequence[str] = ()) -> Lowering:
        overrides = {**self.recipe.lowering.overrides, **dict.fromkeys(in_float, "float32")}
        quantize = replace(self.quantize, scheme=scheme)
        # What only some of the rungs have a use for is left to those: backends refuse options that change nothing.
        if scheme != "weight_only_wi4_afp32":
            quantize = replace(quantize, block_size=None)
        if scheme != STATIC:
            quantize = replace(quantize, ranges=Quantize(scheme).ranges)
        return replace(self.recipe.lowering, quantize=quantize, overrides=overrides)

    def _rung(self, name: str, lowering: Lowering) -> Rung:
        rung = Rung(name, lowering)
        if lowering.precision == STATIC and not self.calibrated:
            return replace(rung, refused="there are no calibration examples")
        source = self.builder.source.info
        format_ = source.format if source.format in self.backend.reads else self.backend.reads[0]
        issues = self.backend.unsupported(format_, source.outputs, lowering, self.target)
        if issues:
            return replace(rung, refused=listed(issues))
        try:
            built = self.builder.made(self.target, self.backend.name, lowering)
        except (UnsupportedModelError, BackendError, VerificationError) as error:
            return replace(rung, refused=error.message)
        return self._judged(replace(rung, built=built))

    def _mixed(self, static: Rung, done: Sequence[Rung]) -> Iterator[Rung]:
        """Static 8-bit with 1, 2, 4, … layers in float32, the dearest first, until one is inside."""
        first = self._lowering(STATIC, ("*",))
        issues = self.backend.unsupported(self.backend.reads[0], self.builder.source.info.outputs, first, self.target)
        state = self.builder.state_for(self.target, self.backend)
        refused = listed(issues) if issues else ""
        if not refused and state.info.format != "pt2":
            refused = f"the {state.info.format} program has no module paths to name layers by"
        if refused:
            yield Rung(MIXED, self._lowering(STATIC), refused=refused)
            return
        request = sensitivity.Request(precisions=(STATIC,), quantize=self._lowering(STATIC).quantize or self.quantize)
        found = sensitivity.measure(state, self.builder.tools, request)
        saved = {effect.layer: effect.bytes_saved for effect in found.effects}
        modules = {layer.path for layer in sensitivity.layers_of(state, self.builder.tools) if layer.module}
        order = [path for path in mixed.keep_order(mixed.choices_of(found)) if path in modules]
        ceiling = min((rung.bytes for rung in done if rung.inside), default=self.baseline.bytes)
        count = 1
        while count <= max(1, int(len(order) * _KEPT_IN_FLOAT)) and order:
            kept = order[:count]
            if static.bytes + sum(saved[path] for path in kept) >= ceiling:
                yield Rung(MIXED, self._lowering(STATIC, kept), refused=f"with {counted(count)} it is no smaller")
                return
            rung = self._rung(MIXED, self._lowering(STATIC, kept))
            yield rung
            if rung.inside or rung.built is None:
                return
            count *= 2

    def _judged(self, rung: Rung) -> Rung:
        built = rung.built
        if built is None or built.host is None:
            return rung
        loss, allowed = self._loss(built), self._allowed(built)
        reasons = built.host.verification.failures()
        if loss > allowed + 1e-9:
            reasons.append(f"a loss of {loss:.4g} where {allowed:.4g} is allowed")
        return replace(rung, loss=loss, inside=not reasons, why_not="; ".join(reasons))

    def _loss(self, built: Built) -> float:
        if self.by_metric:
            before, after = built.source_metrics["validation"], built.host_metrics["validation"]
            if self.metric not in before:
                raise ConfigError(
                    f"The recipe's budget is about '{self.metric}', which the task's score does not give; it gives"
                    f" {', '.join(sorted(before))}."
                )
            change = before[self.metric] - after[self.metric]
            return change if built.data is None or built.data.direction == "larger" else -change
        parities = [p for found in (built.host.verification.parity if built.host else {}).values() for p in found]
        agreements = [1.0 - p.agreement for p in parities if p.agreement is not None]
        return max([0.0, *(1.0 - p.cosine for p in parities), *agreements])

    def _allowed(self, built: Built) -> float:
        return self.budget.allowed_drop(built.source_metrics["validation"][self.metric] if self.by_metric else 1.0)

    def _tell(self, rung: Rung) -> None:
        self.builder.progress.note(said(rung, self.baseline))


def fastest(
    finalists: Sequence[Rung], times: Mapping[str, Sequence[float]], tie: float = 0.03
) -> tuple[Rung, dict[str, float]]:
    """Of the finalists the one that is fastest where it was measured; the smaller of those that are equally fast.

    Args:
        finalists: Rungs inside the budget, the smallest first.
        times: Latencies in ms by the rung's title; a rung that gave none counts only where none did.
        tie: Medians closer to the best than this share are the same.

    Returns:
        The rung, and the medians that are known, by title.
    """
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    limit = min(medians.values(), default=0.0) * (1 + tie)
    fits = [rung for rung in finalists if not medians or medians.get(title(rung), math.inf) <= limit]
    return fits[0], medians
