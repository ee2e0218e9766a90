"""What every verb shares: its common options, how errors become exit codes, and where output goes.

Standard output carries the answer (a table, or one JSON document with `--json`); progress, notes and errors go to
standard error. Nothing outside this package prints.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgekit.core.errors import EdgekitError

INTERRUPTED = 130
INTERNAL = 3

_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Show neither progress nor notes.")]
_VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="Show every step and what vendor tools print.")]
_DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", hidden=True)]

_COMMON = (
    inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON),
    inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_QUIET),
    inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_VERBOSE),
    inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_DEBUG),
)


def verb(
    app: typer.Typer, name: str, *, example: str, hidden: bool = False
) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a function as a verb; its first argument is the `Screen`, the others are its options.

    Args:
        app: Where it is registered.
        name: What a person types.
        example: Worked examples shown by `--help`, a line each.
        hidden: Whether help leaves it out.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]

        @functools.wraps(function)
        def run(**options: Any) -> None:
            from edgekit.cli.screen import Screen

            common = {parameter.name: options.pop(parameter.name) for parameter in _COMMON}
            screen = Screen(as_json=common["as_json"], quiet=common["quiet"], verbose=common["verbose"])
            _set_logging(common["verbose"])
            raise typer.Exit(_guarded(function, screen, options, debug=common["debug"]))

        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = inspect.Signature([*keyword_only, *_COMMON])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*keyword_only, *_COMMON)}
        epilog = "Examples:\n\n" + "\n\n".join(f"  {line}" for line in example.strip().splitlines())
        app.command(name, epilog=epilog, hidden=hidden)(run)
        return run

    return register


def _guarded(function: Callable[..., int | None], screen: Any, options: dict[str, Any], *, debug: bool) -> int:
    """Run a verb; whatever happens becomes a message and an exit code, and no traceback unless asked for."""
    try:
        code = function(screen, **options) or 0
        sys.stdout.flush()
        return code
    except EdgekitError as error:
        _tell(screen, error, debug)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        screen.interrupted()
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone (`edgekit targets | head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _tell(
            screen, EdgekitError(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"), debug
        )
        return INTERNAL
    except Exception as error:  # noqa: BLE001  # whatever it is, a person gets a message
        internal = EdgekitError(
            f"edgekit itself failed: {type(error).__name__}: {error}",
            "Please report this, with the output of the same command and --debug.",
        )
        _tell(screen, internal, debug)
        return INTERNAL


def _tell(screen: Any, error: EdgekitError, debug: bool) -> None:
    screen.fail(error)
    if debug:
        # Printed, not raised: the exit code stays what it is without --debug.
        traceback.print_exc()


def _set_logging(verbose: bool) -> None:
    """The `edgekit` logger on standard error when asked for; only here: importing edgekit changes no logging."""
    logger = logging.getLogger("edgekit")
    logger.handlers.clear()
    logger.propagate = False
    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    else:
        logger.addHandler(logging.NullHandler())
        logger.setLevel(logging.CRITICAL)
        _silence_libraries()


def _silence_libraries() -> None:
    """Keep the warnings of the libraries below off the screen: a person can do nothing about them."""
    import warnings

    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("torch", "torch.export", "jax", "absl"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
