"""Exceptions of the reports package.

::

    ReportError
    ├── OutputTakenError
    └── DashboardError
"""

from studies.errors import StudiesError


class ReportError(Exception):
    """A report cannot be written; the message is one line for the user."""


class OutputTakenError(ReportError):
    """The output file exists and is not a report of the same studies."""


class DashboardError(ReportError):
    """The dashboard cannot be served."""


USER_ERRORS = (StudiesError, ReportError)
"""Errors that are reported to the user as one line."""
