"""Errors of the API; the commands report them as one line."""

from reports.errors import ReportError
from rnn.errors import RNNError
from search.errors import USER_ERRORS as SEARCH_ERRORS
from search.errors import (
    ExportError,
    SearchError,
    SearchFailedError,
    TrialNotFoundError,
    UnfinishedSourceError,
    WeightsNotFoundError,
)
from studies.errors import (
    ConfigError,
    ConfigMismatchError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    StudiesError,
    StudyExistsError,
    StudyFileError,
    StudyFormatError,
    StudyHeldError,
    StudyNotFoundError,
    TableError,
)

USER_ERRORS = (*SEARCH_ERRORS, ReportError)
"""Base classes of all errors that are reported to the user as one line."""
