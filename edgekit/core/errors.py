"""Every error that edgekit raises on purpose.

    EdgekitError                     base: a message for a person, and the next command to type
    ├── ConfigError            (2)   the request is wrong: a file, a name, an option
    │   └── MissingExtraError  (2)   a library that this request needs is not installed
    ├── UnsupportedModelError  (2)   the model cannot be taken by what was asked of it
    ├── PassError              (3)   a compression pass failed while it ran
    ├── BackendError           (3)   a vendor's converter or runtime failed on this host
    ├── VerificationError      (1)   the work ran and the answer is no: parity, health, hash
    │   └── BudgetError        (1)   the accuracy, latency or size budget is broken
    └── DeviceError            (3)   something on, or on the way to, a device failed
        ├── TransientDeviceError     may work when tried again; the only kind that is retried
        └── StableDeviceError        will fail again until somebody changes something

The number is the exit code of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class EdgekitError(Exception):
    """Base of every error that edgekit raises on purpose.

    Attributes:
        message: What is wrong, naming the thing.
        hint: What to do next, best a command to type; empty where nothing can be advised.
        details: What else a JSON document says of it; plain data by name.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: Mapping[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[EdgekitError], tuple[str, str]]:
        # Conversions run in child processes: an error has to survive the way back whole.
        return (type(self), (self.message, self.hint))


class ConfigError(EdgekitError):
    """The request is wrong: a file, a name, an option."""

    exit_code = 2


class MissingExtraError(ConfigError):
    """A library that this request needs is not installed."""


class UnsupportedModelError(EdgekitError):
    """The model cannot be taken by what was asked of it."""

    exit_code = 2


class PassError(EdgekitError):
    """A compression pass failed while it ran."""


class BackendError(EdgekitError):
    """A vendor's converter or runtime failed on this host."""


class VerificationError(EdgekitError):
    """The work ran and the answer is no: parity, a health check, a hash."""

    exit_code = 1


class BudgetError(VerificationError):
    """The accuracy, latency or size budget is broken."""


class DeviceError(EdgekitError):
    """Something on, or on the way to, a device failed."""


class TransientDeviceError(DeviceError):
    """A device failure that may pass by itself: the only kind that is ever retried."""


class StableDeviceError(DeviceError):
    """A device failure that will come again until somebody changes something."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that a mistyped `name` most likely meant, or None."""
    matches = difflib.get_close_matches(name.lower(), {c.lower(): c for c in choices}, n=1, cutoff=0.5)
    if not matches:
        return None
    return next(c for c in choices if c.lower() == matches[0])


def unknown_name(kind: str, name: str, choices: Iterable[str], hint: str = "") -> ConfigError:
    """A ConfigError for a name that is none of `choices`: offers the nearest and lists them all."""
    known = sorted(choices)
    guess = nearest(name, known)
    did_you_mean = f" Did you mean '{guess}'?" if guess else ""
    listing = ", ".join(known) if known else "none"
    return ConfigError(f"There is no {kind} '{name}'.{did_you_mean} Known: {listing}.", hint)
