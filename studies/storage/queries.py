"""Queries for trials and curves, ten times as fast as Optuna's objects."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
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
from studies.space import complete_params
from studies.storage.counts import best_trial_ids, top_trials
from studies.storage.damage import (
    READ_ERRORS,
    DamagedTrials,
    check_params,
    name_trial,
    parse_choice,
    parse_imported,
    parse_integer,
    parse_state,
    parse_time,
    parse_value,
    raw,
    reading,
    reports_damage,
)
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import (
    STUDY_SYSTEM_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    has_system_attr,
    is_grid_trial,
    is_imported,
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
        is_imported: whether another program has recorded it.
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
    is_imported: bool = False


@reports_damage
def read_trials(
    storage: LeasedRDBStorage,
    study_id: int,
    trial_ids: Collection[int] | None = None,
    is_strict: bool = False,
) -> list[TrialRow]:
    """Read grid trials of a study, by number, without their curves.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        trial_ids: ids of the trials; None for all.
        is_strict: whether to refuse damaged trials; otherwise they are left out with a warning.
    """
    damaged = DamagedTrials()
    selected = _trial_ids(study_id)
    if trial_ids is not None:
        selected = selected.where(TRIALS.c.trial_id.in_(trial_ids))
    trials: dict[int, TrialRow] = {}
    with storage.reading() as connection:
        query = sa.select(
            TRIALS.c.trial_id,
            *map(raw, (TRIALS.c.number, TRIALS.c.state)),
            *map(raw, (TRIALS.c.datetime_start, TRIALS.c.datetime_complete)),
            has_system_attr(PAUSED),
            has_system_attr(AUDIT),
            is_imported(),
        ).where(TRIALS.c.trial_id.in_(selected), is_grid_trial())
        for trial_id, number, *row in connection.execute(query.order_by(TRIALS.c.number)):
            try:
                trials[trial_id] = _parse_trial(number, *row)
            except READ_ERRORS as error:
                damaged.add(name_trial(trial_id, number), error)
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
            values_query = sa.select(table.c.trial_id, *map(raw, columns))
            values_query = values_query.where(table.c.trial_id.in_(selected))
            for trial_id, *values in connection.execute(values_query):
                trial = trials.get(trial_id)
                if trial is None:  # damaged, or created between two of these queries
                    continue
                try:
                    _set_value(trial, table, values)
                except READ_ERRORS as error:
                    damaged.add(trial.number, error)
        total = connection.scalar(
            sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
        )
    assert total is not None
    rows: dict[int, TrialRow] = {}
    for trial_id, trial in trials.items():
        try:
            _check_trial(trial, total)
            if trial.number in rows:
                raise ValueError("its number is that of another trial")
        except READ_ERRORS as error:
            damaged.add(name_trial(trial_id, trial.number), error)
            continue
        rows[trial.number] = trial
    damaged.report(storage, study_id, is_strict)
    return [trial for number, trial in rows.items() if number not in damaged.reasons]


def read_best_trial(storage: LeasedRDBStorage, study_id: int) -> TrialRow | None:
    """Read a study's best trial that is not damaged, the first of equals; None without any."""
    limit = 1
    while ids := best_trial_ids(storage, study_id, limit):
        if trials := read_trials(storage, study_id, ids):
            by_number = {trial.number: trial for trial in trials}
            for number, _ in top_trials(storage, study_id, limit):
                if number in by_number:
                    return by_number[number]
        if len(ids) < limit:
            break
        limit *= 10  # all of these are damaged
    return None


def _parse_trial(
    number: Any,
    state: Any,
    started: Any,
    completed: Any,
    is_paused: bool,
    is_audited: bool,
    is_imported: bool,
) -> TrialRow:
    """Return a trial as read from its table."""
    parsed = parse_state(state)
    return TrialRow(
        parse_integer(number, "number"),
        parsed,
        {},
        {},
        started=parse_time(started),
        completed=parse_time(completed),
        is_paused=parsed is TrialState.WAITING and bool(is_paused),
        is_audited=bool(is_audited),
        is_imported=bool(is_imported),
    )


def _check_trial(trial: TrialRow, total: int) -> None:
    """Require a number, parameters and a value that a trial of a study may have."""
    if trial.number not in range(total):
        raise ValueError(f"its number is {trial.number}: the study has {total} trials")
    if not trial.is_imported:
        check_params(trial.params)
        trial.params = complete_params(trial.params)
    if trial.state is TrialState.COMPLETE and trial.value is None:
        raise ValueError("it is complete without a value")
    if trial.value is not None and not math.isfinite(trial.value):
        trial.value = None


@reports_damage
def read_params(
    storage: LeasedRDBStorage, study_id: int, trial_ids: Collection[int] | None = None
) -> dict[int, dict[str, Any]]:
    """Read the parameters of a study's trials, by trial number; none of those damaged.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        trial_ids: ids of the trials; None for all.
    """
    selected = _trial_ids(study_id)
    if trial_ids is not None:
        selected = selected.where(TRIALS.c.trial_id.in_(trial_ids))
    query = (
        sa.select(
            raw(TRIALS.c.number),
            TRIAL_PARAMS.c.param_name,
            raw(TRIAL_PARAMS.c.param_value),
            raw(TRIAL_PARAMS.c.distribution_json),
        )
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_PARAMS.c.trial_id)
        .where(TRIALS.c.trial_id.in_(selected))
        .order_by(TRIAL_PARAMS.c.param_id)
    )
    params: dict[int, dict[str, Any]] = {}
    choices: dict[tuple[float, str], Any] = {}
    damaged = DamagedTrials()
    with storage.reading() as connection:
        for number, name, *choice in connection.execute(query):
            key = tuple(choice)
            if key not in choices:
                try:
                    choices[key] = parse_choice(*key)
                except READ_ERRORS as error:
                    damaged.add(number, ValueError(f"parameter {name}: {error}"))
                    continue
            params.setdefault(number, {})[name] = choices[key]
    damaged.report(storage, study_id)
    return {number: each for number, each in params.items() if number not in damaged.reasons}


def _set_value(trial: TrialRow, table: sa.Table, values: Sequence[Any]) -> None:
    """Set a parameter, an attribute or the value of a trial, as read from a table."""
    if table is TRIAL_PARAMS:
        name, stored, distribution = values
        with reading(f"parameter {name}"):
            parse = parse_imported if trial.is_imported else parse_choice
            trial.params[name] = parse(stored, distribution)
    elif table is TRIAL_USER_ATTRS:
        key, stored = values
        if (value := parse_trial_attribute(key, stored)) is not None:
            trial.attributes[key] = value
    elif trial.state is TrialState.COMPLETE:
        value, kind = values
        if trial.value is not None:
            raise ValueError("it has several values")
        trial.value = parse_value(value, kind, "value")


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
    damaged = DamagedTrials()
    windows: dict[int, list[float]] = {}
    with storage.reading() as connection:
        for number, stored in connection.execute(query):
            try:
                windows[number] = parse_trial_attribute(EVAL_WINDOWS[split], stored) or []
            except READ_ERRORS as error:
                damaged.add(number, error)
    if lengths := Counter(map(len, windows.values())):
        ((usual, _),) = lengths.most_common(1)
        for number, losses in list(windows.items()):
            if len(losses) != usual:
                found = f"it has {len(losses)} {split} windows, others have {usual}"
                damaged.add(number, ValueError(found))
                del windows[number]
    damaged.report(storage, study_id)
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
