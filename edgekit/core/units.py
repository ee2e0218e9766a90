"""Names of units, and numbers written for people."""

from __future__ import annotations

MIB = 1 << 20
NS_PER_MS = 1_000_000

UNITS = frozenset({"ms", "s", "mJ", "J", "W", "MiB", "bytes", "inferences/s", "ratio", "dB", "%", "MHz", "degC", ""})


def format_bytes(count: float) -> str:
    """Bytes as a person reads them: `18.6 MB` (powers of ten, as file managers and app stores count)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}" if abs(count) < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_ms(value: float | None) -> str:
    """Milliseconds with three significant digits."""
    if value is None:
        return "–"
    return f"{value:.3g} ms" if abs(value) < 100 else f"{value:.0f} ms"


def format_duration(seconds: float) -> str:
    """A duration as `850 ms`, `12.3 s` or `3 min 20 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
