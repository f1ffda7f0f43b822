"""Errors of the API, each a message of one line; commands print it.

``UserError`` is the base of all: bad input, or a file or a service that cannot be used.
``StorageUnavailableError`` says that a storage was unavailable for too long, or was lost, during a
search: the same call resumes it. ``CellError`` and ``TaskError`` speak of your own class.
"""

from rnn.errors import CellError, TaskError, UserError
from studies.errors import StorageUnavailableError

__all__ = ["CellError", "StorageUnavailableError", "TaskError", "UserError"]
