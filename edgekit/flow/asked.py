"""What a person asks of a measurement, in their words: shares, durations and sweeps, read with clear errors."""

from __future__ import annotations

import re
from dataclasses import replace

from edgekit.core.conditions import Held
from edgekit.core.errors import ConfigError
from edgekit.flow.measure import Settings

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def settings_with(
    settings: Settings,
    *,
    ci: str | None = None,
    max_seconds: float | None = None,
    governor: str | None = None,
    cool_below: float | None = None,
    sweep: list[str] | None = None,
    sustained: str | None = None,
) -> Settings:
    """The settings with what was typed.

    Raises:
        ConfigError: It cannot be read, or cannot be done.
    """
    if max_seconds is not None and max_seconds < settings.min_seconds:
        raise ConfigError(
            f"--max-seconds {max_seconds:g} is less than --min-seconds {settings.min_seconds:g}.",
            f"--max-seconds {settings.min_seconds:g}",
        )
    return replace(
        settings,
        ci=share(ci) if ci is not None else None,
        max_seconds=max_seconds or settings.max_seconds,
        held=Held(governor=governor, cool_below_c=cool_below),
        sweep_threads=threads_of(sweep or []),
        sustained_seconds=duration(sustained) if sustained is not None else 0.0,
    )


def share(text: str) -> float:
    """`2%` or `0.02` as 0.02.

    Raises:
        ConfigError: It is neither, or not between 0 and 50 %.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < value <= 0.5:
        raise ConfigError(f"--ci '{text}' is not a share between 0 and 50 %.", "--ci 2%")
    return value


def duration(text: str) -> float:
    """`90s`, `30m` or `1h` in seconds.

    Raises:
        ConfigError: It is none of these, or shorter than 10 s.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)", text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 10 <= seconds <= 24 * 3600:
        raise ConfigError(f"--sustained '{text}' is not a time between 10s and 24h.", "--sustained 30m")
    return seconds


def threads_of(sweep: list[str]) -> tuple[int, ...]:
    """The numbers of threads of `threads=1,2,4`.

    Raises:
        ConfigError: It is of another form, or of what an artifact has fixed.
    """
    found: list[int] = []
    for text in sweep:
        name, _, values = text.partition("=")
        if name == "batch":
            raise ConfigError(
                "An artifact's batch is fixed when it is compiled, so it cannot be swept on a device.",
                "Compile one artifact for each batch (the first axis of `inputs:` in edgekit.yaml), and bench them"
                " together.",
            )
        numbers = [part.strip() for part in values.split(",")]
        if name != "threads" or not all(re.fullmatch(r"[1-9]\d{0,2}", number) for number in numbers):
            raise ConfigError(
                f"--sweep '{text}' is not understood: what can be swept is threads.", "--sweep threads=1,2,4"
            )
        found += map(int, numbers)
    return tuple(dict.fromkeys(found))
