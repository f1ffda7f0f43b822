"""Queries for trials and curves, ten times as fast as Optuna's objects."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState

from studies.attributes import (
    AUDIT,
    AUDIT_LOOKS,
    EVAL_WINDOWS,
    PAUSED,
    AuditLook,
    parse_audit,
    parse_trial_attribute,
)
from studies.storage.damage import check_params, parse_choice, reading, reports_damage
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    STUDY_SYSTEM_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    has_system_attr,
    is_grid_trial,
)


@dataclass
class TrialRow:
    """A stored grid trial, without its curve.

    Attributes:
        number: number of the trial.
        state: state of the trial.
        params: parameter values by name.
        attributes: user attributes that this program defines.
        value: value of a complete trial; None if it is not finite, as of plain Optuna.
        started: time of the last claim, UTC.
        completed: time at which it finished, UTC.
        is_paused: whether it waits for the pruner to resume it.
        is_audited: whether it is trained to the end whatever the pruner decides.
    """

    number: int
    state: TrialState
    params: dict[str, Any]
    attributes: dict[str, Any]
    value: float | None = None
    started: datetime | None = None
    completed: datetime | None = None
    is_paused: bool = False
    is_audited: bool = False


@reports_damage
def read_trials(
    storage: LeasedRDBStorage, study_id: int, trial_ids: Collection[int] | None = None
) -> list[TrialRow]:
    """Read grid trials of a study, by number, without their curves.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        trial_ids: ids of the trials; None for all.
    """
    selected = _trial_ids(study_id)
    if trial_ids is not None:
        selected = selected.where(TRIALS.c.trial_id.in_(trial_ids))
    with storage.reading() as connection:
        trials = {
            row.trial_id: TrialRow(
                row.number,
                row.state,
                {},
                {},
                started=row.datetime_start,
                completed=row.datetime_complete,
                is_paused=row.state is TrialState.WAITING and bool(row.is_paused),
                is_audited=bool(row.is_audited),
            )
            for row in connection.execute(
                sa.select(
                    TRIALS,
                    has_system_attr(PAUSED).label("is_paused"),
                    has_system_attr(AUDIT).label("is_audited"),
                )
                .where(TRIALS.c.trial_id.in_(selected), is_grid_trial())
                .order_by(TRIALS.c.number)
            )
        }
        for table, columns in (
            (
                TRIAL_PARAMS,
                (
                    TRIAL_PARAMS.c.param_name,
                    TRIAL_PARAMS.c.param_value,
                    TRIAL_PARAMS.c.distribution_json,
                ),
            ),
            (TRIAL_USER_ATTRS, (TRIAL_USER_ATTRS.c.key, TRIAL_USER_ATTRS.c.value_json)),
            (TRIAL_VALUES, (TRIAL_VALUES.c.value, TRIAL_VALUES.c.value_type)),
        ):
            query = sa.select(table.c.trial_id, *columns).where(table.c.trial_id.in_(selected))
            for trial_id, *values in connection.execute(query):
                trial = trials.get(trial_id)
                if trial is None:  # created between two of these queries
                    continue
                with reading(f"trial {trial.number}"):
                    _set_value(trial, table, values)
        total = connection.scalar(
            sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
        )
    assert total is not None
    rows = list(trials.values())
    for row in rows:
        with reading(f"trial {row.number}"):
            check_params(row.params)
            if row.state is TrialState.COMPLETE and row.value is None:
                raise ValueError("it is complete without a value")
        if row.value is not None and not math.isfinite(row.value):
            row.value = None
    numbers = [row.number for row in rows]
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(total)):
        raise ValueError(f"its trials are not numbered from 0 to {total - 1}")
    return rows


@reports_damage
def read_params(storage: LeasedRDBStorage, study_id: int) -> dict[int, dict[str, Any]]:
    """Read the parameters of a study's trials, by trial number."""
    query = (
        sa.select(
            TRIALS.c.number,
            TRIAL_PARAMS.c.param_name,
            TRIAL_PARAMS.c.param_value,
            TRIAL_PARAMS.c.distribution_json,
        )
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_PARAMS.c.trial_id)
        .where(TRIALS.c.study_id == study_id)
        .order_by(TRIAL_PARAMS.c.param_id)
    )
    params: dict[int, dict[str, Any]] = {}
    choices: dict[tuple[float, str], Any] = {}
    with storage.reading() as connection:
        for number, name, *choice in connection.execute(query):
            key = tuple(choice)
            if key not in choices:
                with reading(f"trial {number}: parameter {name}"):
                    choices[key] = parse_choice(*key)
            params.setdefault(number, {})[name] = choices[key]
    return params


def _set_value(trial: TrialRow, table: sa.Table, values: Sequence[Any]) -> None:
    """Set a parameter, an attribute or the value of a trial, as read from a table."""
    if table is TRIAL_PARAMS:
        name, stored, distribution = values
        with reading(f"parameter {name}"):
            trial.params[name] = parse_choice(stored, distribution)
    elif table is TRIAL_USER_ATTRS:
        key, stored = values
        if (value := parse_trial_attribute(key, stored)) is not None:
            trial.attributes[key] = value
    elif trial.state is TrialState.COMPLETE:
        value, kind = values
        is_finite = kind is models.TrialValueModel.TrialValueType.FINITE
        trial.value = float(value) if is_finite else math.inf
        if is_finite and not math.isfinite(trial.value):
            raise ValueError(f"its value is {value}")


@reports_damage
def read_curves(
    storage: LeasedRDBStorage, study_id: int, numbers: Collection[int] | None = None
) -> list[tuple[int, int, float]]:
    """Read the intermediate values of grid trials.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        numbers: numbers of the trials; None for all.

    Returns:
        Tuples (number, step, value), ordered by number and step; values that are not finite are
        NaN.
    """
    query = (
        sa.select(
            TRIALS.c.number,
            INTERMEDIATE_VALUES.c.step,
            INTERMEDIATE_VALUES.c.intermediate_value,
            INTERMEDIATE_VALUES.c.intermediate_value_type,
        )
        .join(TRIALS, TRIALS.c.trial_id == INTERMEDIATE_VALUES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .order_by(TRIALS.c.number, INTERMEDIATE_VALUES.c.step)
    )
    if numbers is not None:
        query = query.where(TRIALS.c.number.in_(numbers))
    finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    with storage.reading() as connection:
        return [
            (number, step, math.nan if value is None or kind is not finite else float(value))
            for number, step, value, kind in connection.execute(query)
        ]


@reports_damage
def read_eval_windows(
    storage: LeasedRDBStorage, study_id: int, split: str
) -> dict[int, list[float]]:
    """Read the bits per byte of each evaluation window of a held-out split, by trial number.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        split: ``validation`` or ``test``.
    """
    query = (
        sa.select(TRIALS.c.number, TRIAL_SYSTEM_ATTRS.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_SYSTEM_ATTRS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIAL_SYSTEM_ATTRS.c.key == EVAL_WINDOWS[split])
        .order_by(TRIALS.c.number)
    )
    windows: dict[int, list[float]] = {}
    with storage.reading() as connection:
        for number, stored in connection.execute(query):
            with reading(f"trial {number}"):
                windows[number] = parse_trial_attribute(EVAL_WINDOWS[split], stored)
    if len({len(losses) for losses in windows.values()}) > 1:
        raise ValueError(f"its trials have different numbers of {split} windows")
    return windows


def _trial_ids(study_id: int) -> sa.Select[tuple[int]]:
    return sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)


@reports_damage
def read_audit_looks(storage: LeasedRDBStorage, study_id: int) -> dict[str, AuditLook]:
    """Read the planned looks at the audited trials of a study so far, by name."""
    query = sa.select(STUDY_SYSTEM_ATTRS.c.value_json).where(
        STUDY_SYSTEM_ATTRS.c.study_id == study_id, STUDY_SYSTEM_ATTRS.c.key == AUDIT_LOOKS
    )
    with storage.reading() as connection:
        stored = connection.scalar(query)
    return {} if stored is None else parse_audit(dict[str, AuditLook], stored)
