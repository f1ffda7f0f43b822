"""The exception of this package."""


class ReportError(Exception):
    """A report cannot be written: one line that says why, and what to do."""
