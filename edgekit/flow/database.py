"""The results store's database: its tables, how it is opened, locked and migrated."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import sqlalchemy as sa

HEAD = "0001"
"""The newest revision in `migrations/versions`; a test holds it to that."""

MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class Tables:
    """The tables, as the newest revision has them."""

    metadata: sa.MetaData
    results: sa.Table
    measurements: sa.Table


@functools.cache
def tables() -> Tables:
    """The tables' definitions; made on first use because importing SQLAlchemy takes a while."""
    import sqlalchemy as sa

    metadata = sa.MetaData()
    results = sa.Table(
        "results",
        metadata,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("run", sa.String(64), nullable=False, index=True),
        sa.Column("created", sa.String(40), nullable=False, index=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("precision", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("emulated", sa.Boolean, nullable=False),
        sa.Column("artifact_digest", sa.Text, nullable=False),
        sa.Column("artifact_bytes", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Index("ix_results_model_device", "model", "device"),
    )
    measurements = sa.Table(
        "measurements",
        metadata,
        sa.Column("result_id", sa.String(64), sa.ForeignKey("results.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("samples", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Index("ix_measurements_metric", "metric"),
    )
    return Tables(metadata, results, measurements)


def open_engine(url_or_path: str | Path) -> tuple[sa.Engine, str]:
    """An engine, and what errors call its database: never with a password in it.

    Raises:
        ConfigError: It is no URL of a known database, or one in memory, or its folder cannot be made.
        MissingExtraError: The database's driver is not installed.
    """
    import sqlalchemy as sa

    try:
        url = (
            sa.make_url(url_or_path)
            if isinstance(url_or_path, str) and "://" in url_or_path
            else sa.URL.create("sqlite", database=str(url_or_path))
        )
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ConfigError("The results store's URL is not one of SQLAlchemy's.", "sqlite:///results.db") from error
    if url.get_backend_name() != "sqlite":
        return _server_engine(url), url.render_as_string(hide_password=True)
    if not url.database or url.database == ":memory:":
        raise ConfigError("A results store in memory would keep nothing.", "sqlite:///results.db")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder of the results store '{url.database}' cannot be made: {error}.") from error
    # No pool: no connection outlives its use, so none is left open and none crosses a fork.
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool, connect_args={"timeout": _BUSY_SECONDS})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine, url.database


def _server_engine(url: sa.URL) -> sa.Engine:
    import sqlalchemy as sa

    try:
        return sa.create_engine(url)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"The results store '{url.render_as_string(hide_password=True)}' needs the Python package"
            f" '{error.name}', which is not installed.",
            f"pip install {error.name}",
        ) from error
    except sa.exc.NoSuchModuleError as error:
        raise ConfigError(f"SQLAlchemy knows no database '{url.drivername}'.", "sqlite:///results.db") from error


@contextlib.contextmanager
def transaction(engine: sa.Engine, name: str, *, write: bool = False) -> Iterator[sa.Connection]:
    """A connection in a transaction: committed when the block ends well.

    Args:
        engine: From `open_engine`.
        name: What errors call the database.
        write: Take SQLite's write lock at once.

    Raises:
        ConfigError: The database is damaged, locked for too long, or refuses otherwise.
    """
    import sqlalchemy as sa

    try:
        with engine.connect().execution_options(edgekit_write=write) as connection, connection.begin():
            yield connection
    except sa.exc.IntegrityError:
        raise
    except sa.exc.DatabaseError as error:
        raise _explain(error, name) from error


def migrate(engine: sa.Engine, name: str) -> None:
    """Bring the database to the newest revision; Alembic is imported only where there is something to do.

    Raises:
        ConfigError: It belongs to another program, or to a newer edgekit.
    """
    with transaction(engine, name) as connection:
        if _revision(connection, name) == HEAD:
            return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with transaction(engine, name, write=True) as connection:
        # Another process may have migrated while this one waited for the lock.
        if _revision(connection, name) != HEAD:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    import sqlite3

    # The driver's own idea of when a transaction begins leaves out DDL and reads; `_begin_sqlite` says it instead.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    deadline = time.monotonic() + _BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return  # A file system without shared memory keeps the old mode: slower under writers, as safe.
        except sqlite3.OperationalError as error:
            # Changing the mode does not wait for other connections by itself, whatever the busy timeout.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A write takes the lock at once: a read lock that is raised later fails without waiting when two do it.
    write = connection.get_execution_options().get("edgekit_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _revision(connection: sa.Connection, name: str) -> str | None:
    """The database's revision; None where it is empty.

    Raises:
        ConfigError: It belongs to another program, or to a newer edgekit.
    """
    import sqlalchemy as sa

    existing = sa.inspect(connection).get_table_names()
    if "alembic_version" not in existing:
        if existing:
            raise ConfigError(f"'{name}' is a database, but not a results store.", "Name another file for the results.")
        return None
    rows = connection.execute(sa.text("SELECT version_num FROM alembic_version")).all()
    if not rows and "results" not in existing:
        return None
    revision = str(rows[0][0]) if rows else "none"
    if revision not in known_revisions():
        raise ConfigError(
            f"The results store '{name}' is of version {revision}; this edgekit knows up to {HEAD}.",
            "pip install --upgrade edgekit",
        )
    return revision


@functools.cache
def known_revisions() -> tuple[str, ...]:
    """The revisions that this edgekit can migrate from, oldest first: `v0001_….py` is revision 0001."""
    return tuple(sorted(path.stem[1:5] for path in (MIGRATIONS / "versions").glob("v????_*.py")))


def _explain(error: sa.exc.DatabaseError, name: str) -> ConfigError:
    reason = str(error.orig).strip() if error.orig else "unknown reason"
    if "not a database" in reason or "malformed" in reason:
        return ConfigError(
            f"The results store '{name}' is damaged, or is not an SQLite file ({reason}).",
            "Move it away; a new one is made.",
        )
    if "locked" in reason:
        return ConfigError(
            f"Another process has held the results store '{name}' for more than {_BUSY_SECONDS:.0f} s.",
            "Wait for it to end, or name another file for the results.",
        )
    return ConfigError(f"The results store '{name}' cannot be used: {reason}.")
