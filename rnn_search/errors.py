"""Errors of the API, each a message of one line; commands print it.

``UserError`` is the base of all: bad input, or a file or a service that cannot be used.
``StorageUnavailableError`` says that a storage was unavailable for too long, or was lost, during a
search: the same call resumes it. ``CellError`` and ``TaskError`` speak of your own class.
"""

from pathlib import Path

from rnn.errors import CellError, TaskError, UserError
from studies.errors import StorageUnavailableError
from studies.messages import shorten

__all__ = ["CellError", "StorageUnavailableError", "TaskError", "UserError"]


def require_text(**values: object) -> None:
    """Raise UserError if an argument, given by its name, is not a text."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise UserError(f"{name} is {shorten(repr(value))}: expected a text")


def to_path(name: str, value: object) -> Path:
    """Return an argument as a path, or raise UserError."""
    if not isinstance(value, str | Path):
        raise UserError(f"{name} is {shorten(repr(value))}: expected a path")
    return Path(value)
