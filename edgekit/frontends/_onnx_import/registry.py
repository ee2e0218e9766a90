"""Which function translates which ONNX operator, since which opset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekit.frontends._onnx_import.errors import Refused

Handler = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """One translation.

    Attributes:
        since: First opset it is right for.
        run: Called with the `Call` and one value an operand; answers with the outputs, a tuple where there are several.
        widens: Whether uint16, uint32 and uint64 operands are computed as int64, which torch can and they cannot.
        refusal: Why the operator cannot be taken, where all that `run` does is to say so.
    """

    since: int
    run: Handler
    widens: bool = False
    refusal: str = ""


_ENTRIES: dict[tuple[str, str], list[Entry]] = {}


def handles(*op_types: str, since: int = 1, domain: str = "", widens: bool = False) -> Callable[[Handler], Handler]:
    """Register the decorated function as the translation of `op_types`."""

    def register(run: Handler) -> Handler:
        for op_type in op_types:
            add(domain, op_type, Entry(since, run, widens))
        return run

    return register


def refuse(reason: str, *op_types: str, domain: str = "") -> None:
    """Register that `op_types` cannot be taken, and why."""

    def run(call: Any, *operands: Any) -> Any:
        raise Refused(reason)

    for op_type in op_types:
        add(domain, op_type, Entry(1, run, refusal=reason))


def add(domain: str, op_type: str, entry: Entry) -> None:
    """Register one translation."""
    entries = _ENTRIES.setdefault((domain, op_type), [])
    if any(other.since == entry.since for other in entries):
        raise ValueError(f"two translations of {domain or 'ai.onnx'}.{op_type} since opset {entry.since}")
    entries.append(entry)
    entries.sort(key=lambda e: e.since)


def find(domain: str, op_type: str, opset: int) -> Entry | None:
    """The translation of an operator at an opset, or None."""
    known = _ENTRIES.get((domain, op_type), [])
    return next((entry for entry in reversed(known) if entry.since <= opset), None)


def translated() -> tuple[tuple[str, str], ...]:
    """Domain and type of every operator with a translation of its own, sorted."""
    return tuple(sorted(key for key, entries in _ENTRIES.items() if not all(e.refusal for e in entries)))
