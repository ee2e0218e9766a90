"""Layers as recipes name them: a module path, a module that they are part of, or a pattern with `*`."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping

from edgekit.core.errors import ConfigError, nearest

_SHOWN = 12


def fits(path: str, pattern: str) -> bool:
    """Whether a pattern names a layer; `*` stands for any part of a path."""
    return fnmatch.fnmatchcase(path, pattern) or path.startswith(f"{pattern}.")


def fits_any(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of several patterns names a layer."""
    return any(fits(path, pattern) for pattern in patterns)


def require_each_fits(
    who: str, options: Mapping[str, Iterable[str]], paths: Collection[str], kind: str = "layer"
) -> None:
    """Refuse a pattern that names nothing.

    Args:
        who: Whose options these are.
        options: Patterns by the name of the option that has them.
        paths: The layers that there are.
        kind: What they are called.

    Raises:
        ConfigError: A pattern fits none of them.
    """
    for option, patterns in options.items():
        for pattern in patterns:
            if not any(fits(path, pattern) for path in paths):
                raise no_layer(f"{who}: {option}: '{pattern}' fits no {kind}", pattern, paths)


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
