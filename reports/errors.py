"""The exceptions of this package.

::

    ReportError           a report that cannot be written
    └── DashboardError    a dashboard that cannot be served
"""


class ReportError(Exception):
    """A report cannot be written: one line that says why, and what to do."""


class DashboardError(ReportError):
    """A dashboard cannot be served."""
