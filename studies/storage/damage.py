"""Damaged rows of a study, reported where they are read.

Any program may write to a database. What this one cannot have stored becomes a
:class:`~studies.errors.StudyFormatError` that names the study and, where possible, the trial and
the attribute.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from optuna.trial import FrozenTrial, TrialState

from studies.errors import StudyFormatError
from studies.text import shorten


class _Storage(Protocol):
    def get_study_name_from_id(self, study_id: int) -> str: ...


_S = TypeVar("_S", bound=_Storage)
_P = ParamSpec("_P")
_R = TypeVar("_R")

_SYMPTOMS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What this program and Optuna raise for rows that they cannot read."""


def reports_damage(
    read: Callable[Concatenate[_S, int, _P], _R],
) -> Callable[Concatenate[_S, int, _P], _R]:
    """Decorate a function that reads a study, given a storage and the study's id."""

    @wraps(read)
    def read_study(storage: _S, study_id: int, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return read(storage, study_id, *args, **kwargs)
        except _SYMPTOMS as error:
            name = storage.get_study_name_from_id(study_id)  # KeyError if it does not exist
            raise damage_error(name, error) from error

    return read_study  # type: ignore[return-value]  # Concatenate names the arguments


def damage_error(study: str, error: BaseException) -> StudyFormatError:
    """Return the error that reports what was found in a study."""
    return StudyFormatError(
        f"study {study!r} is damaged ({_summary(error)}): restore the storage from a backup, or "
        "choose another study or --name"
    )


@contextlib.contextmanager
def reading_trial(number: object) -> Iterator[None]:
    """Name a trial in what is raised for its rows."""
    try:
        yield
    except _SYMPTOMS as error:
        raise ValueError(f"trial {number}: {_summary(error)}") from error


def check_grid_trial(trial: FrozenTrial) -> None:
    """Require a number, values of parameters that can be compared, and a value if complete.

    Raises:
        ValueError: if one is missing.
    """
    if not isinstance(trial.number, int) or trial.number < 0:
        raise ValueError(f"its number is {trial.number}")
    if not all(isinstance(value, bool | int | float | str) for value in trial.params.values()):
        raise ValueError("a parameter is neither a number nor a text")
    if trial.state is TrialState.COMPLETE and len(trial.values or ()) != 1:
        raise ValueError("it is complete without a value, or with several")


def _summary(error: BaseException) -> str:
    return shorten(str(error).partition("\n")[0] or type(error).__name__, 160)
