"""Layers as recipes name them: a module path, a module that they are part of, or a pattern with `*`."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable

from edgekit.core.errors import ConfigError, nearest

_SHOWN = 12


def fits(path: str, pattern: str) -> bool:
    """Whether a pattern names a layer; `*` stands for any part of a path."""
    return fnmatch.fnmatchcase(path, pattern) or path.startswith(f"{pattern}.")


def fits_any(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of several patterns names a layer."""
    return any(fits(path, pattern) for pattern in patterns)


def no_layer(said: str, pattern: str, paths: Collection[str], shown: int = _SHOWN) -> ConfigError:
    """The error for a pattern that names no layer, with the nearest path and the first of them all.

    Args:
        said: What is wrong, as a sentence without its full stop.
        pattern: The pattern.
        paths: The layers that there are.
        shown: How many of them are listed.
    """
    known = list(paths)
    guess = nearest(pattern, known)
    return ConfigError(
        f"{said}.{f' Did you mean {guess!r}?' if guess else ''}",
        f"Layers: {', '.join(known[:shown])}{', …' if len(known) > shown else ''}.",
    )
