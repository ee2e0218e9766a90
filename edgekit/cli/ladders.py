"""How the verbs that climb the ladder show it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.flow.ladder import Made
    from edgekit.flow.rungs import Ladder


@contextlib.contextmanager
def shown_if_none_fits(screen: Screen) -> Iterator[None]:
    """Show what a ladder tried where none of its rungs is inside the budget; the error goes on, and its JSON has it."""
    from edgekit.flow.ladder import NoRungError

    try:
        yield
    except NoRungError as error:
        if error.ladder is not None and not screen.as_json:
            screen.answer(None, *tables([error.ladder]))
        raise


def of(made: Sequence[Made]) -> list[Ladder]:
    """The ladders that were climbed."""
    return [one.ladder for one in made if one.ladder is not None]


def tables(ladders: Sequence[Ladder]) -> list[Any]:
    """A table a ladder, each followed by an empty line."""
    from edgekit.report.accuracy import ladder_table

    return [part for ladder in ladders for part in (ladder_table(ladder), "")]
