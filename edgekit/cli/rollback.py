"""`edgekit rollback`: back to the release before."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli.common import verb
from edgekit.cli.devices import device_named, runner_of_device
from edgekit.cli.screen import Screen


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(app, "rollback", example="edgekit rollback digits --device my-pi\nedgekit rollback digits -d my-pi --to 3f9a")
    def rollback(
        screen: Screen,
        model: Annotated[str, typer.Argument(help="The model's name, as in edgekit.yaml or the manifest.")],
        device: Annotated[str, typer.Option("--device", "-d", help="A unit in devices.yaml, or local.")],
        to: Annotated[str | None, typer.Option("--to", help="A release's digest; the one before by default.")] = None,
    ) -> None:
        """Make an earlier release of a model current again on a device."""
        from edgekit.core import schema
        from edgekit.transports.base import connect

        unit = device_named(device)
        with screen.step(f"rolling back '{model}' on {device}"), connect(unit) as transport:
            done = runner_of_device(unit).rollback(transport, model, to)
        screen.answer(
            {"schema_version": 1, "device": device, "model": model, **schema.to_plain(done)},
            f"'{model}' on {device}: {(done.previous or 'nothing')[:12]} → {done.current[:12]}",
        )
