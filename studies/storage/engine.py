"""Storage URLs, and engines for concurrent access to SQLite and PostgreSQL."""

import contextlib
import contextvars
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.pool import NullPool

from studies.errors import StorageError
from studies.storage.retry import retry_on_connection_limit

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}

SQLITE_BUSY_SECONDS = 60
"""Time that a write to an SQLite file waits for other writers."""

_SERVER_OPTIONS = {
    # Detect a server that does not answer, however the network was cut.
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    # Release the locks of a worker that is suspended during a transaction.
    "options": "-c idle_in_transaction_session_timeout=30s",
}
"""Connection options for PostgreSQL, unless the query of the URL sets them."""

_writing: contextvars.ContextVar[bool] = contextvars.ContextVar("writing", default=False)


@contextlib.contextmanager
def write_transaction() -> Iterator[None]:
    """Begin the enclosed transactions as writers, on SQLite with ``BEGIN IMMEDIATE``.

    SQLite ignores ``SELECT … FOR UPDATE``: two deferred transactions may both read a row as free
    and both write it. Reading transactions stay deferred, so a long read blocks no writer.
    """
    with _begin_as(writer=True):
        yield


@contextlib.contextmanager
def read_transaction() -> Iterator[None]:
    """Begin the enclosed transactions as readers, also within :func:`write_transaction`."""
    with _begin_as(writer=False):
        yield


@contextlib.contextmanager
def _begin_as(writer: bool) -> Iterator[None]:
    token = _writing.set(writer)
    try:
        yield
    finally:
        _writing.reset(token)


def parse_url(url: str) -> URL:
    """Parse a storage URL.

    Raises:
        StorageError: if the URL is malformed or names an unsupported database.
    """
    expected = "expected sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
    try:
        parsed = sqlalchemy.make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        # A URL that cannot be parsed may contain a password: do not show it.
        raise StorageError(f"storage URL cannot be parsed: {expected}") from error
    if "@" in (parsed.host or ""):  # the rest of a password that contains an @
        raise StorageError(
            "storage URL has an @ in its password: expected %40 instead, or better no password and "
            "PGPASSWORD or ~/.pgpass"
        )
    if backend not in DRIVERS:
        raise StorageError(f"storage {redact(parsed)} is not supported: {expected}")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError(f"storage {redact(parsed)} has no file: {expected}")
    return parsed.set(drivername=DRIVERS[backend])


def database_path(url: URL) -> Path | None:
    """Return the path of an SQLite file; None for a server."""
    if url.get_backend_name() != "sqlite":
        return None
    database = str(url.database)
    is_uri = database.startswith("file:")
    return Path(unquote(database.removeprefix("file:")) if is_uri else database)


def log_path(database: Path) -> Path:
    """Return the path of the write-ahead log of an SQLite file."""
    return database.with_name(f"{database.name}-wal")


def redact(url: URL) -> str:
    """Format a URL for display: without its password, and without options for reading."""
    if str(url.database).startswith("file:"):
        url = url.set(database=str(database_path(url)), query={})
    secret = {key: "***" for key in url.query if "pass" in key.lower()}
    if secret:
        url = url.update_query_dict(secret)
    return url.render_as_string(hide_password=True)


def read_only_url(url: URL) -> URL:
    """Return the URL of an SQLite file for read-only connections."""
    path = quote(str(url.database))
    return url.set(database=f"file:{path}").update_query_dict({"mode": "ro", "uri": "true"})


def _open_unused_files_as_immutable(engine: Engine, path: Path) -> None:
    """Let read-only connections leave no file behind, and notice writers that begin later.

    If no other process has a file in WAL mode open, a read-only connection would leave a ``-wal``
    and a ``-shm`` file. There is no writer then, so the file is opened as immutable. Such a
    connection sees no lock and no log, so it is not used again once a writer has opened the file:
    pages that it has read and pages that are written do not belong together.
    """

    def describe_file() -> tuple[bool, int, int] | None:
        with contextlib.suppress(OSError):  # it was deleted, which SQLite reports
            status = path.stat()
            return log_path(path).exists(), status.st_mtime_ns, status.st_size
        return None

    @event.listens_for(engine, "do_connect")
    def connect_to_file(dialect: Dialect, record: Any, args: Any, kwargs: Any) -> Any:
        # Described first: a writer that opens the file meanwhile is noticed at the next use.
        description = describe_file()
        is_immutable = description is not None and is_unused(path)
        record.info["immutable file"] = description if is_immutable else None
        (database,) = args
        return dialect.connect(f"{database}&immutable=1" if is_immutable else database, **kwargs)

    @event.listens_for(engine, "checkout")
    def refuse_changed_file(connection: DBAPIConnection, record: Any, _: object) -> None:
        description = record.info["immutable file"]
        if description is not None and description != describe_file():
            raise DisconnectionError("the file has been written")  # the pool connects again


def is_unused(path: Path) -> bool:
    """Return whether an SQLite file is in WAL mode and no process has it open."""
    # A file that this process has open is not read here: closing it would release SQLite's locks.
    return not log_path(path).exists() and _is_in_wal_mode(path)


def _is_in_wal_mode(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"  # the header's file format versions


def engine_options(url: URL) -> dict[str, Any]:
    """Return the arguments of ``sqlalchemy.create_engine`` for a database."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_BUSY_SECONDS}}
    # A server's connections are few: hold none while a network trains.
    return {
        "poolclass": NullPool,
        "connect_args": {
            name: value for name, value in _SERVER_OPTIONS.items() if name not in url.query
        },
    }


def connect(url: URL) -> Engine:
    """Create an engine for a database, and configure its connections."""
    engine = sqlalchemy.create_engine(url, **engine_options(url))
    configure(engine)
    return engine


def configure(engine: Engine) -> None:
    """Configure the connections that an engine will open."""
    if engine.dialect.name != "sqlite":

        @event.listens_for(engine, "do_connect")
        def connect_with_retries(dialect: Dialect, _: object, args: Any, kwargs: Any) -> Any:
            return retry_on_connection_limit(dialect.connect)(*args, **kwargs)

        return

    path = database_path(engine.url)
    if path is not None and engine.url.query.get("mode") == "ro":
        _open_unused_files_as_immutable(engine, path)

    @event.listens_for(engine, "connect")
    def configure_connection(connection: DBAPIConnection, _: object) -> None:
        # Without this the driver begins transactions itself: too late, and always deferred.
        connection.isolation_level = None
        # In WAL mode a commit survives the end of any process without a sync.
        connection.cursor().execute("PRAGMA synchronous = NORMAL")
        # By default a text that is not UTF-8 fails the query; so its row is found to be damaged.
        connection.text_factory = lambda text: text.decode(errors="replace")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writing.get() else "BEGIN")

    # SQLite connections must not be used across a fork.
    reference = weakref.ref(engine)

    def drop_inherited_connections() -> None:
        if (inherited := reference()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=drop_inherited_connections)
