"""The exceptions of this package that some code catches by name, and which errors are bugs."""

import optuna

import studies.failures
from rnn.errors import UserError, find_user_line


class GridExhaustedError(UserError, optuna.TrialPruned):
    """No grid trial is left; ``optimize`` handles it as a pruned trial."""


class ShutdownRequestedError(UserError):
    """An operation was interrupted by a request to stop."""


def is_bug(error: BaseException) -> bool:
    """Return whether an exception during a search is a bug of this program.

    Not if it comes from a user's cell or task, nor if PyTorch raises it: for what it computes with,
    such as a device, it has no class but ``RuntimeError``.
    """
    is_expected = isinstance(error, RuntimeError) or find_user_line(error)
    return not is_expected and studies.failures.is_bug(error)


def format_error(error: Exception) -> str:
    """Return an exception's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
