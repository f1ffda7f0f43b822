"""The exceptions of this package.

::

    SearchError
    ├── SourceUnfinished    a study that another is to be derived from, not complete
    ├── GridExhausted       (also optuna.TrialPruned) no point is left to be run
    ├── Stopped             a stop was asked for in the midst of something
    ├── WeightsNotKept      a trial whose trained network is not to be had
    └── ExportRefused       a folder that a network cannot be written to
"""

import optuna

from rnn.errors import RNNError
from studies.errors import StudiesError


class SearchError(Exception):
    """Base of this package's errors: one line that gives the value, the bound and the mend."""


class UnfinishedSourceError(SearchError):
    """A source study is not complete."""


class GridExhaustedError(SearchError, optuna.TrialPruned):
    """Every point of a grid is taken; Optuna's loop takes it for a trial that was pruned."""


class ShutdownRequestedError(SearchError):
    """A stop was asked for before what was begun is done."""


class WeightsNotFoundError(SearchError):
    """There is no trained network of a trial."""


class ExportError(SearchError):
    """A folder is not free for what is to be written there."""


USER_ERRORS = (StudiesError, RNNError, SearchError)
"""What a person can mend: its message is the one line that they are to read."""


def in_one_line(error: Exception) -> str:
    """Return an exception's type and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
