"""Which points a worker takes, and what it says of several at once, within one transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import PAUSED
from studies.storage.leases import Lease
from studies.storage.trial_rows import (
    STUDIES,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIALS,
    has_system_attr,
    is_grid_trial,
    read_state_and_lease,
    running_leases,
    utcnow,
    write_intermediate_values,
    write_lease,
)

TrialQuery = sa.Select[int]
"""A query for the ids of trials."""


@dataclass(frozen=True)
class PendingWrite:
    """What is to be recorded of a trial that a worker holds.

    Attributes:
        trial_id: of the trial.
        claim_token: the token that it was claimed with.
        curve: intermediate values, by step, which take the place of those of the same steps.
        replace_all: of all others too.
        heartbeat: say too that the worker lives.
    """

    trial_id: int
    claim_token: str
    curve: Mapping[int, float] = field(default_factory=dict)
    replace_all: bool = False
    heartbeat: bool = False


def waiting_query(
    study_id: int, exclude: Collection[int] = (), paused_ids: Sequence[int] | None = None
) -> TrialQuery:
    """Return the query for a study's waiting points, in the order in which they are to be run.

    Args:
        study_id: of the study.
        exclude: the ids of trials that are left out.
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
    """Set the first so many of the waiting points running, under this lease; return their ids."""
    first = waiting.limit(limit)
    # Nobody waits for another: what somebody else is just taking is passed over. On SQLite the
    # writer is alone.
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
    """Take waiting points like one that a worker holds; see ``LeasedRDBStorage.claim_matching``."""
    study_id = connection.scalar(sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id))
    assert study_id is not None
    waiting = waiting_query(study_id, exclude, paused_ids)
    for parameter in parameters:
        waiting = waiting.where(_same_value(parameter, trial_id))
    count = connection.scalar(sa.select(sa.func.count()).select_from(waiting.subquery())) or 0
    workers = {other.worker for other in running_leases(connection, study_id).values()}
    share = -(-(count + 1) // len(workers)) - 1  # the one that is held counts as taken
    return dequeue(
        connection, waiting, Lease(lease.claim_token, lease.seconds), max(0, min(limit, share))
    )


def all_finished_or_paused(connection: Connection, study_id: int, planned: int) -> bool:
    """Tell whether a study has so many points, each finished or paused; nobody extends it now."""
    connection.execute(sa.select(STUDIES).where(STUDIES.c.study_id == study_id).with_for_update())
    points = sa.and_(TRIALS.c.study_id == study_id, is_grid_trial())
    open_ones = TRIALS.c.state.in_([TrialState.RUNNING, TrialState.WAITING]) & ~(
        (TRIALS.c.state == TrialState.WAITING) & has_system_attr(PAUSED)
    )
    count = sa.select(sa.func.count()).select_from(TRIALS)
    return (
        connection.scalar(count.where(points)) == planned
        and connection.scalar(count.where(points, open_ones)) == 0
    )


def check_lease(connection: Connection, trial_id: int, claim_token: str) -> Lease | None:
    """Return the lease of a trial, if it runs and is the owner's."""
    state, lease = read_state_and_lease(connection, trial_id)
    held = state is TrialState.RUNNING and lease is not None and lease.claim_token == claim_token
    return lease if held else None


def write_pending(connection: Connection, trials: Iterable[PendingWrite]) -> list[int]:
    """Record what there is of trials; return the ids of those that their owner no longer holds."""
    lost = []
    # Whoever locks several does so in the same order.
    for held in sorted(trials, key=lambda held: held.trial_id):
        lease = check_lease(connection, held.trial_id, held.claim_token)
        if lease is None:
            lost.append(held.trial_id)
            continue
        if held.heartbeat:
            write_lease(connection, held.trial_id, lease.with_heartbeat())
        if held.curve or held.replace_all:
            write_intermediate_values(connection, held.trial_id, held.curve, held.replace_all)
    return lost


def _same_value(parameter: str, trial_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has the value of a parameter that another one has."""
    own, other = TRIAL_PARAMS.alias(), TRIAL_PARAMS.alias()
    pairs = sa.select(own.c.trial_id).join(other, own.c.param_value == other.c.param_value)
    return sa.exists(
        pairs.where(
            own.c.param_name == parameter,
            other.c.param_name == parameter,
            other.c.trial_id == trial_id,
            own.c.trial_id == TRIALS.c.trial_id,
        ).correlate(TRIALS)
    )
