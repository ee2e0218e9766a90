"""Which operators of an artifact left the runtime's delegate and fell back to its built-in kernels."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.errors import VerificationError
from edgekit.core.result import Result
from edgekit.flow.build import Built


def fallback_on_host(built: Built) -> Mapping[str, int] | None:
    """How many operators of each kind were not delegated when the artifact was verified on this host.

    None where that is not known: the artifact was not run, or its runtime does not say. An empty mapping says that the
    delegate took everything.
    """
    return _left(built.host.verification.runtime) if built.host is not None else None


def fallback_on_device(result: Result) -> Mapping[str, int] | None:
    """The same of a visit to a device, whose delegate may take others than the host's."""
    for measurement in result.measurements:
        found = _left(measurement.metadata)
        if found is not None:
            return found
    return None


def require_delegated(built: Built) -> None:
    """Stop for an artifact with operators that fell back; for `--fail-on fallback`.

    Raises:
        VerificationError: Some did, or nobody knows.
    """
    manifest, left = built.artifact.manifest, fallback_on_host(built)
    if left is None:
        raise VerificationError(
            f"Nothing is known of operators of '{manifest.name}' that fall back: "
            + (
                f"the runtime of {manifest.backend} does not tell."
                if built.host is not None
                else "the artifact was not run here."
            ),
            "Leave out --fail-on fallback, or --no-verify where it is given.",
        )
    if left:
        raise VerificationError(
            f"The {manifest.backend} artifact of '{manifest.name}' has operators that its delegate does not take:"
            f" {listed(left)}.",
            "They run on the runtime's built-in kernels. Write them with other operators, or leave out --fail-on fallback.",
        )


def listed(left: Mapping[str, int]) -> str:
    """Kinds of operators for people, most frequent first."""
    ordered = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} × {name}" for name, count in ordered)


def _left(facts: Mapping[str, object]) -> Mapping[str, int] | None:
    found = facts.get("not_delegated")
    return {str(name): int(count) for name, count in found.items()} if isinstance(found, Mapping) else None
