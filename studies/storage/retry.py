"""Classification of database errors, and retries while a server has too many connections."""

import sqlite3

import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from studies.errors import StorageError

CONNECT_RETRY_SECONDS = 120
"""Time to retry for while a server has no free connections."""

_CONNECTION_LIMIT_MESSAGES = ("too many clients", "too many connections", "connection slots")
"""Parts of messages with which PostgreSQL refuses a connection; they have no error code."""

_NOT_READY_MESSAGES = (
    *_CONNECTION_LIMIT_MESSAGES,
    "the database system is",  # starting up, shutting down, in recovery, not yet accepting …
    "terminating connection",
    "due to timeout",
)
"""Parts of messages of a PostgreSQL server that accepts connections later."""

_UNREACHABLE_MESSAGES = (
    "Is the server running",  # connection refused, or no such socket
    "Connection refused",
    "timeout expired",
    "timed out",
    "closed the connection",
    "reset by peer",
    "Broken pipe",
    "No route to host",
    "unreachable",
)
"""Parts of messages of a client that does not reach a PostgreSQL server."""

_TRANSIENT_SQLITE_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}


_REFUSED_SQLITE_CODES = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


def is_transient(error: BaseException) -> bool:
    """Return whether the same statement may succeed later.

    Transient: a server that is unreachable, restarting or out of connections; a file that is
    locked, read-only or on a full disk. Permanent: a missing table, a damaged database.
    """
    error = database_error(error)
    if isinstance(error, StorageInternalError | PendingRollbackError):  # without their cause
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = getattr(error, "orig", error)  # SQLAlchemy's, or one of the driver itself
    if isinstance(cause, sqlite3.Error):
        # On SQLite a missing table is an OperationalError too.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT_SQLITE_CODES
    # InternalError: "cannot execute … in a read-only transaction" from a server in recovery.
    return isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout)


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
        return cause.sqlite_errorcode & 0xFF not in _REFUSED_SQLITE_CODES
    if not isinstance(error, DBAPIError) or error.connection_invalidated or error.statement:
        return True  # not an error of connecting
    message = str(cause)
    # An error of one address after the answer of another says nothing.
    is_answer = "FATAL" in message
    others = () if is_answer else _UNREACHABLE_MESSAGES
    return any(part in message for part in (*_NOT_READY_MESSAGES, *others))


def error_message(error: BaseException) -> str:
    """Return the first line of a database's error message."""
    if not isinstance(error, StorageError):  # of this package: says more than its cause
        error = database_error(error)
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def database_error(error: BaseException) -> BaseException:
    """Return the error of the database that Optuna or this package wrapped."""
    if isinstance(error, PendingRollbackError):
        # After a connection is lost, Optuna sends another statement instead of the error.
        cause = error.__context__
    elif isinstance(error, StorageInternalError | StorageError):
        cause = error.__cause__
    else:
        cause = None
    return error if cause is None else database_error(cause)


def is_connection_limit(error: BaseException) -> bool:
    """Return whether a server refused a connection because it has too many."""
    return any(part in error_message(error) for part in _CONNECTION_LIMIT_MESSAGES)


retry_on_connection_limit = tenacity.retry(
    retry=tenacity.retry_if_exception(is_connection_limit),
    # Random, so that clients refused together do not retry together.
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    stop=tenacity.stop_after_delay(CONNECT_RETRY_SECONDS),
    reraise=True,
)
"""Decorator that retries a function while a server has too many connections."""
