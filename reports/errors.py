"""The exceptions of this package.

::

    ReportError             a report that cannot be written
    ├── OutputTakenError    an existing file that a report may not replace
    └── DashboardError      a dashboard that cannot be served
"""


class ReportError(Exception):
    """A report cannot be written: one line that says why, and what to do."""


class OutputTakenError(ReportError):
    """The output file exists and is not a report of the same studies."""


class DashboardError(ReportError):
    """A dashboard cannot be served."""
