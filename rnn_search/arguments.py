"""What a caller from Python passes: the defaults of the command line, and checks."""

import os
from pathlib import Path

from rnn.errors import UserError
from studies.cli import ARTIFACTS_VARIABLE, STORAGE_VARIABLE
from studies.storage.open import DEFAULT_STORAGE
from studies.text import shorten


def storage_or_default(storage: str | None) -> str:
    """Return the URL of a storage, or of the one that the command line uses."""
    if storage is not None:
        require_text(storage=storage)
    return storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE


def artifacts_or_default(artifacts: str | Path | None) -> str | None:
    """Return a location of artifacts, or the one that the command line uses."""
    if not isinstance(artifacts, str | Path | None):
        raise UserError(f"artifacts is {shorten(repr(artifacts))}: expected a folder")
    return str(artifacts) if artifacts else os.environ.get(ARTIFACTS_VARIABLE) or None


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


def require_integer(name: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Raise UserError if an argument is not an integer from ``low`` to ``high``."""
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {shorten(repr(value))}: expected an integer {bounds}")
