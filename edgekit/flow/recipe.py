"""Recipe: the ordered passes and the lowering options, with the budget they must stay within."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgekit.core import schema
from edgekit.core.errors import ConfigError, nearest
from edgekit.core.lowering import AUTO, Lowering, Scheme
from edgekit.core.schema import Document
from edgekit.passes.base import Pass, registry

_RELATIVE = re.compile(r"rel:(?P<percent>\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Budget:
    """How much of the metric may be lost, judged on the validation split.

    Attributes:
        max_drop: Absolute, in the metric's own unit (`0.01`), or relative to the value before (`rel:1%`).
        metric: The metric; the task's own where none is given.
        on_break: What becomes of a pass that loses more: the run stops, or it goes on with the model before the pass.
        judged: After each pass, or after the last: a pass that prunes loses what a later one trains back.
    """

    max_drop: float | str
    metric: str | None = None
    on_break: Literal["stop", "roll_back"] = "stop"
    judged: Literal["after_each_pass", "at_the_end"] = "after_each_pass"

    def allowed_drop(self, before: float) -> float:
        """The largest loss allowed where the metric was `before`."""
        if isinstance(self.max_drop, str):
            match = _RELATIVE.fullmatch(self.max_drop)
            if match is None:  # construction has checked it
                raise ConfigError(f"`max_drop` cannot be '{self.max_drop}'.")
            return abs(before) * float(match["percent"]) / 100
        return self.max_drop


@dataclass(frozen=True)
class Verify:
    """What an artifact's outputs must keep of the model's, where the precision's own tolerance does not fit.

    Attributes:
        min_snr_db: Least signal-to-noise ratio; the precision's own where None.
        min_cosine: Least cosine similarity; the precision's own where None.
    """

    min_snr_db: float | None = None
    min_cosine: float | None = None


@dataclass(frozen=True)
class _RecipeFile:
    schema_version: int
    seed: int = 0
    passes: tuple[Mapping[str, Any], ...] = ()
    lowering: Lowering = Lowering()
    budget: Budget | None = None
    verify: Verify = Verify()


@dataclass(frozen=True)
class Recipe:
    """A recipe whose names, options and order have been checked.

    Attributes:
        passes: The passes in order, with their options.
        lowering: The options of the compilation.
        budget: What may be lost; None where nothing is limited.
        verify: What an artifact's outputs must keep.
        source: The file it came from, for people.
        seed: Of every random choice that a pass makes: the order of training examples, a student's first weights.
    """

    passes: tuple[Pass, ...] = ()
    lowering: Lowering = Lowering()
    budget: Budget | None = None
    verify: Verify = Verify()
    source: str = ""
    seed: int = 0


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: A pass or option is unknown, an option's value is wrong, or the order cannot be.
    """
    return parse_recipe(schema.load_yaml(path))


def parse_recipe(document: Document) -> Recipe:
    """Check a recipe given as data; see `load_recipe`."""
    raw = schema.versioned(_RecipeFile, document)
    passes = [_make(document, index, entry) for index, entry in enumerate(raw.passes)]
    _check_order(document, passes)
    if raw.budget is not None and isinstance(raw.budget.max_drop, str) and not _RELATIVE.fullmatch(raw.budget.max_drop):
        raise ConfigError(
            f"{document.where('budget', 'max_drop')}: `max_drop` cannot be '{raw.budget.max_drop}'.",
            "Write 0.01 for an absolute drop in the metric's own unit, or 'rel:1%' for a relative one.",
        )
    if raw.budget is not None and raw.budget.judged == "at_the_end" and raw.budget.on_break == "roll_back":
        raise ConfigError(
            f"{document.where('budget', 'on_break')}: a budget that is judged at the end cannot roll a pass back.",
            "judged: after_each_pass, or on_break: stop.",
        )
    if raw.verify.min_cosine is not None and not -1 <= raw.verify.min_cosine <= 1:
        raise ConfigError(f"{document.where('verify', 'min_cosine')}: a cosine is between -1 and 1.")
    _check_overrides(document, raw.lowering)
    return Recipe(tuple(passes), raw.lowering, raw.budget, raw.verify, document.source, raw.seed)


def _check_overrides(document: Document, lowering: Lowering) -> None:
    known = ("float32", *(scheme for scheme in get_args(Scheme) if scheme != AUTO))
    for path, scheme in lowering.overrides.items():
        if scheme not in known:
            guess = nearest(scheme, known)
            raise ConfigError(
                f"{document.where('lowering', 'overrides', path)}: a layer cannot be lowered as '{scheme}'."
                f"{f' Did you mean {guess!r}?' if guess else ''}",
                f"One of: {', '.join(known)}.",
            )


def _make(document: Document, index: int, entry: Mapping[str, Any]) -> Pass:
    if len(entry) != 1:
        raise ConfigError(
            f"{document.where('passes', index)}: each pass is one name with its options.",
            "passes:\n  - fold_batch_norm: {}",
        )
    name = next(iter(entry))
    try:
        kind = registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{document.where('passes', index, name)}: {error.message}", error.hint) from error
    return kind(schema.convert(kind.Options, document.at("passes", index, name)))


def _check_order(document: Document, passes: list[Pass]) -> None:
    names = [step.name for step in passes]
    for index, step in enumerate(passes):
        late = [name for name in names[index + 1 :] if name in step.after]
        early = [name for name in names[:index] if name in step.before]
        if late or early:
            other = (late or early)[0]
            first, then = (other, step.name) if late else (step.name, other)
            raise ConfigError(
                f"{document.where('passes', index)}: the pass '{first}' has to come before '{then}'.",
                "Change their order in the recipe.",
            )
