"""Damaged rows of a study: values that this program cannot have stored.

Any program may write to a database. A damaged trial is left out of what is read, with a warning
that names it and what is wrong. Damage of the study itself raises a
:class:`~studies.errors.StudyFormatError` that names the study and the attribute.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from studies.attributes import first_message, is_imported_trial
from studies.errors import StudyFormatError
from studies.space import CELL, GATED_CELL, GATED_PARAMS, StoredParams, complete_params
from studies.text import shorten
from studies.training import TRAINING_PARAMS, TrainingSettings


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

MAX_NAMED = 3
"""Number of damaged trials of a study that a process names; it counts the others."""

_NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}

_logger = logging.getLogger(__name__)


class DamagedTrialError(StudyFormatError):
    """A trial that is damaged.

    Attributes:
        summary: what its rows raised, in one line.
    """

    def __init__(self, study: str, number: Any, reason: BaseException) -> None:
        self.summary = _summary(reason)
        error = ValueError(f"trial {number}: {self.summary}")
        super().__init__(str(damage_error(study, error)))


class DamagedTrials:
    """Damaged trials of a study, which are left out of what is read.

    Attributes:
        reasons: what is wrong with each, by number, or by a text that names it.
    """

    _reported: dict[str, set[int | str]] = {}  # noqa: RUF012  # by study, once in each process

    def __init__(self) -> None:
        self.reasons: dict[int | str, str] = {}

    def add(self, trial: int | str, error: BaseException) -> None:
        """Add a trial for the error that one of its rows raised; the first one counts."""
        reason = error.summary if isinstance(error, DamagedTrialError) else _summary(error)
        self.reasons.setdefault(trial, reason)

    def report(self, storage: "_Storage", study_id: int, is_strict: bool = False) -> None:
        """Warn of those that this process has not reported yet.

        Raises:
            ValueError: for the first one, if ``is_strict``: the caller needs all trials.
        """
        if not self.reasons:
            return
        if is_strict:
            trial, reason = next(iter(self.reasons.items()))
            raise ValueError(f"trial {trial}: {reason}")
        study = storage.get_study_name_from_id(study_id)
        reported = self._reported.setdefault(study, set())
        new = [trial for trial in self.reasons if trial not in reported]
        named = new[: max(0, MAX_NAMED - len(reported))]
        reported.update(new)
        for trial in named:
            _logger.warning(
                f"study {study!r}: trial {trial} is damaged and left out ({self.reasons[trial]})"
            )
        if others := len(new) - len(named):
            _logger.warning(f"study {study!r}: {others:,} more damaged trials are left out")


def raw(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return a column whose values are not converted: SQLite stores any type in any column."""
    return sa.type_coerce(column, sa.types.NullType())


def name_trial(trial_id: int, number: Any) -> int | str:
    """Return the number of a trial, or its id if it has no number."""
    return number if isinstance(number, int) else f"of id {trial_id}"


def parse_state(stored: Any) -> TrialState:
    """Return the state of a trial.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(stored, str) and stored in TrialState.__members__:
        return TrialState[stored]
    raise ValueError(f"its state is {_shown(stored)}")


def parse_time(stored: Any) -> datetime | None:
    """Return a time of a trial; None if there is none.

    Raises:
        ValueError: if it is something else.
    """
    if stored is None or isinstance(stored, datetime):
        return stored
    with contextlib.suppress(TypeError, ValueError):
        if (time := datetime.fromisoformat(stored)).tzinfo is None:
            return time
    raise ValueError(f"a time of it is {_shown(stored)}")


def parse_integer(stored: Any, name: str) -> int:
    """Return an integer; ``name`` says what it is.

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(stored, int):
        return stored
    raise ValueError(f"its {name} is {_shown(stored)}")


def parse_value(stored: Any, kind: Any, name: str) -> float:
    """Return the value of a trial or of a point of its curve.

    Args:
        stored: the number that is stored.
        kind: its type as Optuna stores it: ``FINITE``, ``INF_POS``, ``INF_NEG`` or ``NAN``.
        name: what it is, for the message.

    Raises:
        ValueError: if it is not a number, or the type is none of these.
    """
    if kind in _NOT_FINITE:
        return _NOT_FINITE[kind]
    if kind != "FINITE":
        raise ValueError(f"the type of its {name} is {_shown(kind)}")
    if isinstance(stored, int | float) and math.isfinite(stored):
        return float(stored)
    raise ValueError(f"its {name} is {_shown(stored)}")


def _shown(stored: Any) -> str:
    return shorten(repr(stored), 40)


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
        raise ValueError(f"its choice is {_shown(index)} of {len(choices)}, counted from 0")
    return choices[int(index)]


def parse_imported(stored: float, distribution: str) -> Any:
    """Return the value of a parameter of an imported trial, whose distribution may be any.

    Raises:
        TypeError, ValueError: if there is none.
    """
    parsed = _parse_distribution(distribution)
    if isinstance(parsed, CategoricalDistribution):
        return parse_choice(stored, distribution)
    if not (isinstance(stored, int | float) and math.isfinite(stored)):
        raise ValueError(f"its value is {_shown(stored)}")
    return parsed.to_external_repr(stored)


@cache
def _parse_distribution(distribution: str) -> BaseDistribution:
    if not isinstance(distribution, str):
        raise TypeError(f"its distribution is {_shown(distribution)}")
    return json_to_distribution(distribution)


@cache
def parse_choices(distribution: str) -> Sequence[Any]:
    """Return the choices of a stored distribution.

    Raises:
        TypeError, ValueError: if it has none.
    """
    parsed = _parse_distribution(distribution)
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
        TrainingSettings.model_validate(
            {name: params[name] for name in TRAINING_PARAMS if name in params}
        )
    except ValidationError as error:
        (name, *_) = error.errors()[0]["loc"]
        raise ValueError(f"parameter {name}: {first_message(error)}") from error
    is_gated = params.get(CELL, GATED_CELL) == GATED_CELL
    needed = GATED_PARAMS if is_gated else ("layers", "state_size")
    params = complete_params(params)
    missing = [name for name in needed if name not in params]
    if missing and len(missing) < len(needed):
        raise ValueError(f"it has no parameter {missing[0]}")


def check_grid_trial(trial: FrozenTrial) -> None:
    """Require a number, values that its parameters may have, and a value if complete.

    Raises:
        ValueError: if it lacks one.
    """
    if parse_integer(trial.number, "number") < 0:
        raise ValueError(f"its number is {trial.number}")
    if not is_imported_trial(trial):
        check_params(trial.params)
    if trial.state is TrialState.COMPLETE and len(trial.values or ()) != 1:
        raise ValueError("it is complete without a value, or with several")


def _summary(error: BaseException) -> str:
    return shorten(str(error).partition("\n")[0] or type(error).__name__, 160)
