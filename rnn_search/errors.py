"""Errors that the commands of this package report as one line."""

from reports.errors import ReportError
from search.errors import USER_ERRORS as SEARCH_ERRORS

USER_ERRORS = (*SEARCH_ERRORS, ReportError)
"""Errors that are reported to the user as one line."""
