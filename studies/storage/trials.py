"""Types of stored trials and studies, and the decoding of their rows.

Any program may write to a database. Decoding a row that this program cannot have stored raises a
:class:`~studies.errors.RowError`, and nothing else does; the storage's transactions turn it into an
error that names the study and the trial. Any other exception is a bug.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.attributes import FAILURE, LEASE, AuditState, Failure
from studies.errors import RowError
from studies.messages import shorten

_NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


class TrialStatus(StrEnum):
    """State of a trial as reports and counts name it: Optuna's, but for three of them."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    DIVERGED = "DIVERGED"
    """Its loss was not finite: it failed, or plain Optuna stored an infinite value."""
    TOLD = "TOLD"
    """It is complete without the record of a training, and its study excludes such trials."""
    FAIL = "FAIL"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    """It waits for the pruner to resume it."""
    WAITING = "WAITING"


def find_status(
    state: TrialState, failure: str | None, is_paused: bool, is_finite: bool, is_told: bool
) -> TrialStatus:
    """Return the status of a grid trial, which may have the time of a pause."""
    if is_told:
        return TrialStatus.TOLD
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
        value: value of a complete trial; None if it is not finite, as of plain Optuna, or told.
        number: number of the trial; when it is stored, it gets the next one.
        started: time of the last claim, UTC.
        completed: time at which it finished, UTC.
        is_grid: whether it belongs to the study's grid.
        is_paused: whether it waits for the pruner to resume it.
        is_told: whether it is excluded because no training of it is recorded.
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
    is_paused: bool = False
    is_told: bool = False
    system_attributes: dict[str, Any] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    losses: Sequence[float] = ()
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)

    @property
    def status(self) -> TrialStatus:
        """State of the trial as reports name it."""
        failure = self.attributes.get(FAILURE)
        is_finite = self.value is not None
        return find_status(self.state, failure, self.is_paused, is_finite, self.is_told)

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
            values=[self.values[place] for place in sorted(self.values)] or None,
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


@dataclass(frozen=True)
class StoredStudy:
    """A study with everything that it has, as it is stored, or is to be stored.

    Attributes:
        metric: name of its value; "" for none.
        distributions: distribution of each parameter; trials may have others.
        trials: its trials by number, or in the order of the numbers that they get; those that are
            read are to be iterated once.
        system_attributes: its system attributes, the name of its value aside.
    """

    name: str
    metric: str
    attributes: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    trials: Iterable[StoredTrial]
    direction: StudyDirection = StudyDirection.MINIMIZE
    system_attributes: Mapping[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------ decoding


@contextlib.contextmanager
def locating(study_id: int | None = None, trial_id: int | None = None) -> Iterator[None]:
    """Note in the error of a row that cannot be decoded to which study or trial the row belongs."""
    try:
        yield
    except RowError as error:
        error.study_id = error.study_id or study_id
        error.trial_id = error.trial_id or trial_id
        raise


def decode_json(stored: Any, name: str) -> Any:
    """Return the value of an attribute; raise a :class:`RowError` that names it if it is none."""
    try:
        return json.loads(stored)
    except (TypeError, ValueError) as error:
        found = "it is NULL" if stored is None else str(error)
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
        return datetime.fromisoformat(stored)
    except (TypeError, ValueError) as error:
        raise RowError(f"a time of it is {_shown(stored)}") from error


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
    try:
        return json_to_distribution(stored)
    except (LookupError, TypeError, ValueError) as error:
        raise RowError(f"its distribution cannot be read: {error}") from error


@cache
def decode_choices(stored: str) -> Sequence[Any]:
    """Return the choices of a stored distribution of a grid's parameter."""
    distribution = decode_distribution(stored)
    if not isinstance(distribution, CategoricalDistribution):
        raise RowError(f"its distribution is {type(distribution).__name__}: expected categories")
    return distribution.choices


@lru_cache(maxsize=2**16)
def decode_param(stored: float, distribution: str) -> Any:
    """Return the value of a parameter, given its stored number and its distribution as JSON.

    The number is the index of a choice; of another distribution than categories, the value.
    """
    parsed = decode_distribution(distribution)
    if not isinstance(stored, int | float) or not math.isfinite(stored):
        raise RowError(f"its value is {_shown(stored)}")
    if not isinstance(parsed, CategoricalDistribution):
        return parsed.to_external_repr(stored)
    if stored not in range(len(parsed.choices)):
        raise RowError(f"its choice is {stored:g} of {len(parsed.choices)}, counted from 0")
    return parsed.choices[int(stored)]


def decode_direction(stored: Any) -> StudyDirection:
    """Return the direction of an objective of a study."""
    if isinstance(stored, str) and stored in StudyDirection.__members__:
        return StudyDirection[stored]
    raise RowError(f"its direction is {_shown(stored)}")


def _shown(stored: Any) -> str:
    return shorten(repr(stored), 40)
