"""The end of a study's training moved to more steps: its complete trials wait again."""

import json
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import (
    AUDIT,
    AUDIT_LOOKS,
    CHECKPOINTED,
    END,
    EVAL_WINDOWS,
    REPORT_CLAIM,
    AuditState,
    EarlierEnd,
    TrialRecord,
    earlier_end_key,
)
from studies.errors import StudiesError
from studies.storage.leases import LEASE
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    STUDY_SYSTEM_ATTRS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    attr_row,
    delete_attrs,
    has_system_attr,
    insert,
    is_grid_trial,
    replace_attrs,
)

_Results = dict[int, dict[str, Any]]
"""What trials were, by trial id."""


@dataclass(frozen=True)
class NewEnd:
    """An extension of a study's training to more steps.

    Attributes:
        steps: new number of steps of each trial.
        old_steps: number of steps before.
        command: command that extends the study.
        checkpointed: numbers of the trials that have a checkpoint of the old end.
    """

    steps: int
    old_steps: int
    command: str
    checkpointed: Set[int]


def reopen_trials(connection: Connection, study_id: int, new_end: NewEnd) -> EarlierEnd:
    """Set the complete grid trials of a locked study waiting again.

    Each keeps what it was in a system attribute. Those with a checkpoint keep their curves, which
    the training continues; the others are as if they had never been trained.

    Args:
        connection: connection in a transaction.
        study_id: id of the study.
        new_end: the extension.

    Returns:
        What the study was.

    Raises:
        StudiesError: if trials are complete and none of them has a checkpoint.
    """
    numbers, results = _read_results(connection, study_id)
    restarted = {key for key, number in numbers.items() if number not in new_end.checkpointed}
    if restarted and len(restarted) == len(numbers):
        raise StudiesError(
            f"no complete trial has a checkpoint of its end at step {new_end.old_steps:,}, from "
            "which alone its training continues exactly: keep checkpoints with keep_checkpoints = "
            '"all" or a number before a study is finished; train from the start under another '
            "--name"
        )
    _read_curves(connection, study_id, restarted, results)
    of_complete: sa.BindParameter[int] = sa.bindparam("old_trial_id")
    ids = [{"old_trial_id": trial_id} for trial_id in numbers]
    connection.execute(
        sa.delete(TRIAL_USER_ATTRS).where(
            TRIAL_USER_ATTRS.c.trial_id.in_(_complete_trials(study_id)),
            TRIAL_USER_ATTRS.c.key.in_(TrialRecord.model_fields),
        )
    )
    if ids:
        connection.execute(
            sa.delete(TRIAL_VALUES).where(TRIAL_VALUES.c.trial_id == of_complete), ids
        )
        connection.execute(
            sa.update(TRIALS)
            .where(TRIALS.c.trial_id == of_complete)
            .values(state=TrialState.WAITING, datetime_start=None, datetime_complete=None),
            ids,
        )
    if restarted:
        connection.execute(
            sa.delete(INTERMEDIATE_VALUES).where(INTERMEDIATE_VALUES.c.trial_id == of_complete),
            [{"old_trial_id": trial_id} for trial_id in restarted],
        )
    removed = (LEASE, CHECKPOINTED, *EVAL_WINDOWS.values())
    delete_attrs(
        connection, TRIAL_SYSTEM_ATTRS, [(key, name) for key in numbers for name in removed]
    )
    rows = [
        attr_row("trial_id", trial_id, earlier_end_key(new_end.old_steps), result)
        for trial_id, result in results.items()
    ]
    rows += [
        attr_row("trial_id", trial_id, CHECKPOINTED, True)
        for trial_id in numbers.keys() - restarted
    ]
    audited = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    rows += [  # the rungs move, so the pruner decides again
        attr_row("trial_id", trial_id, AUDIT, AuditState().model_dump())
        for trial_id in connection.scalars(audited.where(has_system_attr(AUDIT)))
    ]
    replace_attrs(connection, TRIAL_SYSTEM_ATTRS, rows)
    _move_end(connection, study_id, new_end.steps)
    values = {number: results[trial_id]["value"] for trial_id, number in numbers.items()}
    return EarlierEnd(steps=new_end.old_steps, command=new_end.command, values=values)


def _complete_trials(study_id: int, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return the query for columns of the complete grid trials of finite value, by trial id."""
    is_finite = TRIAL_VALUES.c.value_type == models.TrialValueModel.TrialValueType.FINITE
    return (
        sa.select(TRIALS.c.trial_id, *columns)
        .join_from(TRIALS, TRIAL_VALUES, TRIAL_VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.COMPLETE,
            is_grid_trial(),
            is_finite,
        )
        .order_by(TRIALS.c.trial_id)
    )


def _read_results(connection: Connection, study_id: int) -> tuple[dict[int, int], _Results]:
    """Read the numbers, and the results, of the complete grid trials by trial id."""
    columns = TRIALS.c.number, TRIAL_VALUES.c.value
    times = TRIALS.c.datetime_start, TRIALS.c.datetime_complete
    numbers: dict[int, int] = {}
    results: _Results = {}
    query = _complete_trials(study_id, *columns, *times)
    for trial_id, number, value, started, completed in connection.execute(query):
        numbers[trial_id] = number
        results[trial_id] = {
            "value": value,
            "started": started and started.isoformat(),
            "completed": completed and completed.isoformat(),
            "attributes": {},
        }
    for table in (TRIAL_USER_ATTRS, TRIAL_SYSTEM_ATTRS):
        names = TrialRecord.model_fields if table is TRIAL_USER_ATTRS else EVAL_WINDOWS.values()
        query = _complete_trials(study_id, table.c.key, table.c.value_json)
        query = query.join(table, table.c.trial_id == TRIALS.c.trial_id)
        for trial_id, key, stored in connection.execute(query.where(table.c.key.in_(names))):
            results[trial_id]["attributes"][key] = json.loads(stored)
    return numbers, results


def _read_curves(
    connection: Connection, study_id: int, trial_ids: Set[int], results: _Results
) -> None:
    """Add their curves to the results of some trials."""
    if not trial_ids:
        return
    columns = INTERMEDIATE_VALUES.c.step, INTERMEDIATE_VALUES.c.intermediate_value
    query = _complete_trials(study_id, *columns).join(
        INTERMEDIATE_VALUES, INTERMEDIATE_VALUES.c.trial_id == TRIALS.c.trial_id
    )
    for trial_id, step, value in connection.execute(query.order_by(INTERMEDIATE_VALUES.c.step)):
        if trial_id in trial_ids:
            results[trial_id].setdefault("curve", []).append([step, value])


def _move_end(connection: Connection, study_id: int, steps: int) -> None:
    """Store the new end, and have audited trials looked at and the report written again."""
    connection.execute(
        sa.delete(STUDY_SYSTEM_ATTRS).where(
            STUDY_SYSTEM_ATTRS.c.study_id == study_id,
            STUDY_SYSTEM_ATTRS.c.key.in_([AUDIT_LOOKS, END, REPORT_CLAIM]),
        )
    )
    insert(connection, STUDY_SYSTEM_ATTRS, [attr_row("study_id", study_id, END, steps)])
