"""The queue of waiting trials: claiming, and batched writes to claimed trials."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import CHECKPOINTED, PAUSED
from studies.storage.leases import Lease
from studies.storage.trial_rows import (
    STUDIES,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIALS,
    attr_row,
    delete_attrs,
    has_system_attr,
    insert,
    is_grid_trial,
    read_state_and_lease,
    running_leases,
    utcnow,
    write_intermediate_values,
    write_lease,
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
        is_grid_trial(),
    )
    if paused_ids is None:
        return waiting.where(~has_system_attr(PAUSED)).order_by(TRIALS.c.number)
    places = {trial_id: place for place, trial_id in enumerate(paused_ids)}
    chosen = waiting.where(has_system_attr(PAUSED), TRIALS.c.trial_id.in_(paused_ids))
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
    for trial_id in chosen:
        write_lease(connection, trial_id, lease)
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


def check_lease(connection: Connection, trial_id: int, claim_token: str) -> Lease | None:
    """Return a trial's lease if the trial runs under this claim token."""
    state, lease = read_state_and_lease(connection, trial_id)
    if state is TrialState.RUNNING and lease is not None and lease.claim_token == claim_token:
        return lease
    return None


def write_pending(connection: Connection, trials: Iterable[PendingWrite]) -> list[int]:
    """Write to claimed trials; return the ids of those whose lease is lost."""
    lost = []
    # All writers lock trials in the order of their ids, to avoid deadlocks.
    for write in sorted(trials, key=lambda write: write.trial_id):
        lease = check_lease(connection, write.trial_id, write.claim_token)
        if lease is None:
            lost.append(write.trial_id)
            continue
        if write.heartbeat:
            write_lease(connection, write.trial_id, lease.with_heartbeat())
        if write.checkpointed:
            connection.execute(delete_attrs(write.trial_id, TRIAL_SYSTEM_ATTRS, CHECKPOINTED))
            row = attr_row("trial_id", write.trial_id, CHECKPOINTED, True)
            insert(connection, TRIAL_SYSTEM_ATTRS, [row])
        if write.curve or write.replace_all:
            write_intermediate_values(connection, write.trial_id, write.curve, write.replace_all)
    return lost


def _same_value(parameter: str, trial_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has the same value of a parameter as another trial."""
    this, other = TRIAL_PARAMS.alias(), TRIAL_PARAMS.alias()
    pairs = sa.select(this.c.trial_id).join(other, this.c.param_value == other.c.param_value)
    return sa.exists(
        pairs.where(
            this.c.param_name == parameter,
            other.c.param_name == parameter,
            other.c.trial_id == trial_id,
            this.c.trial_id == TRIALS.c.trial_id,
        ).correlate(TRIALS)
    )
