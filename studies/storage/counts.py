"""Counts, rankings and timings of a study's trials, computed by the database."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState

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
from studies.space import COST_PARAMS
from studies.storage.damage import reading, reports_damage
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    TRIAL_PARAMS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    has_system_attr,
    is_grid_trial,
)

_FINITE = models.TrialValueModel.TrialValueType.FINITE


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
    """Count a study's grid trials by state."""
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
    }
    labelled = [column.label(name) for name, column in columns.items()]
    query: sa.Select[Any] = (
        sa.select(TRIALS.c.state, *labelled, sa.func.count())
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .group_by(TRIALS.c.state, *map(sa.literal_column, columns))
    )
    counts: dict[str, int] = {}
    with storage.reading() as connection:
        for state, failed_by, is_paused, is_infinite, count in connection.execute(query):
            name = {TrialState.FAIL: "failed"}.get(state, state.name.lower())
            failure_name = parse_trial_attribute(FAILURE, failed_by) if failed_by else None
            is_complete = state is TrialState.COMPLETE
            if failure_name is Failure.DIVERGED or (is_complete and is_infinite):
                name = "diverged"
            counts[name] = counts.get(name, 0) + count
            if is_paused and state is TrialState.WAITING:
                counts["paused"] = counts.get("paused", 0) + count
    return TrialCounts(**counts)


@reports_damage
def count_started(storage: LeasedRDBStorage, study_id: int) -> int:
    """Count the grid trials that have been started, those that were requeued since included."""
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
    with storage.reading() as connection:
        for number, stored in connection.execute(query):
            with reading(f"trial {number}"):
                counts.update(parse_trial_attribute(RETRY_COUNTS, stored))
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
            recorded = parse_trial_attribute(key, stored) or []
            versions[names[key]].update([recorded] if isinstance(recorded, str) else recorded)
    return versions


@reports_damage
def best_trial_id(storage: LeasedRDBStorage, study_id: int) -> int | None:
    """Return the id of a study's best trial, the first of equals; None if none is complete."""
    with storage.reading() as connection:
        best: int | None = connection.scalar(_ranked(study_id, TRIALS.c.trial_id).limit(1))
    return best


@reports_damage
def top_trials(storage: LeasedRDBStorage, study_id: int, limit: int) -> list[tuple[int, float]]:
    """Return the numbers and values of at most ``limit`` best trials, best first."""
    query = _ranked(study_id, TRIALS.c.number, TRIAL_VALUES.c.value).limit(limit)
    with storage.reading() as connection:
        return [(number, value) for number, value in connection.execute(query)]


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
    query = (
        sa.select(
            *values,
            TRIALS.c.state,
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
            if state is TrialState.COMPLETE:
                durations |= {"complete": count, "seconds": seconds or 0.0}
            elif not state.is_finished():
                durations[state.name.lower()] = count
    return [TimingStats(**durations) for durations in by_shape.values()]  # type: ignore[arg-type]


def _ranked(study_id: int, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return the query for columns of the complete trials of finite value, by value and number."""
    return (
        sa.select(*columns)
        .join_from(TRIALS, TRIAL_VALUES, TRIAL_VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.COMPLETE,
            TRIAL_VALUES.c.value_type == _FINITE,
            is_grid_trial(),
        )
        .order_by(TRIAL_VALUES.c.value, TRIALS.c.number)
    )


def count_audited(storage: LeasedRDBStorage, study_id: int) -> int:
    """Count the grid trials of a study that are trained to the end whatever the pruner decides."""
    query = sa.select(sa.func.count()).select_from(TRIALS)
    query = query.where(TRIALS.c.study_id == study_id, is_grid_trial(), has_system_attr(AUDIT))
    with storage.reading() as connection:
        return connection.scalar(query) or 0
