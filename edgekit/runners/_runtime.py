"""The runtime for a device: the one that the artifact asks for, else an earlier one that has wheels for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekit.core.errors import StableDeviceError
from edgekit.core.extras import normalized
from edgekit.core.workload import OlderRuntime, RuntimeRequirement
from edgekit.runners._wheels import WheelSet, resolve

_SHOWN = 6
"""Missing operators that a message names."""


@dataclass(frozen=True)
class Chosen:
    """A runtime for one device.

    Attributes:
        wheels: What is sent there.
        note: What a person should know: which runtime it is instead of which, and why; empty for the usual one.
    """

    wheels: WheelSet
    note: str = ""


def choose(requirement: RuntimeRequirement, facts: Mapping[str, Any]) -> Chosen:
    """The wheels for a device of those facts.

    Raises:
        StableDeviceError: None fit it, or only those of a runtime that cannot run the model: which operators it lacks is
            said before anything is sent.
        TransientDeviceError: The package index cannot be reached.
        ConfigError: This Python has no pip.
    """
    try:
        return Chosen(resolve(replace(requirement, older=()), facts))
    except StableDeviceError as error:
        if "no_wheel" not in error.details:
            raise
        unfit = error
    reasons = []
    for older in requirement.older:
        found = _fitting(older, facts)
        if isinstance(found, str):
            reasons.append(found)
        elif found is not None and older.lacks:
            raise _cannot_run(older, unfit, facts)
        elif found is not None:
            return replace(found, note=f"{older.package}{found.note}, because: {unfit.message}")
    said = " ".join(dict.fromkeys(reasons))
    hint = f"{_own_numpy(facts)}\n{unfit.hint}" if reasons else unfit.hint
    raise StableDeviceError(f"{unfit.message} {said}".rstrip(), hint) from unfit


def _fitting(older: OlderRuntime, facts: Mapping[str, Any]) -> Chosen | str | None:
    """An earlier runtime for a device; why only what it depends on is missing, or None where it has no wheel at all."""
    ranges = tuple(f"{name}>={least},<{below}" for name, (least, below) in older.needs.items())
    lacking = _no_wheel(RuntimeRequirement((older.package, *ranges)), facts)
    if not isinstance(lacking, str):
        return Chosen(lacking)
    needs = {normalized(name): limits for name, limits in older.needs.items()}
    name = normalized(re.split(r"[<>=!~]", lacking, maxsplit=1)[0])
    if name not in needs:
        return None
    alone = _no_wheel(RuntimeRequirement((older.package,)), facts, dependencies=False)
    if isinstance(alone, str):
        return None
    there, (least, below) = facts.get(name), needs[name]
    if there is not None and _release(least) <= _release(str(there)) < _release(below):
        return Chosen(alone, f" with the device's own {name} {there}")
    has = f"the device has {name} {there}" if there else f"the device has no {name}"
    return f"{older.package} would fit, but needs {name} from {least} to below {below}: {has}, and there is no wheel of it."


def _no_wheel(
    requirement: RuntimeRequirement, facts: Mapping[str, Any], *, dependencies: bool = True
) -> WheelSet | str:
    """The wheels, or the requirement that has none."""
    try:
        return resolve(requirement, facts, dependencies=dependencies)
    except StableDeviceError as error:
        if "no_wheel" not in error.details:
            raise
        return str(error.details["no_wheel"])


def _cannot_run(older: OlderRuntime, unfit: StableDeviceError, facts: Mapping[str, Any]) -> StableDeviceError:
    name = facts.get("hostname") or "The device"
    shown = "; ".join(older.lacks[:_SHOWN])
    more = f"; and {len(older.lacks) - _SHOWN} more" if len(older.lacks) > _SHOWN else ""
    return StableDeviceError(
        f"{name} can only have {older.package}, which cannot run this model: {shown}{more}. Nothing was sent."
        f" ({unfit.message})",
        "Use a 64-bit system there with glibc 2.34 and Python 3.10 or newer (Raspberry Pi OS bookworm, 64-bit), or a"
        " recipe that leaves these operators out.",
    )


def _own_numpy(facts: Mapping[str, Any]) -> str:
    system = facts.get("os") or "its system"
    return (
        f"Install numpy there with {system}'s own packages (apt install python3-numpy), or add an index that has such"
        " wheels to pip's settings here (piwheels)."
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
