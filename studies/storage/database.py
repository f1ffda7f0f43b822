"""Storage URLs, engines for concurrent access to SQLite and PostgreSQL, and their errors."""

import contextlib
import contextvars
import functools
import os
import re
import sqlite3
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy
import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import NullPool

from studies.errors import StorageError

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}

_SQLITE_BUSY_SECONDS = 60
"""Time that a write to an SQLite file waits for other writers."""

_writing: contextvars.ContextVar[bool] = contextvars.ContextVar("writing", default=False)


@contextlib.contextmanager
def begin_as(writer: bool) -> Iterator[None]:
    """Begin the enclosed transactions as writers, by ``BEGIN IMMEDIATE`` on SQLite, or as readers.

    SQLite ignores ``SELECT … FOR UPDATE``: two deferred transactions may both read a row as free
    and both write it. Reading transactions stay deferred, so a long read blocks no writer.
    """
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
    except (exc.ArgumentError, ValueError) as error:
        # A URL that cannot be parsed may contain a password: do not show it.
        raise StorageError(f"storage URL cannot be parsed: {expected}") from error
    # The rest of a password that contains an @ is not shown either.
    if backend != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
        raise StorageError(
            "storage URL has an @ in its password: expected %40 instead, or better no password and "
            "PGPASSWORD or ~/.pgpass"
        )
    is_file = not (parsed.database or ":memory:").startswith((":memory:", "file:"))
    if backend not in DRIVERS or (backend == "sqlite" and not is_file):
        raise StorageError(f"storage {redact(parsed)} is not supported: {expected}")
    return parsed.set(drivername=DRIVERS[backend])


def database_path(url: URL) -> Path | None:
    """Return the path of an SQLite file; None for a server."""
    if url.get_backend_name() != "sqlite":
        return None
    return Path(str(url.database))


def log_path(database: Path) -> Path:
    """Return the path of the write-ahead log of an SQLite file, to which a link may lead."""
    file = database.resolve()
    return file.with_name(f"{file.name}-wal")


@dataclass(frozen=True)
class DatabaseFile:
    """An SQLite file, identified by its device and inode as it was opened.

    SQLite continues to read and write an open file that was deleted or replaced.
    """

    path: Path
    identity: tuple[int, int]

    @classmethod
    def of(cls, url: URL) -> Self | None:
        """Return the file of a storage; None for a server, or if the file does not exist."""
        path = database_path(url)
        if path is None or not path.exists():
            return None
        return cls(path, _identity(path))

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return _identity(self.path) == self.identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # such as a network file system that does not answer: an outage
            return True


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def redact(url: URL) -> str:
    """Format a URL for display: without its password, and without options for reading."""
    url = url.difference_update_query(["mode", "uri"])
    url = url.update_query_dict({key: "***" for key in url.query if "pass" in key.lower()})
    return url.render_as_string(hide_password=True)


def _is_in_wal_mode(path: Path) -> bool:
    """Return whether an SQLite file is in WAL mode, so that it has a log whenever it is open."""
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"  # the header's file format versions


def engine_options(url: URL) -> dict[str, Any]:
    """Return the arguments of ``sqlalchemy.create_engine`` for a database."""
    if url.get_backend_name() == "sqlite":
        pool = {"poolclass": NullPool} if url.query.get("mode") == "ro" else {}
        return {"connect_args": {"timeout": _SQLITE_BUSY_SECONDS}, **pool}
    options = {
        # Detect a server that does not answer, however the network was cut.
        "connect_timeout": 10,
        "tcp_user_timeout": 20_000,
        # Release the locks of a worker that is suspended during a transaction.
        "options": "-c idle_in_transaction_session_timeout=30s",
    }
    unset = {name: value for name, value in options.items() if name not in url.query}
    # A server's connections are few: hold none while a network trains.
    return {"connect_args": unset, "poolclass": NullPool}


_NO_FREE_CONNECTION = "too many clients|too many connections|connection slots"
"""Pattern of messages with which PostgreSQL refuses a connection; they have no error code."""

_retry_on_connection_limit = tenacity.retry(
    retry=tenacity.retry_if_exception_message(match=f"(?s).*({_NO_FREE_CONNECTION})"),
    # Random, so that clients refused together do not retry together.
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    stop=tenacity.stop_after_delay(120),
    reraise=True,
)


def configure(engine: Engine) -> None:
    """Configure the connections that an engine will open."""
    if engine.dialect.name != "sqlite":

        @event.listens_for(engine, "do_connect")
        def connect_with_retries(dialect: Dialect, _: object, args: Any, kwargs: Any) -> Any:
            return _retry_on_connection_limit(dialect.connect)(*args, **kwargs)

        return

    if engine.url.query.get("mode") == "ro":
        _connect_read_only(engine, Path(str(engine.url.database)))

    @event.listens_for(engine, "connect")
    def configure_connection(connection: DBAPIConnection, _: object) -> None:
        # Without this the driver begins transactions itself: too late, and always deferred.
        connection.isolation_level = None
        # In WAL mode a commit survives the end of any process without a sync.
        connection.cursor().execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writing.get() else "BEGIN")

    # SQLite connections must not be used across a fork.
    reference = weakref.ref(engine)

    def drop_inherited_connections() -> None:
        if (inherited := reference()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=drop_inherited_connections)


def _connect_read_only(engine: Engine, path: Path) -> None:
    """Let connections be read-only and leave no file behind.

    If no process has a file in WAL mode open, a read-only connection would leave a ``-wal`` and a
    ``-shm`` file. There is no writer then, so the file is opened as immutable. Such a connection
    sees no lock and no log, so each transaction opens another one, without a pool.
    """
    # Read once, and not while there is a log: closing the file releases SQLite's locks on it.
    has_log_in_use = functools.cache(_is_in_wal_mode)

    @event.listens_for(engine, "do_connect")
    def connect_to_file(dialect: Dialect, _: object, args: Any, kwargs: Any) -> Any:
        is_unused = not log_path(path).exists() and has_log_in_use(path)
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_unused else ''}"
        return dialect.connect(uri, **kwargs)


# ------------------------------------------------------------------ errors


_NOT_READY = re.compile(
    # "the database system is" starting up, shutting down, in recovery, not yet accepting …
    f"{_NO_FREE_CONNECTION}|the database system is|terminating connection|due to timeout"
)
"""Messages of a PostgreSQL server that accepts connections later."""

_UNREACHABLE = re.compile(
    "Is the server running|Connection refused|timeout expired|timed out|closed the connection|"
    "reset by peer|Broken pipe|No route to host|unreachable"
)
"""Messages of a client that does not reach a PostgreSQL server."""

_TRANSIENT_ON_SQLITE = re.compile("SQLITE_(BUSY|LOCKED|READONLY|IOERR|FULL|CANTOPEN|PROTOCOL)(_|$)")
_REFUSED_BY_SQLITE = re.compile("SQLITE_(READONLY|CANTOPEN)(_|$)")


def is_transient(error: BaseException) -> bool:
    """Return whether the same statement may succeed later.

    Transient: a server that is unreachable, restarting or out of connections; a file that is
    locked, read-only or on a full disk. Permanent: a missing table, a damaged database.
    """
    error = database_error(error)
    if isinstance(error, StorageInternalError | exc.PendingRollbackError):  # without their cause
        return True
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    cause = getattr(error, "orig", error)  # SQLAlchemy's, or one of the driver itself
    if isinstance(cause, sqlite3.Error):
        # On SQLite a missing table is an OperationalError too.
        return bool(_TRANSIENT_ON_SQLITE.match(getattr(cause, "sqlite_errorname", "")))
    # InternalError: "cannot execute … in a read-only transaction" from a server in recovery.
    return isinstance(
        error, exc.OperationalError | exc.InterfaceError | exc.InternalError | exc.TimeoutError
    )


def is_outage(error: BaseException) -> bool:
    """Return whether a storage that could not be opened or read may be available later.

    Stricter than :func:`is_transient`: an address that is refused stays refused. That is a wrong
    password, an unknown user, database or host, a read-only file or folder.
    """
    if not is_transient(error):
        return False
    error = database_error(error)
    cause = getattr(error, "orig", error)
    if isinstance(cause, sqlite3.Error):
        return not _REFUSED_BY_SQLITE.match(cause.sqlite_errorname)
    if not isinstance(error, exc.DBAPIError) or error.connection_invalidated or error.statement:
        return True  # not an error of connecting
    message = str(cause)
    # An error of one address after the answer of another says nothing.
    is_unreachable = "FATAL" not in message and _UNREACHABLE.search(message)
    return bool(is_unreachable or _NOT_READY.search(message))


def error_message(error: BaseException) -> str:
    """Return the first line of a database's error message."""
    if not isinstance(error, StorageError):  # of this package: says more than its cause
        error = database_error(error)
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def database_error(error: BaseException) -> BaseException:
    """Return the error of the database that Optuna or this package wrapped."""
    cause = None
    if isinstance(error, exc.PendingRollbackError):
        # After a connection is lost, Optuna sends another statement instead of the error.
        cause = error.__context__
    elif isinstance(error, StorageInternalError | StorageError):
        cause = error.__cause__
    return error if cause is None else database_error(cause)
