"""Optuna's tables, and reads and writes of single trials within a transaction."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import ERROR, EVAL_WINDOWS, IS_GRID_TRIAL, PAUSED, RETRY_COUNTS, Failure
from studies.storage.leases import LEASE, Lease

_STEPS = 1000
"""Maximum number of steps in one statement; databases limit the number of parameters."""


def read_state_and_lease(
    connection: Connection, trial_id: int
) -> tuple[TrialState | None, Lease | None]:
    """Read a trial's state and lease; lock the trial until the transaction ends."""
    state = connection.scalar(
        sa.select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id).with_for_update()
    )
    stored = connection.scalar(
        sa.select(TRIAL_SYSTEM_ATTRS.c.value_json).where(
            TRIAL_SYSTEM_ATTRS.c.trial_id == trial_id, TRIAL_SYSTEM_ATTRS.c.key == LEASE
        )
    )
    return state, None if stored is None else Lease.parse(stored)


def running_leases(connection: Connection, study_id: int) -> dict[int, Lease]:
    """Read the leases of a study's running trials, by trial id."""
    query = (
        sa.select(TRIALS.c.trial_id, TRIAL_SYSTEM_ATTRS.c.value_json)
        .join(TRIAL_SYSTEM_ATTRS, TRIAL_SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.RUNNING,
            TRIAL_SYSTEM_ATTRS.c.key == LEASE,
        )
        .order_by(TRIALS.c.trial_id)  # the order in which all writers lock trials
    )
    return {trial_id: Lease.parse(stored) for trial_id, stored in connection.execute(query)}


def write_lease(connection: Connection, trial_id: int, lease: Lease) -> None:
    """Write a trial's lease."""
    connection.execute(delete_attrs(trial_id, TRIAL_SYSTEM_ATTRS, LEASE))
    row = {"trial_id": trial_id, "key": LEASE, "value_json": lease.stored}
    connection.execute(sa.insert(TRIAL_SYSTEM_ATTRS), row)


def write_attributes(connection: Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Write user attributes; losses of evaluation windows become system attributes."""
    windows = set(EVAL_WINDOWS.values())
    user, system = attributes.keys() - windows, attributes.keys() & windows
    for table, keys in ((TRIAL_USER_ATTRS, user), (TRIAL_SYSTEM_ATTRS, system)):
        if keys:
            connection.execute(delete_attrs(trial_id, table, *keys))
            rows = [attr_row("trial_id", trial_id, key, attributes[key]) for key in sorted(keys)]
            insert(connection, table, rows)


def write_intermediate_values(
    connection: Connection, trial_id: int, curve: Mapping[int, float], replace_all: bool = False
) -> None:
    """Write intermediate values; they replace the values at the same steps, or all."""
    of_trial = INTERMEDIATE_VALUES.c.trial_id == trial_id
    if replace_all:
        connection.execute(sa.delete(INTERMEDIATE_VALUES).where(of_trial))
    steps = list(curve)
    for first in range(0, len(steps), _STEPS):
        batch = steps[first : first + _STEPS]
        connection.execute(
            sa.delete(INTERMEDIATE_VALUES).where(of_trial & INTERMEDIATE_VALUES.c.step.in_(batch))
        )
    rows = []
    for step, value in curve.items():
        stored, value_type = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(
            value
        )
        rows.append(
            {
                "trial_id": trial_id,
                "step": step,
                "intermediate_value": stored,
                "intermediate_value_type": value_type,
            }
        )
    insert(connection, INTERMEDIATE_VALUES, rows)


def requeue(
    connection: Connection, trial_id: int, cause: Failure, error: str | None = None
) -> None:
    """Set a trial waiting again, and count the cause among its retries."""
    stored = connection.scalar(
        sa.select(TRIAL_USER_ATTRS.c.value_json).where(
            TRIAL_USER_ATTRS.c.trial_id == trial_id, TRIAL_USER_ATTRS.c.key == RETRY_COUNTS
        )
    )
    retries = Counter(json.loads(stored) if stored else {})
    retries[cause] += 1
    attributes: dict[str, Any] = {RETRY_COUNTS: retries}
    if error is not None:
        attributes[ERROR] = error
    write_attributes(connection, trial_id, attributes)
    _clear_claim(connection, trial_id, state=TrialState.WAITING, datetime_start=None)


def pause(connection: Connection, trial_id: int) -> None:
    """Set a trial waiting until the pruner resumes it."""
    since = utcnow().isoformat()
    insert(connection, TRIAL_SYSTEM_ATTRS, [attr_row("trial_id", trial_id, PAUSED, since)])
    # The start time stays: a trial that is pruned later ran from then until now.
    _clear_claim(connection, trial_id, state=TrialState.WAITING)


def prune_paused(connection: Connection, trial_id: int, attributes: Mapping[str, Any]) -> bool:
    """Prune a trial if it is paused, as of the time of its pause; return whether it was."""
    state, _ = read_state_and_lease(connection, trial_id)
    since = connection.scalar(
        sa.select(TRIAL_SYSTEM_ATTRS.c.value_json).where(
            TRIAL_SYSTEM_ATTRS.c.trial_id == trial_id, TRIAL_SYSTEM_ATTRS.c.key == PAUSED
        )
    )
    if state is not TrialState.WAITING or since is None:
        return False
    write_attributes(connection, trial_id, attributes)
    connection.execute(delete_attrs(trial_id, TRIAL_SYSTEM_ATTRS, PAUSED))
    ended = datetime.fromisoformat(json.loads(since))
    _clear_claim(connection, trial_id, state=TrialState.PRUNED, datetime_complete=ended)
    return True


def _clear_claim(connection: Connection, trial_id: int, **values: Any) -> None:
    connection.execute(delete_attrs(trial_id, TRIAL_SYSTEM_ATTRS, LEASE))
    connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(**values))


def _table(model: type[models.BaseModel]) -> sa.Table:
    table = model.__table__
    assert isinstance(table, sa.Table)
    return table


TRIALS = _table(models.TrialModel)
STUDIES = _table(models.StudyModel)
STUDY_DIRECTIONS = _table(models.StudyDirectionModel)
STUDY_USER_ATTRS = _table(models.StudyUserAttributeModel)
STUDY_SYSTEM_ATTRS = _table(models.StudySystemAttributeModel)
TRIAL_PARAMS = _table(models.TrialParamModel)
TRIAL_USER_ATTRS = _table(models.TrialUserAttributeModel)
TRIAL_SYSTEM_ATTRS = _table(models.TrialSystemAttributeModel)
TRIAL_VALUES = _table(models.TrialValueModel)
INTERMEDIATE_VALUES = _table(models.TrialIntermediateValueModel)


def insert(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, possibly none."""
    if rows:
        connection.execute(sa.insert(table), rows)


def attr_row(column: str, row_id: int, key: str, value: Any) -> dict[str, Any]:
    """Return the row of an attribute.

    Args:
        column: ``study_id`` or ``trial_id``.
        row_id: id of the study or trial.
        key: name of the attribute.
        value: any value that JSON represents.
    """
    return {column: row_id, "key": key, "value_json": json.dumps(value)}


def has_system_attr(key: str) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has a system attribute."""
    rows = sa.select(TRIAL_SYSTEM_ATTRS.c.trial_id).where(TRIAL_SYSTEM_ATTRS.c.key == key)
    return sa.exists(
        rows.where(TRIAL_SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id).correlate(TRIALS)
    )


def is_grid_trial() -> sa.ColumnElement[bool]:
    """Return the condition that a trial belongs to the grid."""
    return has_system_attr(IS_GRID_TRIAL)


def delete_attrs(trial_id: int, table: sa.Table, *keys: str) -> sa.Delete:
    """Return the statement that deletes a trial's attributes of these keys."""
    return sa.delete(table).where(table.c.trial_id == trial_id, table.c.key.in_(keys))


def utcnow() -> datetime:
    """Return the time as Optuna stores it: UTC, naive."""
    return datetime.now(UTC).replace(tzinfo=None)
