"""The queue of waiting trials: claiming, and batched writes to claimed trials."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import CHECKPOINTED, PAUSED
from studies.storage.lease_rows import running_leases, write_leases
from studies.storage.leases import Lease
from studies.storage.trial_rows import (
    STUDIES,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIALS,
    attr_row,
    has_system_attr,
    is_grid_trial,
    lock_trials,
    replace_attrs,
    utcnow,
    write_curves,
)

TrialQuery = sa.Select[int]
"""Query for trial ids."""


@dataclass(frozen=True)
class PendingWrite:
    """A write to a claimed trial.

    Attributes:
        trial_id: id of the trial.
        claim_token: token of the claim.
        curve: intermediate values by step; they replace stored values of the same steps.
        replace_all: whether they replace all stored values.
        heartbeat: whether to send a heartbeat as well.
        checkpointed: whether to record that a checkpoint was written.
    """

    trial_id: int
    claim_token: str
    curve: Mapping[int, float] = field(default_factory=dict)
    replace_all: bool = False
    heartbeat: bool = False
    checkpointed: bool = False


def waiting_query(
    study_id: int, exclude: Collection[int] = (), paused_ids: Sequence[int] | None = None
) -> TrialQuery:
    """Return the query for a study's waiting grid trials, in the order in which to run them.

    Args:
        study_id: id of the study.
        exclude: ids of trials to leave out.
        paused_ids: ids of paused trials, in the order in which to resume them; None for trials
            that are not paused.
    """
    waiting = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id,
        TRIALS.c.state == TrialState.WAITING,
        TRIALS.c.trial_id.not_in(exclude),
    )
    if paused_ids is None:  # this condition first: it fails for most trials of a pruned study
        waiting = waiting.where(~has_system_attr(PAUSED), is_grid_trial())
        return waiting.order_by(TRIALS.c.number)
    places = {trial_id: place for place, trial_id in enumerate(paused_ids)}
    chosen = waiting.where(
        is_grid_trial(), has_system_attr(PAUSED), TRIALS.c.trial_id.in_(paused_ids)
    )
    return chosen.order_by(sa.case(places, value=TRIALS.c.trial_id)) if places else chosen


def dequeue(connection: Connection, waiting: TrialQuery, lease: Lease, limit: int = 1) -> list[int]:
    """Set the first ``limit`` waiting trials running under a lease; return their ids."""
    first = waiting.limit(limit)
    # Skip rows that another worker is claiming now; on SQLite there is one writer at a time.
    chosen = list(connection.scalars(first.with_for_update(skip_locked=True)))
    if chosen:
        connection.execute(
            sa.update(TRIALS)
            .where(TRIALS.c.trial_id.in_(chosen))
            .values(state=TrialState.RUNNING, datetime_start=utcnow())
        )
        connection.execute(
            sa.delete(TRIAL_SYSTEM_ATTRS).where(
                TRIAL_SYSTEM_ATTRS.c.trial_id.in_(chosen), TRIAL_SYSTEM_ATTRS.c.key == PAUSED
            )
        )
    write_leases(connection, dict.fromkeys(chosen, lease))
    return chosen


def dequeue_matching(
    connection: Connection,
    trial_id: int,
    lease: Lease,
    limit: int,
    parameters: Sequence[str],
    exclude: Collection[int],
    paused_ids: Sequence[int] | None = None,
) -> list[int]:
    """Dequeue trials that match a claimed one; see ``LeasedRDBStorage.claim_matching``."""
    study_id = connection.scalar(sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id))
    assert study_id is not None
    waiting = waiting_query(study_id, exclude, paused_ids)
    for parameter in parameters:
        waiting = waiting.where(_same_value(parameter, trial_id))
    count = connection.scalar(sa.select(sa.func.count()).select_from(waiting.subquery())) or 0
    workers = {other.worker for other in running_leases(connection, study_id).values()}
    share = -(-(count + 1) // len(workers)) - 1  # the claimed trial counts
    return dequeue(
        connection, waiting, Lease(lease.claim_token, lease.seconds), max(0, min(limit, share))
    )


def all_finished_or_paused(connection: Connection, study_id: int, planned: int) -> bool:
    """Return whether a study has ``planned`` grid trials, each finished or paused.

    The study's row stays locked until the transaction ends, so it is not extended meanwhile.
    """
    connection.execute(sa.select(STUDIES).where(STUDIES.c.study_id == study_id).with_for_update())
    grid_trials = sa.and_(TRIALS.c.study_id == study_id, is_grid_trial())
    unfinished = TRIALS.c.state.in_([TrialState.RUNNING, TrialState.WAITING]) & ~(
        (TRIALS.c.state == TrialState.WAITING) & has_system_attr(PAUSED)
    )
    count = sa.select(sa.func.count()).select_from(TRIALS)
    return (
        connection.scalar(count.where(grid_trials)) == planned
        and connection.scalar(count.where(grid_trials, unfinished)) == 0
    )


def lock_held(
    connection: Connection, writes: Sequence[PendingWrite]
) -> tuple[dict[int, Lease], list[int]]:
    """Lock the trials of these writes until the transaction ends.

    Returns:
        The leases of those that run under the claim tokens of the writes, by trial id, and the ids
        of the others, whose lease is lost.
    """
    stored = lock_trials(connection, [write.trial_id for write in writes])
    held, lost = {}, []
    for write in writes:
        state, lease = stored.get(write.trial_id, (None, None))
        if state is TrialState.RUNNING and lease and lease.claim_token == write.claim_token:
            held[write.trial_id] = lease
        else:
            lost.append(write.trial_id)
    return held, lost


def write_pending(
    connection: Connection, writes: Sequence[PendingWrite], is_last: bool = False
) -> tuple[dict[int, Lease], list[int]]:
    """Write to claimed trials in a number of statements that does not depend on their number.

    Args:
        connection: connection in a transaction.
        writes: at most one write for each trial.
        is_last: whether the claims end with this transaction, so that heartbeats are not needed.

    Returns:
        Leases of the trials that are still held, by trial id, and the ids of the others; nothing is
        written to those.
    """
    held, lost = lock_held(connection, writes)
    valid = [write for write in writes if write.trial_id in held]
    if not is_last:
        heartbeats = [write.trial_id for write in valid if write.heartbeat]
        write_leases(connection, {key: held[key].with_heartbeat() for key in heartbeats})
    rows = [
        attr_row("trial_id", write.trial_id, CHECKPOINTED, True)
        for write in valid
        if write.checkpointed
    ]
    replace_attrs(connection, TRIAL_SYSTEM_ATTRS, rows)
    replaced = {write.trial_id for write in valid if write.replace_all}
    write_curves(connection, {write.trial_id: write.curve for write in valid}, replaced)
    return held, lost


def _same_value(parameter: str, trial_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has the same value of a parameter as another, or none."""
    this, other = TRIAL_PARAMS.alias(), TRIAL_PARAMS.alias()
    of_this = (this.c.trial_id == TRIALS.c.trial_id) & (this.c.param_name == parameter)
    of_other = (other.c.trial_id == trial_id) & (other.c.param_name == parameter)
    pairs = sa.select(this.c.trial_id).join(other, this.c.param_value == other.c.param_value)
    is_same = sa.exists(pairs.where(of_this, of_other).correlate(TRIALS))
    is_absent = ~sa.exists(sa.select(this.c.trial_id).where(of_this).correlate(TRIALS))
    return is_same | (is_absent & ~sa.exists(sa.select(other.c.trial_id).where(of_other)))
