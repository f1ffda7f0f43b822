"""Stored trials: the one type that is read and written, and the decoding of their rows.

Any program may write to a database. Decoding a row that this program cannot have stored raises a
:class:`~studies.errors.RowError`, and nothing else does: a trial with such a row is damaged, and is
left out of what is read with a warning that names it. Any other exception is a bug.
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    json_to_distribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from rnn.config import GATED_CELL
from studies.attributes import FAILURE, LEASE, AuditState, Failure
from studies.errors import RowError, StudyFormatError
from studies.records import first_message
from studies.space import (
    CELL,
    GATED_PARAMS,
    complete_params,
    convert_value,
)
from studies.text import shorten

MAX_NAMED = 3
"""Number of damaged trials of a study that a process names; it counts the others."""

_NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}

_logger = logging.getLogger(__name__)


class TrialStatus(StrEnum):
    """State of a trial as reports and counts name it: Optuna's, but for two of them."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    DIVERGED = "DIVERGED"
    """Its loss was not finite: it failed, or plain Optuna stored an infinite value."""
    FAIL = "FAIL"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    """It waits for the pruner to resume it."""
    WAITING = "WAITING"


def find_status(
    state: TrialState, failure: str | None, is_paused: bool, is_finite: bool
) -> TrialStatus:
    """Return the status of a grid trial.

    Args:
        state: its state.
        failure: why it failed; None if it did not.
        is_paused: whether it has the time of a pause.
        is_finite: whether its value is finite.
    """
    if failure == Failure.DIVERGED or (state is TrialState.COMPLETE and not is_finite):
        return TrialStatus.DIVERGED
    if state is TrialState.WAITING and is_paused:
        return TrialStatus.PAUSED
    return TrialStatus[state.name]


@dataclass(slots=True)
class StoredTrial:
    """A trial as it is stored, or is to be stored; readers fill the columns they are asked for.

    Attributes:
        audit: what the pruner has decided about an audited trial, which is trained to the end
            whatever that is; None for any other.
        value: value of a complete trial; None if it is not finite, as of plain Optuna.
        number: number of the trial; when it is stored, it gets the next one.
        trial_id: its id in the database.
        started: time of the last claim, UTC.
        completed: time at which it finished, UTC.
        is_grid: whether it belongs to the study's grid.
        is_imported: whether another program has recorded it.
        is_paused: whether it waits for the pruner to resume it.
        system_attributes: system attributes but the lease.
        losses: loss at each of the rungs that a reader was asked for; NaN if it has not reached it.
        values: all values of a trial of plain Optuna, which may have several.
    """

    params: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    audit: AuditState | None = None
    state: TrialState = TrialState.WAITING
    value: float | None = None
    number: int = -1
    trial_id: int = -1
    started: datetime | None = None
    completed: datetime | None = None
    is_grid: bool = True
    is_imported: bool = False
    is_paused: bool = False
    system_attributes: dict[str, Any] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    losses: Sequence[float] = ()
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)

    @property
    def status(self) -> TrialStatus:
        """State of the trial as reports name it."""
        failure = self.attributes.get(FAILURE)
        return find_status(self.state, failure, self.is_paused, self.value is not None)

    @property
    def is_audited(self) -> bool:
        """Whether it is trained to the end whatever the pruner decides."""
        return self.audit is not None

    def freeze(self) -> FrozenTrial:
        """Return Optuna's object for a trial of which all columns were read."""
        return FrozenTrial(
            number=self.number,
            state=self.state,
            value=None,
            values=[self.values[place] for place in range(len(self.values))] or None,
            datetime_start=self.started,
            datetime_complete=self.completed,
            # Those that are stored: Optuna refuses one without a distribution.
            params={name: self.params[name] for name in self.distributions},
            distributions=dict(self.distributions),
            user_attrs=dict(self.attributes),
            system_attrs={
                key: value for key, value in self.system_attributes.items() if key != LEASE
            },
            intermediate_values=dict(self.curve),
            trial_id=self.trial_id,
        )


# ------------------------------------------------------------------ damage


class DamagedTrialError(StudyFormatError):
    """A trial that is damaged.

    Attributes:
        summary: what is wrong with its rows, in one line.
    """

    def __init__(self, study: str, number: Any, summary: str) -> None:
        self.summary = summary
        super().__init__(describe_damage(study, f"trial {number}: {summary}"))


def describe_damage(study: str, found: str) -> str:
    """Return the message for what was found in a study."""
    return (
        f"study {study!r} is damaged ({shorten(found, 180)}): restore the storage from a backup, "
        "or choose another study or --name"
    )


class _Storage(Protocol):
    def get_study_name_from_id(self, study_id: int) -> str: ...


@contextlib.contextmanager
def reporting_damage(storage: _Storage, study_id: int) -> Iterator[None]:
    """Raise a :class:`StudyFormatError` that names the study for a row that cannot be decoded."""
    try:
        yield
    except RowError as error:
        name = storage.get_study_name_from_id(study_id)
        raise StudyFormatError(describe_damage(name, str(error))) from error


class DamagedTrials:
    """Damaged trials of a study, which are left out of what is read.

    Attributes:
        reasons: what is wrong with each, by number, or by a text that names it.
    """

    _reported: dict[str, set[int | str]] = {}  # noqa: RUF012  # by study, once in each process

    def __init__(self) -> None:
        self.reasons: dict[int | str, str] = {}

    def add(self, trial_id: int, number: Any, error: RowError) -> None:
        """Add a trial for the error that one of its rows raised; the first one counts."""
        name = number if isinstance(number, int) else f"of id {trial_id}"
        self.reasons.setdefault(name, shorten(str(error), 160))

    def report(self, storage: _Storage, study_id: int, is_strict: bool = False) -> None:
        """Warn of those that this process has not reported yet.

        Raises:
            DamagedTrialError: for the first one, if ``is_strict``: the caller needs all trials.
        """
        if not self.reasons:
            return
        study = storage.get_study_name_from_id(study_id)
        if is_strict:
            raise DamagedTrialError(study, *next(iter(self.reasons.items())))
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


# ------------------------------------------------------------------ decoding


def decode_json(stored: Any, name: str) -> Any:
    """Return the value of an attribute; raise a :class:`RowError` that names it if it is none."""
    try:
        return json.loads(stored)
    except (RecursionError, TypeError, ValueError) as error:
        found = str(error).partition("\n")[0] if stored is not None else "it is NULL"
        raise RowError(f"attribute {name}: {found}") from error


def decode_state(stored: Any) -> TrialState:
    """Return the state of a trial."""
    if isinstance(stored, str) and stored in TrialState.__members__:
        return TrialState[stored]
    raise RowError(f"its state is {_shown(stored)}")


def decode_time(stored: Any) -> datetime | None:
    """Return a time of a trial; None if there is none."""
    if stored is None or isinstance(stored, datetime):
        return stored
    try:
        time = datetime.fromisoformat(stored)
    except (TypeError, ValueError) as error:
        raise RowError(f"a time of it is {_shown(stored)}") from error
    if time.tzinfo is not None:
        raise RowError(f"a time of it is {_shown(stored)}")
    return time


def decode_integer(stored: Any, name: str) -> int:
    """Return an integer; ``name`` says what it is."""
    if isinstance(stored, int):
        return stored
    raise RowError(f"its {name} is {_shown(stored)}")


def decode_value(stored: Any, kind: Any, name: str) -> float:
    """Return the value of a trial or of a point of its curve.

    Args:
        stored: the number that is stored.
        kind: its type as Optuna stores it: ``FINITE``, ``INF_POS``, ``INF_NEG`` or ``NAN``.
        name: what it is, for the message.
    """
    if kind in _NOT_FINITE:
        return _NOT_FINITE[kind]
    if kind != "FINITE":
        raise RowError(f"the type of its {name} is {_shown(kind)}")
    if isinstance(stored, int | float) and math.isfinite(stored):
        return float(stored)
    raise RowError(f"its {name} is {_shown(stored)}")


@cache
def decode_distribution(stored: str) -> BaseDistribution:
    """Return a distribution that Optuna has stored as JSON."""
    if not isinstance(stored, str):
        raise RowError(f"its distribution is {_shown(stored)}")
    try:
        return json_to_distribution(stored)
    except (
        ArithmeticError,  # of an infinite range
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise RowError(f"its distribution cannot be read: {error}") from error


@cache
def decode_choices(stored: str) -> Sequence[Any]:
    """Return the choices of a stored distribution of a grid's parameter."""
    distribution = decode_distribution(stored)
    if not isinstance(distribution, CategoricalDistribution):
        raise RowError(f"its distribution is {type(distribution).__name__}: expected categories")
    if not all(isinstance(choice, bool | int | float | str) for choice in distribution.choices):
        raise RowError("a choice is neither a number nor a text")
    return distribution.choices


def decode_param(stored: float, distribution: str, is_any: bool) -> Any:
    """Return the value of a parameter, given its stored number and distribution.

    Args:
        stored: the index of a choice; of another distribution than categories, the value.
        distribution: the distribution as JSON.
        is_any: whether it may be any distribution, as of an imported trial.
    """
    parsed = decode_distribution(distribution) if is_any else None
    if parsed is not None and not isinstance(parsed, CategoricalDistribution):
        if not (isinstance(stored, int | float) and math.isfinite(stored)):
            raise RowError(f"its value is {_shown(stored)}")
        return parsed.to_external_repr(stored)
    choices = decode_choices(distribution) if parsed is None else parsed.choices
    if not isinstance(stored, int | float) or stored not in range(len(choices)):
        raise RowError(f"its choice is {_shown(stored)} of {len(choices)}, counted from 0")
    return choices[int(stored)]


def check_params(params: Mapping[str, Any]) -> None:
    """Require values that the parameters of a grid trial may have.

    Raises:
        RowError: if one has a value that no study file may have, or one is missing.
    """
    for name, value in params.items():
        _check_param(name, type(value).__name__, value)
    is_gated = params.get(CELL, GATED_CELL) == GATED_CELL
    needed = GATED_PARAMS if is_gated else ("layers", "state_size")
    params = complete_params(params)
    missing = [name for name in needed if name not in params]
    if missing and len(missing) < len(needed):
        raise RowError(f"it has no parameter {missing[0]}")


@cache
def _check_param(name: str, kind: str, value: Any) -> None:  # 1 and true are equal
    try:
        convert_value(name, value)
    except ValidationError as error:
        raise RowError(f"parameter {name}: {first_message(error)}") from error


def decode_direction(stored: Any) -> StudyDirection:
    """Return the direction of an objective of a study."""
    if isinstance(stored, str) and stored in StudyDirection.__members__:
        return StudyDirection[stored]
    raise RowError(f"its direction is {_shown(stored)}")


def _shown(stored: Any) -> str:
    return shorten(repr(stored), 40)
