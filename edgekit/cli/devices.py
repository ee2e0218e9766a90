"""`edgekit devices`: the units in devices.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.core.device import Device
    from edgekit.runners.base import Runner

Name = Annotated[str, typer.Argument(metavar="NAME", help="The unit's name in devices.yaml, or local.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(
        group,
        name="devices",
        help="List, show, probe and trust the units in devices.yaml:\n\n"
        "devices:\n\n  my-pi: {target: rpi4, transport: ssh, address: pi@raspberrypi.local}",
    )

    @verb(group, "list", example="edgekit devices list\nedgekit devices list --json")
    def list_(screen: Screen) -> None:
        """List the units."""
        from edgekit.core import schema

        found = _devices()
        listing = [schema.to_plain(device) for device in found.values()]
        screen.answer({"schema_version": 1, "devices": listing}, _table(found))

    @verb(group, "show", example="edgekit devices show my-pi")
    def show(screen: Screen, name: Name) -> None:
        """Show one unit's entry."""
        from edgekit.core import schema

        device = device_named(name)
        screen.answer(schema.to_plain(device), _rows(schema.to_plain(device)))

    @verb(group, "probe", example="edgekit devices probe my-pi\nedgekit devices probe local --json")
    def probe(screen: Screen, name: Name) -> None:
        """Ask a unit for its real facts: CPU, memory, system, temperature."""
        from edgekit.transports.base import connect

        device = device_named(name)
        with screen.step(f"probing {name}"), connect(device) as transport:
            facts = dict(runner_of_device(device).probe(transport))
        screen.answer({"device": name, "facts": facts}, _rows(facts))

    @verb(group, "trust", example="edgekit devices trust my-pi\nedgekit devices trust my-pi --yes")
    def trust(
        screen: Screen,
        name: Name,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Record the key without asking.")] = False,
    ) -> int:
        """Show a unit's host key and record it when you say so."""
        from edgekit.core.errors import ConfigError
        from edgekit.transports.base import connect

        transport = connect(device_named(name))
        shown = transport.trust()
        if not yes:
            screen.err.print(shown, markup=False)
            screen.err.print("Compare it with what the device itself shows: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub")
            if not screen.err.is_terminal:
                raise ConfigError(
                    "Nobody is there to say whether this key is right.", "edgekit devices trust NAME --yes"
                )
            if not typer.confirm("Trust it?", err=True):
                screen.note("Not trusted; nothing was recorded.")
                return 1
        transport.record_trust()
        screen.answer({"device": name, "trusted": shown}, f"trusted: {shown}")
        return 0


def _devices() -> dict[str, Device]:
    from edgekit.core.device import load_devices
    from edgekit.core.places import DEVICES_FILE, find_root

    return load_devices(find_root(Path.cwd()) / DEVICES_FILE)


def device_named(name: str) -> Device:
    """The unit of that name; `local` is this machine.

    Raises:
        ConfigError: There is none.
    """
    import platform
    import sys

    from edgekit.core.device import LOCAL, Device
    from edgekit.core.errors import unknown_name

    if name == LOCAL:
        return Device(LOCAL, f"linux-{platform.machine()}", LOCAL, python=sys.executable)
    found = _devices()
    if name not in found:
        raise unknown_name("device", name, [*found, LOCAL], "edgekit devices list")
    return found[name]


def runner_of_device(device: Device) -> Runner:
    """What asks and changes a unit: its runner or its target's; the agent where its target is not known here."""
    from edgekit.core.places import find_root
    from edgekit.core.target import find_targets, read_target
    from edgekit.flow.measure import runner_of
    from edgekit.runners.base import registry

    files = find_targets(find_root(Path.cwd()))
    if device.target in files:
        return registry.create(runner_of(read_target(files[device.target]), device))
    return registry.create(device.runner or "agent")


def _table(found: dict[str, Device]) -> Any:
    from rich.table import Table

    if not found:
        return "No devices.yaml here, or no unit in it. This machine needs no entry: it is the device 'local'."
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("device", "target", "transport", "address", "labels"):
        table.add_column(column, overflow="fold")
    for device in found.values():
        labels = ", ".join(f"{key}={value}" for key, value in device.labels.items())
        table.add_row(device.name, device.target, device.transport, device.address, labels)
    return table


def _rows(values: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in values.items():
        table.add_row(key, "–" if value is None or value == "" else str(value))
    return table
