"""Device: one physical or emulated unit, an entry in `devices.yaml`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.core import schema
from edgekit.core.errors import ConfigError, unknown_name

LOCAL = "local"
"""The device that needs no entry: the machine edgekit runs on."""


@dataclass(frozen=True)
class SecretReference:
    """Where a secret is to be found; the secret itself is never in a file of ours.

    Attributes:
        env: The environment variable that holds it.
    """

    env: str

    def resolve(self) -> str:
        """The secret.

        Raises:
            ConfigError: The environment variable is not set.
        """
        value = os.environ.get(self.env)
        if not value:
            raise ConfigError(f"The environment variable {self.env} is not set.", f"export {self.env}=…")
        return value


@dataclass(frozen=True)
class Device:
    """One unit.

    Attributes:
        name: Its key in `devices.yaml`.
        target: The class of device it is one of.
        transport: How bytes and commands get there.
        address: Where it is, in the transport's own form; for `ssh`: `user@host:port`.
        options: Options of the transport; it checks them.
        labels: Free words for choosing units.
        emulated: Whether its numbers come from an emulator: they are labelled so wherever they are shown.
        root: The folder on the device that edgekit keeps to.
        python: The Python interpreter there.
        runner_options: Options of the runner; it checks them.
        runner: What runs models there, where it is not the first of its target's runners.
    """

    name: str
    target: str
    transport: str
    address: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False
    root: str = ".edgekit"
    python: str = "python3"
    runner_options: Mapping[str, Any] = field(default_factory=dict)
    runner: str | None = None


_EXAMPLES = {
    "ssh": ("address: user@host", "edgekit devices trust my-{target}"),
    "adb": ("address: SERIAL", "`adb devices` prints the serial number; edgekit devices probe my-{target}"),
}
"""How an entry looks and what comes next, by transport."""


@dataclass(frozen=True)
class _Entry:
    target: str
    transport: str
    address: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False
    root: str = ".edgekit"
    python: str = "python3"
    runner_options: Mapping[str, Any] = field(default_factory=dict)
    runner: str | None = None


@dataclass(frozen=True)
class _DevicesFile:
    schema_version: int
    devices: Mapping[str, _Entry] = field(default_factory=dict)


def load_devices(path: Path) -> dict[str, Device]:
    """The units in a `devices.yaml`; none where the file does not exist.

    Raises:
        ConfigError: The file is wrong, or takes the reserved name `local`.
    """
    if not path.exists():
        return {}
    document = schema.load_yaml(path)
    entries = schema.versioned(_DevicesFile, document).devices
    if LOCAL in entries:
        raise ConfigError(
            f"{document.where('devices', LOCAL)}: the name '{LOCAL}' is reserved for the machine edgekit runs on."
        )
    return {name: Device(name=name, **vars(entry)) for name, entry in entries.items()}


def choose_devices(
    devices: Mapping[str, Device], target: str, name: str | None, every: bool, transport: str = "ssh"
) -> list[Device]:
    """The units that a command goes to.

    Args:
        devices: All known units.
        target: The target they must be of.
        name: The unit asked for, or None.
        every: Whether all units of the target are asked for.
        transport: The usual way to devices of the target: what the example shows where none is known.

    Raises:
        ConfigError: None fits, the one asked for is of another target, or there are several to choose from.
    """
    fitting = [device for device in devices.values() if device.target == target]
    if name is not None:
        if name not in devices:
            raise unknown_name("device", name, devices, "edgekit devices list")
        if devices[name].target != target:
            raise ConfigError(
                f"The device '{name}' is a {devices[name].target}, not a {target}.",
                f"edgekit deploy --target {devices[name].target} --device {name}",
            )
        return [devices[name]]
    if not fitting:
        example, then = _EXAMPLES.get(transport, _EXAMPLES["ssh"])
        shown = transport if transport in _EXAMPLES else "ssh"
        raise ConfigError(
            f"No device of target '{target}' is known.",
            "Add one to devices.yaml:\n"
            f"  devices:\n    my-{target}: {{target: {target}, transport: {shown}, {example}}}\n"
            f"then: {then.format(target=target)}",
        )
    if len(fitting) > 1 and not every:
        names = ", ".join(device.name for device in fitting)
        raise ConfigError(
            f"Several devices are of target '{target}': {names}.",
            f"Choose one with --device {fitting[0].name}, or take them all with --all",
        )
    return fitting
