"""Exceptions of the reports package.

::

    ReportError
    └── DashboardError
"""

from studies.errors import StudiesError


class ReportError(Exception):
    """A report cannot be written; the message is one line for the user."""


class DashboardError(ReportError):
    """The dashboard cannot be served."""


USER_ERRORS = (StudiesError, ReportError)
"""Errors that are reported to the user as one line."""
