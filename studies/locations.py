"""Where studies and their files are, unless an option says otherwise."""

import os
from pathlib import Path

from rnn.errors import UserError
from studies.messages import shorten

DEFAULT_STORAGE = "sqlite:///studies/studies.db"
"""Default storage, relative to the working directory. Only its folder is created if missing."""

STORAGE_VARIABLE = "RNN_SEARCH_STORAGE"
"""Environment variable for ``--storage``; unlike the option, it is hidden from process lists."""

ARTIFACTS_VARIABLE = "RNN_SEARCH_ARTIFACTS"
"""Environment variable for ``--artifacts``."""


def storage_or_default(storage: str | None) -> str:
    """Return the URL of a storage, or of the one that the command line uses."""
    if not isinstance(storage, str | None):
        raise UserError(f"storage is {shorten(repr(storage))}: expected a text")
    return storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE


def artifacts_or_default(artifacts: str | Path | None) -> str | None:
    """Return a location of artifacts, or the one that the command line uses."""
    if not isinstance(artifacts, str | Path | None):
        raise UserError(f"artifacts is {shorten(repr(artifacts))}: expected a folder")
    return str(artifacts) if artifacts else os.environ.get(ARTIFACTS_VARIABLE) or None
