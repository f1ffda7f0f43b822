"""What a database says when it cannot serve just now, and how long to ask again."""

import sqlite3

import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from studies.errors import StorageError

CONNECT_RETRY_SECONDS = 120
"""How long a connection is asked for where a server has no more of them."""

_CROWDED = ("too many clients", "too many connections", "connection slots", "starting up")
"""What PostgreSQL says to whom it turns away for a moment; such an answer carries no code."""

_SQLITE_OUTAGES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}


def is_transient(error: BaseException) -> bool:
    """Tell whether an error may pass by itself: the same statement, later, may succeed.

    So are a server that is away, restarts or is crowded, a file that is locked, read-only or on a
    full disk. A table that is missing, or a database that is damaged, is not.
    """
    if isinstance(error, StorageInternalError):  # Optuna's own methods hide the cause in it
        return error.__cause__ is None or is_transient(error.__cause__)
    if isinstance(error, StorageError):  # and so does opening a storage
        return error.__cause__ is not None and is_transient(error.__cause__)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        # To SQLite a table that is missing is an OperationalError too.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_OUTAGES
    # InternalError: "cannot execute … in a read-only transaction", as on a server in recovery.
    return isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout)


def error_message(error: BaseException) -> str:
    """Return what a database says is wrong, in one line."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def is_connection_limit(error: BaseException) -> bool:
    """Tell whether a server turns connections away only because it has enough of them."""
    return any(words in error_message(error) for words in _CROWDED)


retry_on_connection_limit = tenacity.retry(
    retry=tenacity.retry_if_exception(is_connection_limit),
    # At random: those who were turned away together must not come back together.
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    stop=tenacity.stop_after_delay(CONNECT_RETRY_SECONDS),
    reraise=True,
)
"""Makes a function try again while a server has too many clients."""
