"""What is read and written of one trial, within a transaction of :mod:`studies.storage.storage`."""
# TODO-MERGE Optuna's tables, and the few ways in which this package writes them.

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
"""Of a curve in one statement: databases take so many parameters and no more."""


def state_and_lease(
    connection: Connection, trial_id: int
) -> tuple[TrialState | None, Lease | None]:
    """Read a trial's state and lease, and keep others from changing them in this transaction."""
    state = connection.scalar(
        sa.select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id).with_for_update()
    )
    stored = connection.scalar(
        sa.select(SYSTEM.c.value_json).where(SYSTEM.c.trial_id == trial_id, SYSTEM.c.key == LEASE)
    )
    return state, None if stored is None else Lease.parse(stored)


def running_leases(connection: Connection, study_id: int) -> dict[int, Lease]:
    """Read the leases of a study's running trials, by trial id."""
    query = (
        sa.select(TRIALS.c.trial_id, SYSTEM.c.value_json)
        .join(SYSTEM, SYSTEM.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.RUNNING,
            SYSTEM.c.key == LEASE,
        )
        .order_by(TRIALS.c.trial_id)  # who locks several of them does so in the same order
    )
    return {trial_id: Lease.parse(stored) for trial_id, stored in connection.execute(query)}


def set_lease(connection: Connection, trial_id: int, lease: Lease) -> None:
    """Write a trial's lease."""
    connection.execute(without(trial_id, SYSTEM, LEASE))
    row = {"trial_id": trial_id, "key": LEASE, "value_json": lease.stored}
    connection.execute(sa.insert(SYSTEM), row)


def set_attributes(connection: Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Write attributes, in place of those of the same keys: a user's, but for the lanes."""
    windows = set(EVAL_WINDOWS.values())
    theirs, ours = attributes.keys() - windows, attributes.keys() & windows
    for table, keys in ((ATTRIBUTES, theirs), (SYSTEM, ours)):
        if keys:
            connection.execute(without(trial_id, table, *keys))
            rows = [attribute("trial_id", trial_id, key, attributes[key]) for key in sorted(keys)]
            insert(connection, table, rows)


def write_curve(
    connection: Connection, trial_id: int, curve: Mapping[int, float], replace_all: bool = False
) -> None:
    """Write intermediate values, in place of those of the same steps, or ``replace_all`` of all."""
    of_trial = CURVE.c.trial_id == trial_id
    if replace_all:
        connection.execute(sa.delete(CURVE).where(of_trial))
    steps = list(curve)
    for first in range(0, len(steps), _STEPS):
        some = steps[first : first + _STEPS]
        connection.execute(sa.delete(CURVE).where(of_trial & CURVE.c.step.in_(some)))
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
    insert(connection, CURVE, rows)


def release(
    connection: Connection, trial_id: int, cause: Failure, error: str | None = None
) -> None:
    """Let a trial wait again, with a note of the cause among its setbacks."""
    stored = connection.scalar(
        sa.select(ATTRIBUTES.c.value_json).where(
            ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == RETRY_COUNTS
        )
    )
    retries = Counter(json.loads(stored) if stored else {})
    retries[cause] += 1
    noted: dict[str, Any] = {RETRY_COUNTS: retries}
    if error is not None:
        noted[ERROR] = error
    set_attributes(connection, trial_id, noted)
    _let_go(connection, trial_id, state=TrialState.WAITING, datetime_start=None)


def pause(connection: Connection, trial_id: int) -> None:
    """Let a trial wait until the pruner wants it."""
    since = now().isoformat()
    insert(connection, SYSTEM, [attribute("trial_id", trial_id, PAUSED, since)])
    # When it began is kept: should it be pruned, it was trained from then until now.
    _let_go(connection, trial_id, state=TrialState.WAITING)


def prune_paused(connection: Connection, trial_id: int, attributes: Mapping[str, Any]) -> bool:
    """Prune a trial, if it is paused; it ended when it was paused. Tell whether it was."""
    state, _ = state_and_lease(connection, trial_id)
    since = connection.scalar(
        sa.select(SYSTEM.c.value_json).where(SYSTEM.c.trial_id == trial_id, SYSTEM.c.key == PAUSED)
    )
    if state is not TrialState.WAITING or since is None:
        return False
    set_attributes(connection, trial_id, attributes)
    connection.execute(without(trial_id, SYSTEM, PAUSED))
    ended = datetime.fromisoformat(json.loads(since))
    _let_go(connection, trial_id, state=TrialState.PRUNED, datetime_complete=ended)
    return True


def _let_go(connection: Connection, trial_id: int, **values: Any) -> None:
    connection.execute(without(trial_id, SYSTEM, LEASE))
    connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(**values))


def _table(model: type[models.BaseModel]) -> sa.Table:
    table = model.__table__
    assert isinstance(table, sa.Table)
    return table


TRIALS = _table(models.TrialModel)
STUDIES = _table(models.StudyModel)
DIRECTIONS = _table(models.StudyDirectionModel)
STUDY_ATTRIBUTES = _table(models.StudyUserAttributeModel)
STUDY_SYSTEM = _table(models.StudySystemAttributeModel)
PARAMS = _table(models.TrialParamModel)
ATTRIBUTES = _table(models.TrialUserAttributeModel)
SYSTEM = _table(models.TrialSystemAttributeModel)
VALUES = _table(models.TrialValueModel)
CURVE = _table(models.TrialIntermediateValueModel)


def insert(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, which may be none."""
    if rows:
        connection.execute(sa.insert(table), rows)


def attribute(column: str, row_id: int, key: str, value: Any) -> dict[str, Any]:
    """Return an attribute's row, which belongs to the study or trial that the column names."""
    return {column: row_id, "key": key, "value_json": json.dumps(value)}


def marked(key: str) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has a system attribute."""
    marks = sa.select(SYSTEM.c.trial_id).where(SYSTEM.c.key == key)
    return sa.exists(marks.where(SYSTEM.c.trial_id == TRIALS.c.trial_id).correlate(TRIALS))


def marked_as_point() -> sa.ColumnElement[bool]:
    """Return the condition that a trial is a point of its study."""
    return marked(IS_GRID_TRIAL)


def without(trial_id: int, table: sa.Table, *keys: str) -> sa.Delete:
    """Return the statement that removes a trial's attributes of these keys."""
    return sa.delete(table).where(table.c.trial_id == trial_id, table.c.key.in_(keys))


def now() -> datetime:
    """Return the time as Optuna stores it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)
