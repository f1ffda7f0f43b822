"""Leases of running trials: claims that expire.

Leases expire by an observer's own monotonic clock alone. For people to read, a heartbeat is also
dated by the database as it is written, and its age is computed by the database as it is read: one
clock, and never that of a worker's or a reader's machine. The clock of an SQLite file is that of
the machine that has it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import sqlalchemy as sa
from optuna.trial import TrialState
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy.engine import Connection

from studies.attributes import (
    CHECKPOINTED,
    ERROR,
    LEASE,
    PAUSED,
    RETRY_COUNTS,
    Failure,
    HeldOutCurve,
    parse_trial_attribute,
)
from studies.errors import RowError
from studies.records import first_message
from studies.storage.tables import (
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIALS,
    delete_attrs,
    has_system_attr,
    is_attr,
    is_grid_trial,
    raw,
    read_attribute,
    select_in_batches,
    update_trials,
    utcnow,
    write_attrs,
    write_curves,
    write_user_attrs,
)
from studies.storage.trials import decode_state, locating
from studies.study_settings import MAX_LEASE_SECONDS


@dataclass(frozen=True)
class Lease:
    """A worker's temporary hold on a trial.

    Attributes:
        claim_token: name of the worker, a slash, and a token unique to the claim.
        seconds: time without a heartbeat after which the lease expires.
        heartbeats: number of heartbeats since the claim.
        heard: when the database wrote it, in seconds since 1970 by its own clock.
    """

    claim_token: str
    seconds: Annotated[int | float, Field(gt=0, le=MAX_LEASE_SECONDS)]
    heartbeats: int = 0
    heard: float = field(default=0.0, compare=False)

    @classmethod
    def parse(cls, trial_id: int, stored: str) -> "Lease":
        """Parse a stored lease of a trial.

        Raises:
            RowError: if it is none.
        """
        try:
            return _ADAPTER.validate_json(stored, strict=True)
        except ValidationError as error:
            with locating(trial_id=trial_id):
                raise RowError(f"attribute {LEASE}: {first_message(error)}") from error

    @property
    def worker(self) -> str:
        """Name of the worker, the same for all of its claims."""
        return self.claim_token.rpartition("/")[0] or self.claim_token


_ADAPTER = TypeAdapter(Lease)


class LeaseMonitor:
    """Detects expired leases by the observer's own monotonic clock.

    A lease has expired when it was unchanged in consecutive observations that span its duration.
    The time between two observations counts up to half a duration: an observer that was suspended
    itself (by a signal, a closed lid, a database that did not answer) has observed nothing, and
    workers that were suspended with it get time for a heartbeat.
    """

    def __init__(self) -> None:
        self._observations: dict[int, tuple[Lease, float]] = {}
        self._observed_at: float | None = None

    def observe(self, leases: Iterable[tuple[int, Lease]], now: float) -> list[int]:
        """Record the leases of running trials; return the ids of trials whose leases have expired.

        ``now`` is that of a monotonic clock, in seconds.
        """
        elapsed = 0.0 if self._observed_at is None else now - self._observed_at
        self._observed_at = now
        previous = self._observations
        self._observations = {}
        expired = []
        for trial_id, lease in leases:
            before, unchanged_for = previous.get(trial_id, (None, 0.0))
            if lease == before:
                unchanged_for += min(elapsed, lease.seconds / 2)
            else:
                unchanged_for = 0.0
            self._observations[trial_id] = lease, unchanged_for
            if unchanged_for >= lease.seconds:
                expired.append(trial_id)
        return expired

    def durations(self) -> list[float]:
        """Return the durations of the leases last observed, in seconds."""
        return [lease.seconds for lease, _ in self._observations.values()]

    def reset(self) -> None:
        """Forget all observations, after an outage in which no worker could send a heartbeat."""
        self._observations.clear()
        self._observed_at = None


# ------------------------------------------------------------------ rows


def lock_trials(
    connection: Connection, trial_ids: Collection[int]
) -> dict[int, tuple[TrialState, Lease | None]]:
    """Read trials' states and leases; lock the trials until the transaction ends."""
    # All writers lock trials in the order of their ids, to avoid deadlocks.
    query = sa.select(TRIALS.c.trial_id, raw(TRIALS.c.state)).order_by(TRIALS.c.trial_id)
    states = {}
    for trial_id, stored in select_in_batches(
        connection, query.with_for_update(), TRIALS, trial_ids
    ):
        with locating(trial_id=trial_id):
            states[trial_id] = decode_state(stored)
    # Only now: a joined lease would be that of before the wait for the lock.
    leases = read_attribute(connection, TRIAL_SYSTEM_ATTRS, LEASE, states)
    return {
        trial_id: (
            state,
            Lease.parse(trial_id, leases[trial_id]) if trial_id in leases else None,
        )
        for trial_id, state in states.items()
    }


def running_leases(connection: Connection, study_id: int) -> dict[int, Lease]:
    """Read the leases of a study's running trials, by trial id."""
    query = sa.select(TRIALS.c.trial_id, TRIAL_SYSTEM_ATTRS.c.value_json).where(
        TRIALS.c.study_id == study_id,
        TRIALS.c.state == TrialState.RUNNING,
        is_attr(TRIAL_SYSTEM_ATTRS, LEASE),
    )
    rows = connection.execute(query.order_by(TRIALS.c.trial_id))
    return {trial_id: Lease.parse(trial_id, stored) for trial_id, stored in rows}


def write_leases(connection: Connection, leases: Mapping[int, Lease]) -> None:
    """Write leases by trial id, each with the time by the database's clock."""
    if leases:
        now = connection.execute(sa.select(database_seconds(connection))).scalar_one()
        stored = {
            trial_id: {LEASE: asdict(replace(lease, heard=float(now)))}
            for trial_id, lease in leases.items()
        }
        write_attrs(connection, TRIAL_SYSTEM_ATTRS, stored)


def database_seconds(connection: Connection) -> sa.ColumnElement[Any]:
    """Return the expression for the time by the database's clock, in seconds since 1970."""
    if connection.dialect.name == "sqlite":
        return (sa.func.julianday("now") - 2440587.5) * 86400.0
    return sa.extract("epoch", sa.func.clock_timestamp())


# ------------------------------------------------------------------ the queue of waiting trials


def waiting_query(
    study_id: int, exclude: Collection[int], paused_ids: Sequence[int] | None
) -> sa.Select[int]:
    """Return the query for the trials that a claim takes, in the order in which to run them.

    See :meth:`studies.storage.storage.LeasedRDBStorage.claim`.
    """
    waiting = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id,
        TRIALS.c.state == TrialState.WAITING,
        TRIALS.c.trial_id.not_in(exclude),
    )
    if paused_ids is None:  # this condition first: it fails for most trials of a pruned study
        waiting = waiting.where(~has_system_attr(PAUSED), is_grid_trial())
        return waiting.order_by(TRIALS.c.number)
    waiting = waiting.where(
        is_grid_trial(), has_system_attr(PAUSED), TRIALS.c.trial_id.in_(paused_ids)
    )
    places = {trial_id: place for place, trial_id in enumerate(paused_ids)}
    return waiting.order_by(sa.case(places, value=TRIALS.c.trial_id)) if places else waiting


def has_same_value(parameter: str, trial_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has the same value of a parameter as another, or none."""
    value = sa.select(TRIAL_PARAMS.c.param_value).where(TRIAL_PARAMS.c.param_name == parameter)
    own = value.where(TRIAL_PARAMS.c.trial_id == TRIALS.c.trial_id).correlate(TRIALS)
    other = value.where(TRIAL_PARAMS.c.trial_id == trial_id)
    return own.scalar_subquery().is_not_distinct_from(other.scalar_subquery())


def dequeue(
    connection: Connection, waiting: sa.Select[int], lease: Lease, limit: int = 1
) -> list[int]:
    """Set the first ``limit`` waiting trials running under a lease; return their ids."""
    first = waiting.limit(limit)
    # Skip rows that another worker is claiming now; on SQLite there is one writer at a time.
    chosen = list(connection.scalars(first.with_for_update(skip_locked=True)))
    started = {"state": TrialState.RUNNING, "datetime_start": utcnow()}
    update_trials(connection, dict.fromkeys(chosen, started))
    delete_attrs(connection, TRIAL_SYSTEM_ATTRS, [(trial_id, PAUSED) for trial_id in chosen])
    write_leases(connection, dict.fromkeys(chosen, lease))
    return chosen


# ------------------------------------------------------------------ writes to claimed trials


@dataclass(frozen=True)
class PendingWrite:
    """A write to a claimed trial.

    Attributes:
        curve: intermediate values by step; they replace stored values of the same steps.
        replace_all: whether they replace all stored values.
        heartbeat: whether to send a heartbeat as well.
        checkpointed: whether to record that a checkpoint was written.
        metrics: held-out curves by the keys of their attributes, which they replace.
    """

    trial_id: int
    claim_token: str
    curve: Mapping[int, float] = field(default_factory=dict)
    replace_all: bool = False
    heartbeat: bool = False
    checkpointed: bool = False
    metrics: Mapping[str, HeldOutCurve] = field(default_factory=dict)


def write_pending(
    connection: Connection, writes: Sequence[PendingWrite]
) -> tuple[dict[int, Lease], list[int]]:
    """Write to claimed trials, at most once to each.

    The number of statements does not depend on the number of trials.

    Returns:
        Leases of the trials that are still held, by trial id, and the ids of the others; nothing is
        written to those. All stay locked until the transaction ends.
    """
    stored = lock_trials(connection, [write.trial_id for write in writes])
    held: dict[int, Lease] = {}
    for write in writes:
        state, lease = stored.get(write.trial_id, (None, None))
        if state is TrialState.RUNNING and lease and lease.claim_token == write.claim_token:
            held[write.trial_id] = lease
    valid = [write for write in writes if write.trial_id in held]
    alive = {write.trial_id: held[write.trial_id] for write in valid if write.heartbeat}
    for trial_id, lease in alive.items():
        alive[trial_id] = replace(lease, heartbeats=lease.heartbeats + 1)
    write_leases(connection, alive)
    write_attrs(connection, TRIAL_SYSTEM_ATTRS, {write.trial_id: write.metrics for write in valid})
    checkpointed = {write.trial_id: {CHECKPOINTED: True} for write in valid if write.checkpointed}
    write_attrs(connection, TRIAL_SYSTEM_ATTRS, checkpointed)
    replaced = {write.trial_id for write in valid if write.replace_all}
    write_curves(connection, {write.trial_id: write.curve for write in valid}, replaced)
    return held, [write.trial_id for write in writes if write.trial_id not in held]


def requeue(
    connection: Connection, trial_ids: Collection[int], cause: Failure, error: str | None = None
) -> None:
    """Set locked trials waiting again, and count the cause among their retries."""
    stored = read_attribute(connection, TRIAL_USER_ATTRS, RETRY_COUNTS, trial_ids)
    attributes: dict[int, dict[str, Any]] = {}
    for trial_id in trial_ids:
        retries: Counter[str] = Counter()
        if trial_id in stored:
            with locating(trial_id=trial_id):
                retries.update(parse_trial_attribute(RETRY_COUNTS, stored[trial_id]))
        retries[cause] += 1
        attributes[trial_id] = {RETRY_COUNTS: retries}
        if error is not None:
            attributes[trial_id][ERROR] = error
    write_user_attrs(connection, attributes)
    waiting = {"state": TrialState.WAITING, "datetime_start": None}
    end_claims(connection, dict.fromkeys(trial_ids, waiting))


def end_claims(connection: Connection, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Delete the leases of trials, and set values of their rows, the same columns for each."""
    delete_attrs(connection, TRIAL_SYSTEM_ATTRS, [(trial_id, LEASE) for trial_id in values])
    update_trials(connection, values)
