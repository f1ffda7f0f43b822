"""Errors for damaged rows of a study.

Any program may write to a database. Rows that this one cannot have stored raise a
:class:`~studies.errors.StudyFormatError` that names the study and, where possible, the trial and
the attribute.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from optuna.distributions import CategoricalDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from studies.attributes import first_message
from studies.errors import StudyFormatError
from studies.space import StoredParams
from studies.text import shorten


class _Storage(Protocol):
    def get_study_name_from_id(self, study_id: int) -> str: ...


_S = TypeVar("_S", bound=_Storage)
_P = ParamSpec("_P")
_R = TypeVar("_R")

READ_ERRORS = (
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
    """Make a function that reads a study, given a storage and its id, report damaged rows."""

    @wraps(read)
    def read_study(storage: _S, study_id: int, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return read(storage, study_id, *args, **kwargs)
        except READ_ERRORS as error:
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
def reading(subject: str) -> Iterator[None]:
    """Name a trial or an attribute in the errors that its rows raise."""
    try:
        yield
    except READ_ERRORS as error:
        raise ValueError(f"{subject}: {_summary(error)}") from error


def parse_choice(index: float, distribution: str) -> Any:
    """Return the value of a parameter of a grid trial, given its stored index and distribution.

    Raises:
        TypeError, ValueError: if there is none.
    """
    choices = parse_choices(distribution)
    if index not in range(len(choices)):
        raise ValueError(f"its choice is {index} of {len(choices)}, counted from 0")
    return choices[int(index)]


@cache
def parse_choices(distribution: str) -> Sequence[Any]:
    """Return the choices of a stored distribution.

    Raises:
        TypeError, ValueError: if it has none.
    """
    parsed = json_to_distribution(distribution)
    if not isinstance(parsed, CategoricalDistribution):
        raise TypeError(f"its distribution is {type(parsed).__name__}: expected categories")
    if not all(isinstance(choice, bool | int | float | str) for choice in parsed.choices):
        raise TypeError("a choice is neither a number nor a text")
    return parsed.choices


def check_params(params: Mapping[str, Any]) -> None:
    """Require values that the parameters of a grid trial may have.

    Raises:
        ValueError: if one has a value that no study file may have.
    """
    try:
        StoredParams.model_validate(params)
    except ValidationError as error:
        (name, *_) = error.errors()[0]["loc"]
        raise ValueError(f"parameter {name}: {first_message(error)}") from error


def check_grid_trial(trial: FrozenTrial) -> None:
    """Require a number, values that its parameters may have, and a value if complete.

    Raises:
        ValueError: if it lacks one.
    """
    if not isinstance(trial.number, int) or trial.number < 0:
        raise ValueError(f"its number is {trial.number}")
    check_params(trial.params)
    if trial.state is TrialState.COMPLETE and len(trial.values or ()) != 1:
        raise ValueError("it is complete without a value, or with several")


def _summary(error: BaseException) -> str:
    return shorten(str(error).partition("\n")[0] or type(error).__name__, 160)
