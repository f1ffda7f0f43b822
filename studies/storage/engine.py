"""How each kind of database is spoken to, so that many processes may do it at once."""

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
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from studies.errors import StorageError
from studies.storage.retry import retry_on_connection_limit

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}

SQLITE_BUSY_SECONDS = 60
"""How long a write waits for the other writers of an SQLite file."""

_SERVER_OPTIONS = {
    # A server that does not answer is noticed, however the network was cut.
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    # A worker that is frozen in the midst of a transaction keeps its locks from nobody for long.
    "options": "-c idle_in_transaction_session_timeout=30s",
}
"""What a connection to PostgreSQL is given where the URL's query does not say it."""

_writing: contextvars.ContextVar[bool] = contextvars.ContextVar("writing", default=False)


@contextlib.contextmanager
def write_transaction() -> Iterator[None]:
    """Begin the transactions inside as writers: on SQLite ``BEGIN IMMEDIATE``.

    SQLite ignores ``SELECT … FOR UPDATE``: two transactions that begin as readers may both read a
    row as free, and both write it. Readers stay deferred, so that a long read holds nobody up.
    """
    token = _writing.set(True)
    try:
        yield
    finally:
        _writing.reset(token)


def parse_url(url: str) -> URL:
    """Parse a storage URL.

    Raises:
        StorageError: if it is malformed or names another kind of database.
    """
    allowed = "allowed: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE; correct it"
    try:
        parsed = sqlalchemy.make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        # Not shown: what cannot be parsed may still hold a password.
        raise StorageError(f"the storage URL cannot be read; {allowed}") from error
    if "@" in (parsed.host or ""):  # the rest of a password that holds one
        raise StorageError(
            "the storage URL has a password with an @ in it; allowed: %40 in its place; better is "
            "a URL without a password, and PGPASSWORD or ~/.pgpass"
        )
    if backend not in DRIVERS:
        raise StorageError(f"storage {redact(parsed)} is of an unknown kind; {allowed}")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError(f"storage {redact(parsed)} names no file; {allowed}")
    return parsed.set(drivername=DRIVERS[backend])


def redact(url: URL) -> str:
    """Return a URL as it may be shown: without its password, and as it was given."""
    if str(url.database).startswith("file:"):
        url = url.set(database=unquote(str(url.database).removeprefix("file:")), query={})
    secret = {key: "***" for key in url.query if "pass" in key.lower()}
    if secret:
        url = url.update_query_dict(secret)
    return url.render_as_string(hide_password=True)


def read_only_url(url: URL) -> URL:
    """Return the URL of an SQLite file that makes its connections read-only.

    A read-only connection to a file in WAL mode that nobody else has open would leave two files
    beside it. Nobody writes then, so that the file may be read as one that does not change.
    """
    path = Path(str(url.database))
    with path.open("rb") as file:
        is_wal = file.read(20)[18:] == b"\x02\x02"  # the header's file format versions
    quiet = is_wal and not path.with_name(path.name + "-wal").exists()
    query = {"mode": "ro", "uri": "true"} | ({"immutable": "1"} if quiet else {})
    return url.set(database=f"file:{quote(str(path))}").update_query_dict(query)


def engine_options(url: URL) -> dict[str, Any]:
    """Return what ``sqlalchemy.create_engine`` is to be given for a database of this kind."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_BUSY_SECONDS}}
    # No connection is held while a network trains: a server's connections are few.
    return {
        "poolclass": NullPool,
        "connect_args": {
            name: value for name, value in _SERVER_OPTIONS.items() if name not in url.query
        },
    }


def connect(url: URL) -> Engine:
    """Return an engine for a database, each of its connections set up."""
    engine = sqlalchemy.create_engine(url, **engine_options(url))
    configure(engine)
    return engine


def configure(engine: Engine) -> None:
    """Set up every connection that an engine will open."""
    if engine.dialect.name != "sqlite":

        @event.listens_for(engine, "do_connect")
        def patiently(dialect: Dialect, _: object, args: Any, kwargs: Any) -> Any:
            return retry_on_connection_limit(dialect.connect)(*args, **kwargs)

        return

    @event.listens_for(engine, "connect")
    def connected(connection: DBAPIConnection, _: object) -> None:
        # The driver's own transactions begin too late and always deferred.
        connection.isolation_level = None
        # In WAL mode a commit is safe against the end of any process without a sync of its own.
        connection.cursor().execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writing.get() else "BEGIN")

    # SQLite's connections must not be carried across a fork.
    reference = weakref.ref(engine)

    def forget() -> None:
        if (inherited := reference()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget)
