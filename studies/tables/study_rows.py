"""Rows of a study that is read from a table, written within a transaction."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import IS_GRID_TRIAL
from studies.space import distributions
from studies.storage.bulk_insert import insert_rows
from studies.storage.copy_study import lock_copies, require_free_name
from studies.storage.create_study import insert_study
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    insert,
)
from studies.tables.study_table import StudyTable, TableTrial


def insert_table(connection: Connection, table: StudyTable) -> dict[str, int]:
    """Store a study with its trials.

    A number that no trial of the table has becomes a failed trial that is not of the grid, as the
    study had one: Optuna numbers the trials of a study without gaps.

    Args:
        connection: connection in a writing transaction.
        table: the study; its record has the artifact folder.

    Returns:
        The number of rows by table of the database, of those that hold trials.

    Raises:
        StudyExistsError: if the name is taken.
    """
    lock_copies(connection)
    require_free_name(connection, table.name, "--name")
    study_id = insert_study(
        connection,
        table.name,
        table.metric,
        StudyDirection.MINIMIZE,
        table.record.attributes(),
        table.system_attributes,
    )
    trials = list(table.trials)
    ids = _insert_trials(connection, study_id, trials)
    return {TRIALS.name: len(trials)} | {
        target.name: insert_rows(connection, target, rows)
        for target, rows in (
            (TRIAL_VALUES, _list_values(trials, ids)),
            (TRIAL_PARAMS, _list_params(table, trials, ids)),
            (TRIAL_USER_ATTRS, _list_attributes(trials, ids, is_system=False)),
            (TRIAL_SYSTEM_ATTRS, _list_attributes(trials, ids, is_system=True)),
            (INTERMEDIATE_VALUES, _list_points(table, trials, ids)),
        )
    }


def _insert_trials(
    connection: Connection, study_id: int, trials: list[TableTrial]
) -> dict[int, int]:
    """Insert the rows of trials; return their ids by their numbers."""
    by_number = {trial.number: trial for trial in trials}
    rows = []
    for number in range(max(by_number) + 1):
        trial = by_number.get(number, TableTrial(number, TrialState.FAIL))
        rows.append(
            {
                "study_id": study_id,
                "number": number,
                "state": trial.state,
                "datetime_start": trial.started,
                "datetime_complete": trial.completed,
            }
        )
    insert(connection, TRIALS, rows)
    query = sa.select(TRIALS.c.number, TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    return {row.number: row.trial_id for row in connection.execute(query)}


_Rows = Iterator[tuple[Any, ...]]


def _list_values(trials: list[TableTrial], ids: Mapping[int, int]) -> _Rows:
    to_stored = models.TrialValueModel.value_to_stored_repr
    for trial in trials:
        if trial.value is not None:
            value, kind = to_stored(trial.value)
            yield ids[trial.number], 0, value, kind.name


def _list_params(table: StudyTable, trials: list[TableTrial], ids: Mapping[int, int]) -> _Rows:
    choices = distributions(table.choices)
    stored = {name: distribution_to_json(each) for name, each in choices.items()}
    for trial in trials:
        for name, value in trial.params.items():
            index = float(choices[name].to_internal_repr(value))
            yield ids[trial.number], name, index, stored[name]


def _list_attributes(trials: list[TableTrial], ids: Mapping[int, int], is_system: bool) -> _Rows:
    for trial in trials:
        attributes = trial.attributes
        if is_system:
            attributes = {IS_GRID_TRIAL: True, **trial.system_attributes}
        for key, value in attributes.items():
            yield ids[trial.number], key, json.dumps(value)


def _list_points(table: StudyTable, trials: list[TableTrial], ids: Mapping[int, int]) -> _Rows:
    to_stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    for trial in trials:
        for step, loss in zip(table.steps, trial.losses, strict=True):
            if loss is not None:
                value, kind = to_stored(loss)
                yield ids[trial.number], step, value, kind.name
