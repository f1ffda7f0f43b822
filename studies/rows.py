"""What is read and written of one trial, within a transaction of :mod:`studies.storage`."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.leases import LEASE, Lease
from studies.records import ERROR, LANES, PAUSED, SETBACKS, Failure
from studies.tables import ATTRIBUTES, CURVE, SYSTEM, TRIALS, attribute, insert, now, without

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
    lanes = set(LANES.values())
    theirs, ours = attributes.keys() - lanes, attributes.keys() & lanes
    for table, keys in ((ATTRIBUTES, theirs), (SYSTEM, ours)):
        if keys:
            connection.execute(without(trial_id, table, *keys))
            rows = [attribute("trial_id", trial_id, key, attributes[key]) for key in sorted(keys)]
            insert(connection, table, rows)


def write_curve(
    connection: Connection, trial_id: int, curve: Mapping[int, float], anew: bool = False
) -> None:
    """Write intermediate values, in place of those of the same steps, or ``anew`` of all."""
    of_trial = CURVE.c.trial_id == trial_id
    if anew:
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
            ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == SETBACKS
        )
    )
    setbacks = Counter(json.loads(stored) if stored else {})
    setbacks[cause] += 1
    noted: dict[str, Any] = {SETBACKS: setbacks}
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
