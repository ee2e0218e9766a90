"""Deploy: the artifact of a target goes to its devices, becomes current there, and is measured."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgekit.core.device import LOCAL, Device, choose_devices
from edgekit.core.errors import ConfigError, EdgekitError, MissingExtraError, UnsupportedModelError
from edgekit.core.progress import Progress
from edgekit.core.result import Result
from edgekit.core.target import Target
from edgekit.core.units import format_bytes
from edgekit.flow.build import Built
from edgekit.flow.ladder import Made, fastest
from edgekit.flow.measure import Settings, new_run, runner_of, visit
from edgekit.flow.rungs import Rung, title
from edgekit.flow.store import Store
from edgekit.flow.turns import by_turns
from edgekit.flow.verify import local_device
from edgekit.runners.base import registry as runners
from edgekit.transports.base import connect
from edgekit.transports.base import registry as transports

_SAME_ARCH = {"AMD64": "x86_64", "arm64": "aarch64"}


def devices_for(
    target: Target, known: Mapping[str, Device], name: str | None = None, every: bool = False
) -> list[Device]:
    """The units that a target's artifact goes to.

    Args:
        target: The class of device.
        known: The units in `devices.yaml`.
        name: The unit asked for; `local` is this machine.
        every: Whether all units of the target are asked for.

    Raises:
        ConfigError: None fits; says how to add one, or which to choose from. Or an entry's transport or options are
            wrong.
        UnsupportedModelError: No device of this target can be reached or run anything yet.
        MissingExtraError: The transport of a unit needs a library that is not installed.
    """
    _require_built(target)
    local = LOCAL in target.transports
    if name == LOCAL or (name is None and local and not any(d.target == target.name for d in known.values())):
        if not local:
            raise ConfigError(
                f"This machine cannot stand in for a {target.name}.",
                f"Add a device of target '{target.name}' to devices.yaml: edgekit devices --help",
            )
        arch = _SAME_ARCH.get(platform.machine(), platform.machine())
        # A browser brings its own machine with it, WebAssembly, whatever this one is.
        if target.os.family != "web" and arch != target.cpu.arch:
            raise ConfigError(
                f"This machine is {arch}; the target '{target.name}' is {target.cpu.arch}.", "edgekit targets"
            )
        return [local_device(target)]
    chosen = choose_devices(known, target.name, name, every, next(iter(target.transports), "ssh"))
    for device in chosen:
        runner_of(target, device)
        _require_transport(device)
    return chosen


def _require_built(target: Target) -> None:
    for kind, names, known in (("runner", target.runners, runners), ("transport", target.transports, transports)):
        if names and not any(name in known for name in names):
            raise UnsupportedModelError(
                f"Deploying to '{target.name}' needs the {kind} {' or '.join(names)}, which this edgekit does not have"
                " yet.",
                f"edgekit compile --target {target.name} makes and verifies its artifact",
            )


def _require_transport(device: Device) -> None:
    """What is wrong with an entry is said before minutes are spent on building for it."""
    transport = connect(device)
    pip = transport.missing()
    if pip is not None:
        raise MissingExtraError(
            f"The device '{device.name}' is reached by {device.transport}, which needs a package that is not"
            " installed.",
            pip,
        )


def deploy(
    built: Built,
    devices: Sequence[Device],
    settings: Settings,
    store: Store,
    progress: Progress,
    *,
    run: str | None = None,
    command: str = "",
    release: bool = True,
    tags: tuple[str, ...] = (),
) -> list[Result]:
    """Deploy to each device in turn, measure, and store each result as soon as it is there.

    A device that fails does not keep the others from their turn; its error is raised at the end.

    Raises:
        EdgekitError: The first error of a device.
    """
    run = run or new_run()
    results: list[Result] = []
    failures: list[EdgekitError] = []
    for device in devices:
        try:
            result = visit(built, device, settings, progress, run=run, command=command, release=release, tags=tags)
        except EdgekitError as error:
            if len(devices) == 1:
                raise
            progress.warn(f"{device.name}: {error.message}")
            failures.append(error)
            continue
        store.add(result)
        results.append(result)
    if failures:
        raise failures[0]
    return results


def deploy_made(
    made: Made,
    devices: Sequence[Device],
    settings: Settings,
    store: Store,
    progress: Progress,
    *,
    run: str | None = None,
    command: str = "",
    tags: tuple[str, ...] = (),
    canary: int = 0,
) -> list[Result]:
    """Deploy what `ladder.make` gave.

    Where a ladder was climbed its finalists are measured on each device first, and the faster one is deployed there; of
    equally fast ones the smaller.

    Args:
        made: What goes there.
        devices: The units, in the order in which they have their turn.
        settings: How they are measured.
        store: Gets each result.
        progress: Told what is done.
        run: What all results of one command share.
        command: The command, as typed.
        tags: Words kept with the results.
        canary: How many units go first: where one of them fails, the others are not touched.

    Raises:
        EdgekitError: The first error of a device.
    """
    if 0 < canary < len(devices):
        first, rest = devices[:canary], devices[canary:]
        more: dict[str, Any] = {"run": run or new_run(), "command": command, "tags": tags}
        try:
            results = deploy_made(made, first, settings, store, progress, **more)
        except EdgekitError as error:
            names = ", ".join(device.name for device in rest)
            raise type(error)(
                f"{error.message} It was to go first: {names} are left as they were.", error.hint
            ) from error
        progress.note(f"{', '.join(device.name for device in first)} took it: on to the {len(rest)} others")
        return results + deploy_made(made, rest, settings, store, progress, **more)
    ladder = made.ladder
    if ladder is None:
        return deploy(made.built, devices, settings, store, progress, run=run, command=command, tags=tags)
    results = []
    for device in devices:
        built = _fastest_on(device, ladder.finalists, settings, progress).built or made.built
        results += deploy(built, [device], settings, store, progress, run=run, command=command, tags=tags)
    return results


def _fastest_on(device: Device, finalists: Sequence[Rung], settings: Settings, progress: Progress) -> Rung:
    if len(finalists) == 1:
        progress.note(f"{device.name}: {title(finalists[0])} is the only one inside the budget")
        return finalists[0]
    once = replace(settings, processes=1, accuracy=False)
    run = new_run()

    def latencies(built: Built) -> tuple[float, ...]:
        latency = visit(built, device, once, progress, run=run, release=False).measured("latency_ms")
        return latency.values if latency is not None else ()

    made = {title(rung): functools.partial(latencies, rung.built) for rung in finalists if rung.built is not None}
    times = by_turns(made, settings.processes)
    kept, medians = fastest(finalists, times)
    for rung in finalists:
        median = medians.get(title(rung))
        speed = f"{median:.3g} ms" if median is not None else "not measured"
        progress.note(
            f"{device.name}: {title(rung)}: median {speed}, {format_bytes(rung.bytes)}{', kept' if rung is kept else ''}"
        )
    return kept
