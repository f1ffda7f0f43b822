"""Optuna's tables, and reads and writes of trials within a transaction.

The number of statements does not depend on the number of trials: many rows are written by one
``executemany``, which needs one round trip to a server.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import (
    AUDIT,
    ERROR,
    EVAL_WINDOWS,
    IMPORTED,
    IS_GRID_TRIAL,
    PAUSED,
    RETRY_COUNTS,
    AuditState,
    Failure,
    parse_trial_attribute,
)
from studies.storage.leases import LEASE, Lease

_BATCH = 1000
"""Maximum number of trial ids in one statement; databases limit the number of parameters."""


def lock_trials(
    connection: Connection, trial_ids: Collection[int]
) -> dict[int, tuple[TrialState, Lease | None]]:
    """Read trials' states and leases; lock the trials until the transaction ends."""
    # All writers lock trials in the order of their ids, to avoid deadlocks.
    query = sa.select(TRIALS.c.trial_id, TRIALS.c.state).order_by(TRIALS.c.trial_id)
    states = dict(_select(connection, query.with_for_update(), TRIALS, trial_ids))
    # Only now: a joined lease would be that of before the wait for the lock.
    leases = _read_attribute(connection, TRIAL_SYSTEM_ATTRS, LEASE, states)
    return {
        trial_id: (state, Lease.parse(leases[trial_id]) if trial_id in leases else None)
        for trial_id, state in states.items()
    }


def write_attributes(connection: Connection, attributes: Mapping[int, Mapping[str, Any]]) -> None:
    """Write user attributes by trial id; losses of evaluation windows become system attributes."""
    windows = set(EVAL_WINDOWS.values())
    for table in (TRIAL_USER_ATTRS, TRIAL_SYSTEM_ATTRS):
        rows = [
            attr_row("trial_id", trial_id, key, value)
            for trial_id, values in attributes.items()
            for key, value in sorted(values.items())
            if (key in windows) == (table is TRIAL_SYSTEM_ATTRS)
        ]
        replace_attrs(connection, table, rows)


def write_curves(
    connection: Connection,
    curves: Mapping[int, Mapping[int, float]],
    replaced: Collection[int] = (),
) -> None:
    """Write intermediate values.

    Args:
        connection: connection in a transaction.
        curves: values by trial id and step; they replace stored values of the same steps.
        replaced: ids of trials of which they replace all stored values.
    """
    to_stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    rows = []
    for trial_id, curve in curves.items():
        for step, value in curve.items():
            stored, value_type = to_stored(value)
            rows.append(
                {
                    "trial_id": trial_id,
                    "step": step,
                    "intermediate_value": stored,
                    "intermediate_value_type": value_type,
                }
            )
    of_trial = INTERMEDIATE_VALUES.c.trial_id == sa.bindparam("old_trial_id")
    of_step = INTERMEDIATE_VALUES.c.step == sa.bindparam("old_step")
    _execute_many(
        connection,
        sa.delete(INTERMEDIATE_VALUES).where(of_trial),
        [{"old_trial_id": trial_id} for trial_id in replaced],
    )
    _execute_many(
        connection,
        sa.delete(INTERMEDIATE_VALUES).where(of_trial, of_step),
        [
            {"old_trial_id": row["trial_id"], "old_step": row["step"]}
            for row in rows
            if row["trial_id"] not in replaced
        ],
    )
    insert(connection, INTERMEDIATE_VALUES, rows)


def requeue(
    connection: Connection, trial_ids: Collection[int], cause: Failure, error: str | None = None
) -> None:
    """Set locked trials waiting again, and count the cause among their retries."""
    stored = _read_attribute(connection, TRIAL_USER_ATTRS, RETRY_COUNTS, trial_ids)
    attributes: dict[int, dict[str, Any]] = {}
    for trial_id in trial_ids:
        retries: Counter[str] = Counter()
        with contextlib.suppress(LookupError, ValueError):  # none yet, or they are damaged
            retries.update(parse_trial_attribute(RETRY_COUNTS, stored[trial_id]))
        retries[cause] += 1
        attributes[trial_id] = {RETRY_COUNTS: retries}
        if error is not None:
            attributes[trial_id][ERROR] = error
    write_attributes(connection, attributes)
    _clear_claims(
        connection,
        {trial_id: {"state": TrialState.WAITING, "datetime_start": None} for trial_id in trial_ids},
    )


def pause(connection: Connection, trial_id: int) -> None:
    """Set a locked trial waiting until the pruner resumes it."""
    since = utcnow().isoformat()
    insert(connection, TRIAL_SYSTEM_ATTRS, [attr_row("trial_id", trial_id, PAUSED, since)])
    # The start time stays: a trial that is pruned later ran from then until now.
    _clear_claims(connection, {trial_id: {"state": TrialState.WAITING}})


def prune_paused(connection: Connection, attributes: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """Prune those of these trials that are paused, as of the times of their pauses.

    Args:
        connection: connection in a transaction.
        attributes: user attributes to write, by trial id.

    Returns:
        Ids of the pruned trials, in ascending order.
    """
    states = lock_trials(connection, attributes)
    since = _read_attribute(connection, TRIAL_SYSTEM_ATTRS, PAUSED, states)
    paused = [
        trial_id
        for trial_id, (state, _) in states.items()
        if state is TrialState.WAITING and trial_id in since
    ]
    write_attributes(connection, {trial_id: attributes[trial_id] for trial_id in paused})
    delete_attrs(connection, TRIAL_SYSTEM_ATTRS, [(trial_id, PAUSED) for trial_id in paused])
    _clear_claims(
        connection,
        {
            trial_id: {
                "state": TrialState.PRUNED,
                "datetime_complete": _parse_pause(since[trial_id]),
            }
            for trial_id in paused
        },
    )
    return paused


def _parse_pause(stored: str) -> datetime:
    """Return the time of a pause; now if it is damaged, which must not keep other trials paused."""
    try:
        return datetime.fromisoformat(json.loads(stored))
    except (RecursionError, TypeError, ValueError):
        return utcnow()


class AuditDecision(NamedTuple):
    """What the pruner decides about an audited trial, which trains on regardless.

    Attributes:
        before: earlier decision, which must not have changed.
        after: decision to store.
        attributes: user attributes to write.
    """

    before: AuditState
    after: AuditState
    attributes: Mapping[str, Any] = {}


def write_audit(
    connection: Connection, decisions: Mapping[int, AuditDecision], require_all: bool = False
) -> list[int]:
    """Store decisions about audited trials, by trial id, unless others were stored before.

    Args:
        connection: connection in a transaction.
        decisions: the decisions.
        require_all: whether to store none of them if one cannot be stored.

    Returns:
        Ids of the trials whose decision is stored.
    """
    lock_trials(connection, decisions)
    stored = _read_attribute(connection, TRIAL_SYSTEM_ATTRS, AUDIT, decisions)
    valid = [
        trial_id
        for trial_id, decision in decisions.items()
        if trial_id in stored
        and AuditState.model_validate_json(stored[trial_id]) == decision.before
    ]
    if require_all and len(valid) < len(decisions):
        return []
    rows = [
        attr_row("trial_id", trial_id, AUDIT, decisions[trial_id].after.model_dump())
        for trial_id in valid
    ]
    replace_attrs(connection, TRIAL_SYSTEM_ATTRS, rows)
    write_attributes(connection, {trial_id: decisions[trial_id].attributes for trial_id in valid})
    return valid


def _clear_claims(connection: Connection, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Delete the leases of trials, and set values of their rows, the same columns for each."""
    delete_attrs(connection, TRIAL_SYSTEM_ATTRS, [(trial_id, LEASE) for trial_id in values])
    _execute_many(
        connection,
        sa.update(TRIALS).where(TRIALS.c.trial_id == sa.bindparam("old_trial_id")),
        [{"old_trial_id": trial_id, **row} for trial_id, row in values.items()],
    )


def _select(
    connection: Connection, query: sa.Select[Any], table: sa.Table, trial_ids: Collection[int]
) -> Iterator[Any]:
    """Yield the rows of these trials, in batches of ascending ids."""
    ids = sorted(trial_ids)
    for first in range(0, len(ids), _BATCH):
        batch = ids[first : first + _BATCH]
        yield from connection.execute(query.where(table.c.trial_id.in_(batch)))


def _read_attribute(
    connection: Connection, table: sa.Table, key: str, trial_ids: Collection[int]
) -> dict[int, str]:
    """Read an attribute of trials as it is stored, by trial id; those that lack it are absent."""
    query = sa.select(table.c.trial_id, table.c.value_json).where(table.c.key == key)
    return dict(_select(connection, query, table, trial_ids))


def _execute_many(
    connection: Connection,
    statement: sa.Delete | sa.Update | sa.Insert,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Execute a statement once for each row of parameters, possibly for none."""
    if rows:
        connection.execute(statement, rows)


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
    _execute_many(connection, sa.insert(table), rows)


def attr_row(column: str, row_id: int, key: str, value: Any) -> dict[str, Any]:
    """Return the row of an attribute.

    Args:
        column: ``study_id`` or ``trial_id``.
        row_id: id of the study or trial.
        key: name of the attribute.
        value: any value that JSON represents.
    """
    return {column: row_id, "key": key, "value_json": json.dumps(value)}


def has_system_attr(key: str, value: str | None = None) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has a system attribute, of this text if one is given."""
    rows = sa.select(TRIAL_SYSTEM_ATTRS.c.trial_id).where(TRIAL_SYSTEM_ATTRS.c.key == key)
    if value is not None:
        rows = rows.where(TRIAL_SYSTEM_ATTRS.c.value_json == json.dumps(value))
    return sa.exists(
        rows.where(TRIAL_SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id).correlate(TRIALS)
    )


def is_grid_trial() -> sa.ColumnElement[bool]:
    """Return the condition that a trial belongs to the grid."""
    return has_system_attr(IS_GRID_TRIAL)


def is_imported() -> sa.ColumnElement[bool]:
    """Return the condition that a trial was imported."""
    return has_system_attr(IS_GRID_TRIAL, IMPORTED)


def delete_attrs(
    connection: Connection, table: sa.Table, trial_keys: Sequence[tuple[int, str]]
) -> None:
    """Delete attributes of trials, given as pairs of trial id and key."""
    _execute_many(
        connection,
        sa.delete(table).where(
            table.c.trial_id == sa.bindparam("old_trial_id"), table.c.key == sa.bindparam("old_key")
        ),
        [{"old_trial_id": trial_id, "old_key": key} for trial_id, key in trial_keys],
    )


def replace_attrs(
    connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write attributes of trials in place of those of the same keys."""
    delete_attrs(connection, table, [(row["trial_id"], row["key"]) for row in rows])
    insert(connection, table, rows)


def utcnow() -> datetime:
    """Return the time as Optuna stores it: UTC, naive."""
    return datetime.now(UTC).replace(tzinfo=None)
