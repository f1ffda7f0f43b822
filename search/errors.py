"""Exceptions of this package."""

import optuna

import studies.cli
from rnn.errors import RNNError, find_user_line
from studies.errors import StudiesError


class SearchError(Exception):
    """Base class; the message is one line with the problem, what was expected and a remedy."""


class UnfinishedSourceError(SearchError):
    """The source of a refinement is not finished, or has too few complete trials."""


class GridExhaustedError(SearchError, optuna.TrialPruned):
    """No grid trial is left; ``optimize`` handles it as a pruned trial."""


class ShutdownRequestedError(SearchError):
    """An operation was interrupted by a request to stop."""


class WeightsNotFoundError(SearchError):
    """The weights of a trial are not available."""


class TrialNotFoundError(SearchError):
    """A study does not have the trial, or no complete one."""


class SearchFailedError(SearchError):
    """A worker process failed, or the study is finished without a complete trial."""


class LaunchError(SearchError):
    """A cluster cannot run workers as the command line says, or does not answer."""


class ExportError(SearchError):
    """A folder cannot be written."""


USER_ERRORS = (StudiesError, RNNError, SearchError)
"""Errors that are reported to the user as one line."""


def is_bug(error: BaseException) -> bool:
    """Return whether an exception during a search is a bug of this program.

    Not if it comes from a user's cell or task, nor if PyTorch raises it: for what it computes with,
    such as a device, it has no class but ``RuntimeError``.
    """
    expected = (*USER_ERRORS, RuntimeError)
    return not find_user_line(error) and studies.cli.is_bug(error, expected)


def format_error(error: Exception) -> str:
    """Return an exception's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
