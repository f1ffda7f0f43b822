"""Counts, rankings and timings of a study's trials, computed by the database."""

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import (
    AUDIT,
    EARLIER_CODE,
    EARLIER_TORCH,
    FAILURE,
    PAUSED,
    RETRY_COUNTS,
    SECONDS,
    Failure,
    VersionRecord,
    parse_trial_attribute,
)
from studies.space import COST_PARAMS, REPLICATE
from studies.storage.damage import (
    READ_ERRORS,
    DamagedTrials,
    name_trial,
    parse_state,
    raw,
    reports_damage,
)
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    STUDY_DIRECTIONS,
    TRIAL_PARAMS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    has_system_attr,
    is_grid_trial,
)

_FINITE = models.TrialValueModel.TrialValueType.FINITE

_IS_NUMBER = TRIAL_VALUES.c.value.between(-sys.float_info.max, sys.float_info.max)
"""Condition that a stored value is finite; on SQLite it may also be a text."""


@dataclass(frozen=True)
class TrialCounts:
    """Number of a study's grid trials in each state.

    Attributes:
        diverged: number of trials whose loss was not finite, those that plain Optuna completed with
            an infinite value included.
        paused: number of waiting trials that the pruner has paused.
    """

    complete: int = 0
    pruned: int = 0
    diverged: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    paused: int = 0

    @property
    def planned(self) -> int:
        """Number of all grid trials."""
        return self.finished + self.running + self.waiting

    @property
    def finished(self) -> int:
        """Number of trials that will not run again."""
        return self.complete + self.pruned + self.diverged + self.failed

    def describe(self) -> str:
        """Return them as text, without states of no trial: ``12 of 96 finished, 4 running``."""
        states = ("running", "paused", "pruned", "diverged", "failed")
        numbers = [f"{getattr(self, state)} {state}" for state in states if getattr(self, state)]
        return ", ".join([f"{self.finished} of {self.planned} finished", *numbers])


@dataclass(frozen=True)
class TimingStats:
    """Number and mean duration of the trials of one shape.

    Attributes:
        seconds: mean duration of the complete trials.
    """

    complete: int = 0
    running: int = 0
    waiting: int = 0
    seconds: float = 0.0


@reports_damage
def count_trials(storage: LeasedRDBStorage, study_id: int) -> TrialCounts:
    """Count a study's grid trials by state.

    Those of an unknown state or failure, and complete ones without a value, are left out.
    """
    failure = (
        sa.select(TRIAL_USER_ATTRS.c.value_json)
        .where(TRIAL_USER_ATTRS.c.trial_id == TRIALS.c.trial_id, TRIAL_USER_ATTRS.c.key == FAILURE)
        .scalar_subquery()
    )
    columns = {
        "failure": failure,
        "is_paused": has_system_attr(PAUSED),
        "is_infinite": sa.exists().where(
            TRIAL_VALUES.c.trial_id == TRIALS.c.trial_id, TRIAL_VALUES.c.value_type != _FINITE
        ),
        "has_value": sa.exists().where(TRIAL_VALUES.c.trial_id == TRIALS.c.trial_id, _IS_NUMBER),
    }
    of_study = (TRIALS.c.study_id == study_id, is_grid_trial())
    read = [raw(TRIALS.c.state), *(column.label(name) for name, column in columns.items())]
    query: sa.Select[Any] = sa.select(*read, sa.func.count()).where(*of_study)
    query = query.group_by(TRIALS.c.state, *map(sa.literal_column, columns))
    counts: Counter[str] = Counter()
    damaged = DamagedTrials()
    with storage.reading() as connection:
        for *row, count in connection.execute(query):
            try:
                name, is_paused = _name_state(*row)
            except READ_ERRORS as error:
                damaged.add("", error)
                continue
            counts[name] += count
            counts["paused"] += count if is_paused else 0
        if damaged.reasons:
            damaged = DamagedTrials()
            ids = TRIALS.c.trial_id, raw(TRIALS.c.number)
            each = sa.select(*ids, *read).where(*of_study).order_by(TRIALS.c.number)
            for trial_id, number, *row in connection.execute(each):
                try:
                    _name_state(*row)
                except READ_ERRORS as error:
                    damaged.add(name_trial(trial_id, number), error)
    damaged.report(storage, study_id)
    return TrialCounts(**counts)


def _name_state(
    stored: Any, failed_by: str | None, is_paused: bool, is_infinite: bool, has_value: bool
) -> tuple[str, bool]:
    """Return the field of `TrialCounts` that counts trials, and whether they are paused.

    Raises:
        ValueError: if no trial of this program has such a state.
    """
    state = parse_state(stored)
    failure = None if failed_by is None else parse_trial_attribute(FAILURE, failed_by)
    is_complete = state is TrialState.COMPLETE
    if is_complete and not (is_infinite or has_value):
        raise ValueError("it is complete without a value")
    if failure is Failure.DIVERGED or (is_complete and is_infinite):
        return "diverged", False
    name = "failed" if state is TrialState.FAIL else state.name.lower()
    return name, state is TrialState.WAITING and bool(is_paused)


@reports_damage
def count_started(storage: LeasedRDBStorage, study_id: int) -> int:
    """Count the grid trials that are not waiting, or wait again and have a loss already."""
    has_curve = sa.exists().where(INTERMEDIATE_VALUES.c.trial_id == TRIALS.c.trial_id)
    query = (
        sa.select(sa.func.count())
        .select_from(TRIALS)
        .where(
            TRIALS.c.study_id == study_id,
            is_grid_trial(),
            (TRIALS.c.state != TrialState.WAITING) | has_curve,
        )
    )
    with storage.reading() as connection:
        return connection.scalar(query) or 0


@reports_damage
def count_retries(storage: LeasedRDBStorage, study_id: int) -> dict[Failure, int]:
    """Count how often a study's grid trials were requeued, by reason."""
    query = (
        sa.select(TRIALS.c.number, TRIAL_USER_ATTRS.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_USER_ATTRS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id, TRIAL_USER_ATTRS.c.key == RETRY_COUNTS, is_grid_trial()
        )
    )
    counts: Counter[str] = Counter()
    damaged = DamagedTrials()
    with storage.reading() as connection:
        for number, stored in connection.execute(query):
            try:
                counts.update(parse_trial_attribute(RETRY_COUNTS, stored))
            except READ_ERRORS as error:
                damaged.add(number, error)
    damaged.report(storage, study_id)
    return {failure: counts[failure] for failure in Failure if counts[failure]}


@reports_damage
def distinct_versions(storage: LeasedRDBStorage, study_id: int) -> dict[str, set[str]]:
    """Return all versions that trained a study's grid trials, by field of `VersionRecord`."""
    names = {name: name for name in VersionRecord.model_fields}
    names |= {EARLIER_CODE: "code", EARLIER_TORCH: "torch"}
    query = (
        sa.select(TRIAL_USER_ATTRS.c.key, TRIAL_USER_ATTRS.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_USER_ATTRS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIAL_USER_ATTRS.c.key.in_(names), is_grid_trial())
        .distinct()
    )
    versions: dict[str, set[str]] = {name: set() for name in VersionRecord.model_fields}
    with storage.reading() as connection:
        for key, stored in connection.execute(query):
            with contextlib.suppress(*READ_ERRORS):  # readers of its trial report it
                recorded = parse_trial_attribute(key, stored) or []
                versions[names[key]].update([recorded] if isinstance(recorded, str) else recorded)
    return versions


@reports_damage
def best_trial_ids(storage: LeasedRDBStorage, study_id: int, limit: int) -> list[int]:
    """Return the ids of at most ``limit`` best trials of a study, best first."""
    with storage.reading() as connection:
        query = _ranked(connection, study_id, TRIALS.c.trial_id).limit(limit)
        return list(connection.scalars(query))


@reports_damage
def top_trials(storage: LeasedRDBStorage, study_id: int, limit: int) -> list[tuple[int, float]]:
    """Return the numbers and values of at most ``limit`` best trials, best first."""
    with storage.reading() as connection:
        query = _ranked(connection, study_id, TRIALS.c.number, TRIAL_VALUES.c.value).limit(limit)
        return [(number, value) for number, value in connection.execute(query)]


@reports_damage
def has_replicates(storage: LeasedRDBStorage, study_id: int) -> bool:
    """Return whether the trials of a study have several numbers of replicates."""
    query = (
        sa.select(sa.func.count(sa.distinct(TRIAL_PARAMS.c.param_value)))
        .join_from(TRIALS, TRIAL_PARAMS, TRIAL_PARAMS.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIAL_PARAMS.c.param_name == REPLICATE)
    )
    with storage.reading() as connection:
        return (connection.scalar(query) or 0) > 1


@reports_damage
def timing_by_shape(storage: LeasedRDBStorage, study_id: int) -> list[TimingStats]:
    """Return timings by cell, layers, state size and bptt_steps."""
    params = {name: TRIAL_PARAMS.alias() for name in COST_PARAMS}
    values = [param.c.param_value for param in params.values()]
    trials: sa.FromClause = TRIALS
    for name, param in params.items():
        is_param = (param.c.trial_id == TRIALS.c.trial_id) & (param.c.param_name == name)
        trials = trials.outerjoin(param, is_param)
    stored = TRIAL_USER_ATTRS.c.value_json
    is_number = stored.regexp_match(r"^[0-9]{1,15}(\.[0-9]+)?(e-?[0-9]{1,2})?$")
    # SQLite orders bytes, which no regular expression matches, after all texts.
    is_number = sa.case((stored.between("0", "a"), is_number), else_=sa.false())
    query = (
        sa.select(
            *values,
            raw(TRIALS.c.state),
            sa.func.count(),
            sa.func.avg(sa.case((is_number, sa.cast(stored, sa.Float)))),
        )
        .select_from(trials)
        .outerjoin(
            TRIAL_USER_ATTRS,
            (TRIAL_USER_ATTRS.c.trial_id == TRIALS.c.trial_id)
            & (TRIAL_USER_ATTRS.c.key == SECONDS),
        )
        .where(
            TRIALS.c.study_id == study_id,
            is_grid_trial(),
        )
        .group_by(*values, TRIALS.c.state)
    )
    by_shape: dict[tuple[float, ...], dict[str, float]] = {}
    with storage.reading() as connection:
        for *shape, state, count, seconds in connection.execute(query):
            durations = by_shape.setdefault(tuple(shape), {})
            if state == TrialState.COMPLETE.name:
                durations |= {"complete": count, "seconds": seconds or 0.0}
            elif state in (TrialState.RUNNING.name, TrialState.WAITING.name):
                durations[state.lower()] = count
    return [TimingStats(**durations) for durations in by_shape.values()]  # type: ignore[arg-type]


def _ranked(
    connection: Connection, study_id: int, *columns: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    """Return the query for columns of the complete trials of finite value, the best first."""
    of_study = STUDY_DIRECTIONS.c.study_id == study_id
    is_maximized = "MAXIMIZE" in connection.scalars(
        sa.select(raw(STUDY_DIRECTIONS.c.direction)).where(of_study)
    )
    value = TRIAL_VALUES.c.value
    return (
        sa.select(*columns)
        .join_from(TRIALS, TRIAL_VALUES, TRIAL_VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.COMPLETE,
            TRIAL_VALUES.c.value_type == _FINITE,
            _IS_NUMBER,
            is_grid_trial(),
        )
        .order_by(value.desc() if is_maximized else value, TRIALS.c.number)
    )


def count_audited(storage: LeasedRDBStorage, study_id: int) -> int:
    """Count the grid trials of a study that are trained to the end whatever the pruner decides."""
    query = sa.select(sa.func.count()).select_from(TRIALS)
    query = query.where(TRIALS.c.study_id == study_id, is_grid_trial(), has_system_attr(AUDIT))
    with storage.reading() as connection:
        return connection.scalar(query) or 0
