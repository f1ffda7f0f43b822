"""The words that all commands share, and how a command ends when it cannot do what it is asked."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import optuna
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from studies.errors import StorageUnavailableError
from studies.storage.open import DEFAULT_STORAGE
from studies.storage.retry import error_message

STORAGE_VARIABLE = "RNN_SEARCH_STORAGE"
"""The environment variable that stands in for ``--storage``: it shows in no process list."""

ARTIFACTS_VARIABLE = "RNN_SEARCH_ARTIFACTS"
"""The environment variable that stands in for ``--artifacts``."""

_F = TypeVar("_F", bound=Callable[..., Any])

EXIT_USAGE, EXIT_FAILURE = 2, 1
"""Exit codes: what was asked for cannot be done; something gave way while it was done."""


def storage_options(command: _F) -> _F:
    """Give a command ``--storage`` and ``--debug``."""
    command = click.option(
        "--debug", is_flag=True, help="Show the traceback of an error instead of one line."
    )(command)
    return click.option(
        "--storage",
        metavar="URL",
        default=DEFAULT_STORAGE,
        envvar=STORAGE_VARIABLE,
        show_default=True,
        show_envvar=True,
        help="Where studies are kept: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE.",
    )(command)


def study_name(given: str) -> str:
    """Return the name of a study that is given by its name or by the path of its TOML file."""
    return Path(given).stem if given.endswith(".toml") else given


class _StudyName(click.ParamType[str]):
    """Convert the name of a study, or the path of its TOML file, to the name."""

    name = "study"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        return study_name(value)


study_argument = click.argument("study", type=_StudyName())

studies_argument = click.argument(
    "studies", metavar="STUDY...", nargs=-1, required=True, type=_StudyName()
)

artifacts_option = click.option(
    "--artifacts",
    metavar="FOLDER|s3://BUCKET",
    envvar=ARTIFACTS_VARIABLE,
    show_envvar=True,
    help="Where the files of a study lie: how far running trials have come, and what the dashboard "
    "shows; by default beside the SQLite file, or in studies/ where the studies are on a server.",
)

dashboard_port_option = click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="Of optuna-dashboard.",
)


def run_command(command: click.Command, bad_input: tuple[type[Exception], ...]) -> None:
    """Run a command and leave the process with the exit code that it returns.

    Args:
        command: returns its exit code.
        bad_input: the exceptions whose message is the one line that a person is to read.
    """
    run_with_exit_code(lambda: command.main(standalone_mode=False), bad_input)


def run_with_exit_code(work: Callable[[], int], bad_input: tuple[type[Exception], ...]) -> None:
    """Work, and leave the process with the exit code that is returned, or with one line.

    Args:
        work: returns its exit code.
        bad_input: the exceptions whose message is the one line that a person is to read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    expected: tuple[type[Exception], ...] = (*bad_input, SQLAlchemyError, OptunaError, OSError)
    try:
        code = work()
    except click.ClickException as error:
        _leave(error.format_message().replace("\n", " "), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        _leave("interrupted", 130)
    except expected as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if isinstance(error, StorageUnavailableError):
            _leave(str(error), EXIT_FAILURE)
        if isinstance(error, bad_input):
            _leave(str(error), EXIT_USAGE)
        if isinstance(error, OSError):
            _leave(f"{error}; what is recorded is kept; mend it and run again", EXIT_FAILURE)
        _leave(
            f"the storage failed ({error_message(error)}); what is recorded is kept; run again",
            EXIT_FAILURE,
        )
    sys.exit(code)


def _leave(line: str, code: int) -> NoReturn:
    click.echo(f"error: {line}", err=True)
    sys.exit(code)
