"""The results store: every result ever measured, in one database that several processes may write to at once.

What people ask by (run, model, device, target, …) are columns; the rest of a result is a JSON payload. Statistics are
no columns: they are derived from samples by whoever shows them. A measurement is a row of its own and its samples are
one JSON array in it: no question is ever asked of a single sample, so a row a sample would only cost space and time,
while an array a metric still lets SQL read one metric over many results (`json_each`) without edgekit. JSON's text of
a float is its shortest exact form, so samples come back bit by bit; NaN and infinity are kept as Python writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgekit.core import schema
from edgekit.core.errors import ConfigError, unknown_name
from edgekit.core.result import Result
from edgekit.flow.database import migrate, open_engine, tables, transaction

if TYPE_CHECKING:
    import sqlalchemy as sa

_CHUNK = 500
_FILTERS = ("run", "model", "device", "target")


@dataclass(frozen=True)
class RunSummary:
    """What one command left in the store.

    Attributes:
        run: What its results share.
        first: When its first result was made, UTC, ISO 8601.
        last: When its last was.
        results: How many there are.
        models: Names of the models, in the order they were stored.
        devices: The same of devices.
        targets: The same of targets.
        backends: The same of backends.
        precisions: The same of precisions.
    """

    run: str
    first: str
    last: str
    results: int
    models: tuple[str, ...]
    devices: tuple[str, ...]
    targets: tuple[str, ...]
    backends: tuple[str, ...]
    precisions: tuple[str, ...]


class Store:
    """An open results store; a context manager. Use `Store.open`."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine = engine
        self.name = name

    @classmethod
    def open(cls, url_or_path: str | Path) -> Self:
        """Open a store, and create or migrate it where needed.

        Args:
            url_or_path: A file of SQLite, or any SQLAlchemy URL. Missing folders are made.

        Raises:
            ConfigError: It cannot be opened, is not a results store, is damaged, or was written by a newer edgekit.
        """
        engine, name = open_engine(url_or_path)
        try:
            migrate(engine, name)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, name)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, result: Result) -> bool:
        """Store a result, exactly once.

        Returns:
            False where a result of this id is there already; it is left as it is.

        Raises:
            ConfigError: `created` is not ISO 8601, or the database refuses.
        """
        import sqlalchemy as sa

        row, measurements = _rows(result)
        try:
            with transaction(self._engine, self.name, write=True) as connection:
                if _holds(connection, result.id):
                    return False
                connection.execute(tables().results.insert(), row)
                if measurements:
                    connection.execute(tables().measurements.insert(), measurements)
        except sa.exc.IntegrityError:
            # Only databases without a lock at BEGIN come here: another writer was faster with the same id.
            with transaction(self._engine, self.name) as connection:
                if _holds(connection, result.id):
                    return False
            raise
        return True

    def results(
        self,
        *,
        run: str | None = None,
        model: str | None = None,
        device: str | None = None,
        target: str | None = None,
        limit: int | None = None,
        oldest_first: bool = False,
    ) -> list[Result]:
        """The results that match, newest first.

        Args:
            run: Only of this run, by its whole name.
            model: Only of this model.
            device: Only of this device.
            target: Only of this target.
            limit: At most so many, the newest.
            oldest_first: Give them in the order they were made, as reports show them.
        """
        import sqlalchemy as sa

        table = tables().results
        query = sa.select(table.c.id, table.c.payload).order_by(table.c.created.desc(), table.c.seq.desc())
        for column, value in zip(_FILTERS, (run, model, device, target), strict=True):
            if value is not None:
                query = query.where(table.c[column] == value)
        if limit is not None:
            query = query.limit(limit)
        with transaction(self._engine, self.name) as connection:
            found = self._read(connection, connection.execute(query).all())
        return found[::-1] if oldest_first else found

    def get(self, id_or_prefix: str) -> Result:
        """The result of this id, or the only one whose id starts so.

        Raises:
            ConfigError: There is none, or more than one.
        """
        import sqlalchemy as sa

        table = tables().results
        query = sa.select(table.c.id, table.c.payload).where(table.c.id.startswith(id_or_prefix, autoescape=True))
        with transaction(self._engine, self.name) as connection:
            rows = connection.execute(query.order_by(table.c.created.desc())).all()
            chosen = _only([row.id for row in rows], id_or_prefix, "result")
            return self._read(connection, [row for row in rows if row.id == chosen])[0]

    def runs(self, limit: int | None = None) -> list[RunSummary]:
        """The runs, newest first: by when their last result was made.

        Args:
            limit: At most so many.
        """
        import sqlalchemy as sa

        c = tables().results.c
        columns = (c.run, c.created, c.model, c.device, c.target, c.backend, c.precision)
        grouped: dict[str, list[Any]] = {}
        with transaction(self._engine, self.name) as connection:
            for row in connection.execute(sa.select(*columns).order_by(c.created, c.seq)):
                grouped.setdefault(row.run, []).append(row)
        summaries = [_summary(run, rows) for run, rows in grouped.items()]
        # Sorting is stable and the runs stand in the order of their first result, so ties go to the one begun last.
        summaries.reverse()
        summaries.sort(key=lambda summary: summary.last, reverse=True)
        return summaries[:limit]

    def latest_run(self) -> RunSummary | None:
        """The newest run, or None in an empty store."""
        return next(iter(self.runs(limit=1)), None)

    def run(self, name_or_prefix: str) -> RunSummary:
        """The run of this name, or the only one whose name starts so.

        Raises:
            ConfigError: There is none, or more than one.
        """
        summaries = {summary.run: summary for summary in self.runs()}
        found = [name for name in summaries if name.startswith(name_or_prefix)]
        if not found and summaries:
            raise unknown_name("run", name_or_prefix, list(summaries)[:10], "edgekit report")
        return summaries[_only(found, name_or_prefix, "run")]

    def _read(self, connection: sa.Connection, rows: Sequence[Any]) -> list[Result]:
        import sqlalchemy as sa

        table = tables().measurements
        found: dict[str, list[Any]] = {row.id: [] for row in rows}
        ids = list(found)
        for start in range(0, len(ids), _CHUNK):
            query = sa.select(table).where(table.c.result_id.in_(ids[start : start + _CHUNK]))
            for row in connection.execute(query.order_by(table.c.result_id, table.c.position)):
                measurement = {"metric": row.metric, "unit": row.unit, "kind": row.kind} | _decoded(
                    row.payload, self.name
                )
                found[row.result_id].append(measurement | {"values": _decoded(row.samples, self.name)})
        return [_result(row, found[row.id], self.name) for row in rows]


def _holds(connection: sa.Connection, result_id: str) -> bool:
    import sqlalchemy as sa

    table = tables().results
    return connection.execute(sa.select(table.c.seq).where(table.c.id == result_id)).first() is not None


def _rows(result: Result) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A result as a row of `results` and its rows of `measurements`."""
    plain = schema.to_plain(result)
    measurements = []
    for position, measurement in enumerate(plain.pop("measurements")):
        row = {key: measurement.pop(key) for key in ("metric", "unit", "kind")}
        samples = json.dumps(measurement.pop("values"))
        row |= {"result_id": result.id, "position": position, "samples": samples, "payload": json.dumps(measurement)}
        measurements.append(row)
    named = ("id", "run", "model", "backend", "precision", "target", "device", "emulated", "artifact_digest")
    row = {key: plain[key] for key in (*named, "artifact_bytes")}
    return row | {"created": _sortable(result), "payload": json.dumps(plain)}, measurements


def _sortable(result: Result) -> str:
    """The moment in one spelling whose order as text is the order in time."""
    try:
        moment = datetime.fromisoformat(result.created)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"The result '{result.id}' has `created` '{result.created}', not ISO 8601.") from error
    return moment.isoformat(timespec="microseconds")


def _decoded(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"The results store '{name}' is damaged: {error}.", "Move it away; a new one is made."
        ) from error


def _result(row: Any, measurements: list[Any], name: str) -> Result:
    plain = _decoded(row.payload, name) | {"measurements": measurements}
    return schema.versioned(Result, schema.Document(plain, f"{name}, result {row.id}"))


def _summary(run: str, rows: Sequence[Any]) -> RunSummary:
    def distinct(values: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(values))

    return RunSummary(
        run=run,
        first=rows[0].created,
        last=rows[-1].created,
        results=len(rows),
        models=distinct(row.model for row in rows),
        devices=distinct(row.device for row in rows),
        targets=distinct(row.target for row in rows),
        backends=distinct(row.backend for row in rows),
        precisions=distinct(row.precision for row in rows),
    )


def _only(candidates: Sequence[str], asked: str, kind: str) -> str:
    """The candidate that `asked` names: it itself, or the only one that starts so."""
    if asked in candidates:
        return asked
    # LIKE takes upper and lower case for the same in some databases.
    found = [name for name in candidates if asked and name.startswith(asked)]
    if not found:
        raise ConfigError(f"There is no {kind} '{asked}' in the results store.", "edgekit report")
    if len(found) > 1:
        listing = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise ConfigError(f"'{asked}' could be any of {len(found)} {kind}s: {listing}.", "Type more of it.")
    return found[0]
