"""Failures of a command or a worker: one line for an error, a traceback for a bug, exit codes."""

import logging
import sqlite3
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from rnn.errors import UserError
from studies.errors import StorageUnavailableError
from studies.messages import shorten, to_line


class _WarningHandler(logging.Handler):
    """Prints each warning as a line."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"warning: {to_line(record.getMessage())}", file=sys.stderr)


_LOG_LEVELS = {
    "optuna": logging.ERROR,
    "psycopg": logging.ERROR,
    "sqlalchemy.pool": logging.CRITICAL,
}
"""Log levels of libraries whose messages about a lost connection, or one that Ctrl-C closes, fill
the screen; the error that follows is reported."""

_WARNINGS = _WarningHandler(logging.WARNING)

EXIT_FAILURE = 1
"""Exit code for failures at run time."""

EXIT_USAGE = 2
"""Exit code for invalid input."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_MAX_MESSAGE = 4000
"""Number of characters after which an error message, which may repeat input, is cut."""

_DENIED_OR_DROPPED = {"42501", "42P01", "3F000"}
"""PostgreSQL's codes for statements that fail by what others did: a right that is missing, a table
or a schema that was dropped."""


def is_debugging() -> bool:
    """Return whether the command line has ``--debug``."""
    return "--debug" in sys.argv


def run_with_exit_code(main: Callable[[], int | None]) -> None:
    """Call a function and exit the process with its exit code, or with an error in one line."""
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("studies").addHandler(_WARNINGS)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        exit_with("interrupted", EXIT_INTERRUPTED)
    except Exception as error:  # whatever it is, the user gets a line or a report of a bug
        if is_bug(error):
            print_bug(error, "error")
            sys.exit(EXIT_FAILURE)
        if is_debugging():
            traceback.print_exc()
        if isinstance(error, StorageUnavailableError):
            exit_with(str(error), EXIT_FAILURE)
        if isinstance(error, UserError):
            exit_with(str(error), EXIT_USAGE)
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError

        from studies.storage.database import error_message

        if isinstance(error, SQLAlchemyError | OptunaError):
            exit_with(
                f"storage failed ({error_message(error)}); recorded results are kept: run again",
                EXIT_FAILURE,
            )
        reason = str(error) or type(error).__name__
        exit_with(f"{reason}; recorded results are kept: fix this and run again", EXIT_FAILURE)


def exit_with(message: str, code: int) -> NoReturn:
    """Print an error in one line, and exit the process."""
    print(f"error: {to_line(shorten(message, _MAX_MESSAGE))}", file=sys.stderr)
    sys.exit(code)


# ------------------------------------------------------------------ bugs


def is_bug(error: BaseException) -> bool:
    """Return whether an exception is a bug of this program, to be shown with its traceback.

    Others have their cause in the input, in a database or a disk that fails, or in too
    little memory.
    """
    if isinstance(error, UserError | OSError | MemoryError):
        return False
    from optuna.exceptions import OptunaError  # here: help and refusals need no library
    from sqlalchemy.exc import DBAPIError, ProgrammingError

    from studies.storage.database import database_error, is_transient

    if is_transient(error):
        return False
    error = database_error(error)
    cause = getattr(error, "orig", None)
    if isinstance(error, ProgrammingError):
        return getattr(cause, "sqlstate", None) not in _DENIED_OR_DROPPED
    if isinstance(cause, sqlite3.OperationalError):  # also for a wrong statement
        return any(part in str(cause) for part in ("syntax error", "no such column"))
    return not isinstance(error, DBAPIError | OptunaError)


def describe_bug(error: BaseException, label: str = "warning") -> list[str]:
    """Return the lines of a bug's traceback, and one that asks to report it.

    The label is ``error`` if it ends the command.
    """
    reason = to_line(shorten(f"{type(error).__name__}: {error}", 200))
    return [
        *"".join(traceback.format_exception(error)).splitlines(),
        f"{label}: bug in rnn-search ({reason}): please report it to the developers with these "
        "lines, the command and the output of rnn-search --version; recorded results are kept",
    ]


def print_bug(error: BaseException, label: str = "warning") -> None:
    """Print what :func:`describe_bug` returns."""
    print("\n".join(describe_bug(error, label)), file=sys.stderr)
