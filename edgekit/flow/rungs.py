"""Rungs: what the ladder tried, what each cost and gained, and how that is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.core import schema
from edgekit.core.lowering import Lowering
from edgekit.core.result import Accuracy
from edgekit.core.units import format_bytes
from edgekit.flow.accuracy import accuracy_of
from edgekit.flow.build import Built

_FINALISTS = 3


@dataclass(frozen=True)
class Rung:
    """One scheme that was tried.

    Attributes:
        name: The scheme, or `mixed`.
        lowering: The options it was compiled with.
        built: The artifact and what is known of it; None where it could not be made.
        refused: Why it could not be made.
        loss: What it costs, in the budget's unit; None where it could not be made.
        inside: Whether the budget and the scheme's own tolerance of parity allow it.
        why_not: Why they do not.
    """

    name: str
    lowering: Lowering
    built: Built | None = None
    refused: str = ""
    loss: float | None = None
    inside: bool = False
    why_not: str = ""

    @property
    def bytes(self) -> int:
        """Size of the artifact; 0 where there is none."""
        return self.built.artifact.bytes if self.built else 0

    @property
    def accuracy(self) -> Accuracy | None:
        """Metrics and agreement on the validation split, before and after."""
        return accuracy_of(self.built, "validation") if self.built else None

    @property
    def sound(self) -> bool:
        """Whether its outputs are inside the scheme's own tolerance of parity."""
        return self.built is not None and self.built.host is not None and not self.built.host.verification.failures()


@dataclass(frozen=True)
class Ladder:
    """What was tried, and what is kept.

    Attributes:
        baseline: The float32 artifact.
        rungs: In the order in which they were tried.
        kept: The smallest inside; None where there is none.
        allowed: The largest loss allowed.
        judged_by: What the loss is of, in words.
        default_budget: Whether the recipe gives no budget.
    """

    baseline: Rung
    rungs: tuple[Rung, ...]
    kept: Rung | None
    allowed: float
    judged_by: str
    default_budget: bool

    @property
    def finalists(self) -> tuple[Rung, ...]:
        """The rungs inside, the smallest first: at most three."""
        inside = sorted((rung for rung in self.rungs if rung.inside), key=lambda rung: rung.bytes)
        return tuple(inside[:_FINALISTS])

    @property
    def best(self) -> Rung | None:
        """The rung that loses least; None where none could be made."""
        made = [rung for rung in self.rungs if rung.loss is not None]
        return min(made, key=lambda rung: (not rung.sound, rung.loss, rung.bytes), default=None)


def title(rung: Rung) -> str:
    """What a rung is, in a few words."""
    in_float = sum(scheme == "float32" for scheme in rung.lowering.overrides.values())
    return f"{rung.name} ({counted(in_float)} in float32)" if in_float else rung.name


def said(rung: Rung, baseline: Rung) -> str:
    """What a rung cost and gained, in a line."""
    name = title(rung)
    if rung.built is None:
        return f"{name}: not possible: {rung.refused}"
    build = rung.built.artifact.build
    parts = [format_bytes(rung.bytes)]
    if rung is not baseline and rung.bytes:
        parts[0] += f" ({baseline.bytes / rung.bytes:.2f}× smaller)"
    if build is not None:
        parts.append(f"download {format_bytes(build.download_bytes)}")
    parts += list(_costs(rung))
    verdict = "" if rung is baseline else "; inside the budget" if rung.inside else f"; outside: {rung.why_not}"
    return f"{name}: {', '.join(parts)}{verdict}"


def _costs(rung: Rung) -> Iterator[str]:
    accuracy = rung.accuracy
    if accuracy is not None and accuracy.metric in accuracy.host:
        error = accuracy.host_standard_error
        spread = f" ± {error:.2g}" if error is not None else ""
        metric = accuracy.metric
        yield (
            f"{metric} {accuracy.source[metric]:.4g} → {accuracy.host[metric]:.4g}{spread} on"
            f" {accuracy.examples} validation examples"
        )
        if accuracy.host_agreement:
            yield f"agreement {min(accuracy.host_agreement.values()):.4g}"
    elif rung.loss is not None:
        yield f"outputs {rung.loss:.4g} from agreeing with the model's"


def document(ladder: Ladder) -> dict[str, Any]:
    """The ladder as JSON shows it."""
    return {
        "judged_by": ladder.judged_by,
        "allowed_drop": ladder.allowed,
        "default_budget": ladder.default_budget,
        "kept": title(ladder.kept) if ladder.kept else None,
        "rungs": [_plain(rung) for rung in (ladder.baseline, *ladder.rungs)],
    }


def _plain(rung: Rung) -> dict[str, Any]:
    build = rung.built.artifact.build if rung.built else None
    host = rung.built.host if rung.built else None
    return {
        "name": rung.name,
        "lowering": schema.to_plain(rung.lowering),
        "refused": rung.refused or None,
        "inside": rung.inside,
        "why_not": rung.why_not or None,
        "loss": rung.loss,
        "digest": rung.built.artifact.digest if rung.built else None,
        "artifact_bytes": rung.bytes or None,
        "download_bytes": build.download_bytes if build else None,
        "accuracy": schema.to_plain(rung.accuracy) if rung.accuracy else None,
        "parity": schema.to_plain(host.verification.parity) if host else None,
        "by": host.verification.by if host else None,
    }


def none_inside(ladder: Ladder) -> str:
    """Why nothing is kept, with the best that there is."""
    best = ladder.best
    tried = ", ".join(dict.fromkeys(title(rung) for rung in ladder.rungs if rung.built))
    if best is None:
        reasons = "; ".join(f"{title(rung)}: {rung.refused}" for rung in ladder.rungs)
        return f"No rung of the ladder could be made: {reasons}"
    return (
        f"No rung of the ladder is inside the budget ({ladder.judged_by}, at most {ladder.allowed:.4g} lost). Tried:"
        f" {tried}. The best is {said(best, ladder.baseline)}."
    )


def counted(layers: int) -> str:
    """`1 layer`, `2 layers`."""
    return f"{layers} layer{'' if layers == 1 else 's'}"
