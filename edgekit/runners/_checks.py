"""What is looked at before anything is sent to a device, whatever runs there."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from edgekit.core import schema
from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, VerificationError
from edgekit.core.units import format_bytes
from edgekit.runners.base import Job

T = TypeVar("T")
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\U0010ffff]+")
_LONGEST_TEXT = 4000
_DEEPEST = 8
"""Nothing that a device answers is nested as deep."""
SPARE_BYTES = 16 << 20
"""What stays free on a device beside what is sent."""


def printable(text: str, limit: int = 300) -> str:
    """Text from a device without what would steer a terminal, and not longer than `limit`."""
    clean = _UNPRINTABLE.sub(" ", text).strip()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def harmless(value: Any, depth: int = 0) -> Any:
    """A device's JSON document, its texts without what would steer a terminal; None for what lies too deep in it."""
    if isinstance(value, str):
        return printable(value, _LONGEST_TEXT)
    if not isinstance(value, dict | list):
        return value
    if depth == _DEEPEST:
        return None
    if isinstance(value, dict):
        return {printable(key): harmless(item, depth + 1) for key, item in value.items()}
    return [harmless(item, depth + 1) if isinstance(item, str | dict | list) else item for item in value]


def require_name(name: str) -> str:
    """A name that becomes a folder on a device.

    Raises:
        ConfigError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name a folder on a device: use letters, digits, `.`, `_` and `-`.",
            "Set `name:` in edgekit.yaml.",
        )
    return name


def require_arch(device: Device, wanted: str | None, found: object) -> None:
    """Refuse a device of another instruction set than its target's; any will do where `wanted` is None.

    Raises:
        StableDeviceError: It is one.
    """
    if wanted is not None and found != wanted:
        raise StableDeviceError(
            f"'{device.name}' is {printable(str(found), 40)}, but its target '{device.target}' is {wanted}: nothing was"
            " sent.",
            f"Correct `target:` of '{device.name}' in devices.yaml; edgekit devices probe {device.name} shows what it is.",
        )


def require_space(device: Device, root: str, free_bytes: int, needed_bytes: int) -> None:
    """Refuse to send what does not fit, with `SPARE_BYTES` left.

    Raises:
        StableDeviceError: It does not.
    """
    needed = needed_bytes + SPARE_BYTES
    if needed > free_bytes:
        raise StableDeviceError(
            f"'{device.name}' has {format_bytes(free_bytes)} free below {root}; this needs {format_bytes(needed)}.",
            "Free some space there, or set `root:` of the device in devices.yaml to a larger disk.",
        )


def unhealthy(device: Device, job: Job, what: str) -> VerificationError:
    """The error for a release whose health check failed, so that nothing was switched."""
    return VerificationError(
        f"The health check on '{device.name}' failed: {what}",
        "Nothing was switched: the release before is still in force. Compare on this host: edgekit verify"
        f" {job.artifact.path}",
    )


def options_of(kind: type[T], device: Device) -> T:
    """A device's `runner_options`, checked.

    Raises:
        ConfigError: They are not of this form.
    """
    document = schema.Document(dict(device.runner_options), f"devices.yaml: {device.name}: runner_options")
    return schema.convert(kind, document)
