"""The command line. Each verb is one file beside this one; importing them imports no library of a vendor."""

from __future__ import annotations

import signal
from typing import Annotated, NoReturn

import typer

from edgekit._version import __version__
from edgekit.cli import (
    bench,
    cache,
    compare,
    compile,
    compress,
    deploy,
    devices,
    doctor,
    init,
    keys,
    report,
    rollback,
    sensitivity,
    targets,
    verify,
)

app = typer.Typer(
    name="edgekit",
    help="Compress a trained model, convert it for a device, prove it, deploy it there and measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def _edgekit(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Compress a trained model, convert it for a device, prove it, deploy it there and measure it."""


_VERBS = (
    init,
    doctor,
    targets,
    devices,
    compress,
    sensitivity,
    compile,
    verify,
    deploy,
    rollback,
    bench,
    compare,
    report,
    keys,
    cache,
)
for _module in _VERBS:
    _module.register(app)


def main() -> None:
    """The `edgekit` command."""
    # A build server that cancels a job, and a terminal that closes, leave no conversion and no run on a device behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    app(prog_name="edgekit")


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
