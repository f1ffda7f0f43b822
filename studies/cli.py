"""Options, arguments and error handling that all commands share."""

import logging
import sqlite3
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from optuna.exceptions import OptunaError
from sqlalchemy.exc import DBAPIError, ProgrammingError, SQLAlchemyError

from rnn.errors import UserError
from studies.errors import StorageUnavailableError
from studies.storage.engine import database_error, error_message, is_transient
from studies.storage.open import DEFAULT_STORAGE
from studies.text import shorten, to_line

STORAGE_VARIABLE = "RNN_SEARCH_STORAGE"
"""Environment variable for ``--storage``; unlike the option, it is hidden from process lists."""

ARTIFACTS_VARIABLE = "RNN_SEARCH_ARTIFACTS"
"""Environment variable for ``--artifacts``."""


class _WarningHandler(logging.Handler):
    """Prints each warning as a line."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"warning: {to_line(record.getMessage())}", err=True)


_LOG_LEVELS = {
    "optuna": logging.ERROR,
    "psycopg": logging.ERROR,
    "sqlalchemy.pool": logging.CRITICAL,
}
"""Log levels of libraries whose messages about a lost connection, or one that Ctrl-C closes, fill
the screen; the error that follows is reported."""

_WARNINGS = _WarningHandler(logging.WARNING)

_F = TypeVar("_F", bound=Callable[..., Any])

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


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show the traceback of an error instead of one line.",
)


def is_debugging() -> bool:
    """Return whether the command line has ``--debug``."""
    return "--debug" in sys.argv


def storage_options(command: _F) -> _F:
    """Add the options ``--storage`` and ``--debug`` to a command."""
    command = debug_option(command)
    return click.option(
        "--storage",
        metavar="URL",
        default=DEFAULT_STORAGE,
        envvar=STORAGE_VARIABLE,
        show_default=True,
        show_envvar=True,
        help="Storage of the studies: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE.",
    )(command)


def study_name(value: str) -> str:
    """Return the name of a study, given its name or the path of its TOML file."""
    return Path(value).stem if value.endswith(".toml") else value


study_argument = click.argument("study", type=study_name)

studies_argument = click.argument(
    "studies", metavar="STUDY...", nargs=-1, required=True, type=study_name
)

artifacts_option = click.option(
    "--artifacts",
    metavar="FOLDER",
    envvar=ARTIFACTS_VARIABLE,
    show_envvar=True,
    help="Folder for checkpoints, weights and files of the dashboard; by default next to "
    "the SQLite file, or in studies/ if the storage is a server.",
)

dashboard_port_option = click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="Port of optuna-dashboard.",
)


def run_with_exit_code(main: Callable[[], int | None]) -> None:
    """Call a function and exit the process with its exit code, or with an error in one line.

    Args:
        main: function that returns an exit code; None for 0.
    """
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("studies").addHandler(_WARNINGS)
    try:
        sys.exit(main())
    except click.ClickException as error:
        _exit(error.format_message().replace("\n", " "), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        _exit("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if is_bug(error):
            print_bug(error, "error")
            sys.exit(EXIT_FAILURE)
        if is_debugging():
            traceback.print_exc()
        if isinstance(error, StorageUnavailableError):
            _exit(str(error), EXIT_FAILURE)
        if isinstance(error, UserError):
            _exit(str(error), EXIT_USAGE)
        if isinstance(error, SQLAlchemyError | OptunaError):
            _exit(
                f"storage failed ({error_message(error)}); recorded results are kept: run again",
                EXIT_FAILURE,
            )
        reason = str(error) or type(error).__name__
        _exit(f"{reason}; recorded results are kept: fix this and run again", EXIT_FAILURE)


def _exit(message: str, code: int) -> NoReturn:
    click.echo(f"error: {to_line(shorten(message, _MAX_MESSAGE))}", err=True)
    sys.exit(code)


# ------------------------------------------------------------------ bugs


def is_bug(error: BaseException) -> bool:
    """Return whether an exception is a bug of this program, to be shown with its traceback.

    Others have their cause in the input, in a database or a disk that fails, or in too
    little memory.
    """
    if isinstance(error, (UserError, OSError, MemoryError)) or is_transient(error):
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

    Args:
        error: the exception.
        label: ``error`` if it ends the command.
    """
    reason = to_line(shorten(f"{type(error).__name__}: {error}", 200))
    return [
        *"".join(traceback.format_exception(error)).splitlines(),
        f"{label}: bug in rnn-search ({reason}): please report it to the developers with these "
        "lines, the command and the output of rnn-search --version; recorded results are kept",
    ]


def print_bug(error: BaseException, label: str = "warning") -> None:
    """Print what :func:`describe_bug` returns."""
    click.echo("\n".join(describe_bug(error, label)), err=True)
