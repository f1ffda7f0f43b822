"""Optuna's RDB storage with leases: claims, and writes that hold only under a claim token."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage.lease_rows import running_leases
from studies.storage.leases import DEFAULT_LEASE_SECONDS, Lease, LeaseMonitor
from studies.storage.queue import (
    PendingWrite,
    all_finished_or_paused,
    dequeue,
    dequeue_matching,
    waiting_query,
    write_pending,
)
from studies.storage.transactions import TransactionalRDBStorage
from studies.storage.trial_rows import (
    TRIAL_VALUES,
    TRIALS,
    AuditDecision,
    lock_trials,
    pause,
    prune_paused,
    requeue,
    utcnow,
    write_attributes,
    write_audit,
)


class LeasedRDBStorage(TransactionalRDBStorage):
    """Optuna's RDB storage with leases; open it with :func:`studies.storage.open.open_storage`."""

    # ------------------------------------------------------------------ one trial's life

    def claim(
        self,
        study_id: int,
        claim_token: str,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> int | None:
        """Claim the next waiting trial for a worker.

        Args:
            study_id: id of the study.
            claim_token: token unique to this claim.
            lease_seconds: time without a heartbeat after which the lease expires.
            exclude: ids of trials that are not claimed.
            paused_ids: ids of paused trials, the first of which is claimed; None for the first
                trial that is not paused.

        Returns:
            The trial's id; None if no such trial waits.
        """
        waiting = waiting_query(study_id, exclude, paused_ids)
        with self.transaction() as connection:
            claimed = dequeue(connection, waiting, Lease(claim_token, lease_seconds))
        return claimed[0] if claimed else None

    def claim_matching(
        self,
        trial_id: int,
        claim_token: str,
        limit: int,
        parameters: Sequence[str],
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> list[int]:
        """Claim more waiting trials that match a claimed one.

        At most an equal share of them is claimed: their number divided by the number of workers
        that run trials of the study.

        Args:
            trial_id: id of the claimed trial.
            claim_token: token of its claim, which becomes that of the others.
            limit: maximum number to claim.
            parameters: names of the parameters whose values must match; one that a trial lacks
                must be lacking in the others.
            exclude: ids of trials that are not claimed.
            paused_ids: ids of paused trials to claim; None for trials that are not paused.

        Returns:
            The trials' ids.

        Raises:
            LeaseLostError: if the lease of the claimed trial is lost.
        """
        with self._leased_transaction(PendingWrite(trial_id, claim_token)) as (connection, lease):
            return dequeue_matching(
                connection, trial_id, lease, limit, parameters, exclude, paused_ids
            )

    def heartbeat(self, trial_id: int, claim_token: str) -> None:
        """Send a heartbeat of a claimed trial.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(PendingWrite(trial_id, claim_token, heartbeat=True)):
            pass

    def report(
        self, trial_id: int, claim_token: str, curve: Mapping[int, float], replace_all: bool = False
    ) -> None:
        """Write intermediate values.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            curve: values by step; they replace stored values of the same steps.
            replace_all: whether they replace all stored values.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(PendingWrite(trial_id, claim_token, curve, replace_all)):
            pass

    def flush(self, writes: Sequence[PendingWrite]) -> list[int]:
        """Write to several claimed trials in one transaction.

        Returns:
            Ids of the trials whose lease is lost; nothing is written to them.
        """
        with self.transaction() as connection:
            _, lost = write_pending(connection, writes)
        return lost

    def finish(
        self,
        trial_id: int,
        claim_token: str,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Finish a claimed trial in one transaction.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            state: COMPLETE, PRUNED or FAIL.
            value: value of a complete trial, finite.
            attributes: user attributes to write.
            curve: remaining intermediate values by step.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(PendingWrite(trial_id, claim_token, curve)) as (
            connection,
            _,
        ):
            if value is not None:
                assert math.isfinite(value)
                connection.execute(
                    sa.insert(TRIAL_VALUES).values(
                        trial_id=trial_id,
                        objective=0,
                        value=value,
                        value_type=models.TrialValueModel.TrialValueType.FINITE,
                    )
                )
            write_attributes(connection, {trial_id: attributes})
            connection.execute(
                sa.update(TRIALS)
                .where(TRIALS.c.trial_id == trial_id)
                .values(state=state, datetime_complete=utcnow())
            )

    def is_finished_by(self, trial_id: int, claim_token: str) -> bool:
        """Return whether a trial was finished under this claim token.

        Answers whether a commit succeeded whose connection was lost.
        """
        with self.engine.begin() as connection:
            state, lease = lock_trials(connection, [trial_id]).get(trial_id, (None, None))
        return (
            state is not None
            and state.is_finished()
            and lease is not None
            and lease.claim_token == claim_token
        )

    def requeue(
        self,
        trial_id: int,
        claim_token: str,
        cause: Failure,
        error: str | None = None,
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Set a claimed trial waiting again, with its curve and the cause.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            cause: reason, counted among the trial's retries.
            error: exception in one line.
            curve: remaining intermediate values by step.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        write = PendingWrite(trial_id, claim_token, curve)
        if self.requeue_all([write], cause, error):
            raise _lease_lost(write)

    def requeue_all(
        self, writes: Sequence[PendingWrite], cause: Failure, error: str | None = None
    ) -> list[int]:
        """Set claimed trials waiting again in one transaction, after a last write to each.

        The number of statements does not depend on the number of trials.

        Args:
            writes: last values of the trials.
            cause: reason, counted among the retries of each.
            error: exception in one line.

        Returns:
            Ids of the trials whose lease is lost; nothing is written to them.
        """
        with self.transaction() as connection:
            held, lost = write_pending(connection, writes, is_last=True)
            requeue(connection, held, cause, error)
        return lost

    def pause(
        self,
        trial_id: int,
        claim_token: str,
        attributes: Mapping[str, Any],
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Pause a claimed trial; only claims that name it resume it.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            attributes: user attributes to write.
            curve: remaining intermediate values by step.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(PendingWrite(trial_id, claim_token, curve)) as (
            connection,
            _,
        ):
            write_attributes(connection, {trial_id: attributes})
            pause(connection, trial_id)

    def write_audit(self, decisions: Mapping[int, AuditDecision]) -> list[int]:
        """Store decisions about audited trials, which train on regardless, in one transaction.

        Args:
            decisions: the decisions by trial id; one is not stored if another was stored before.

        Returns:
            Ids of the trials whose decision is stored.
        """
        with self.transaction() as connection:
            return write_audit(connection, decisions)

    def prune_paused(
        self,
        study_id: int,
        planned: int,
        trials: Mapping[int, Mapping[str, Any]],
        audited: Mapping[int, AuditDecision] = MappingProxyType({}),
    ) -> list[int]:
        """Prune paused trials in one transaction, if every other grid trial is finished.

        Args:
            study_id: id of the study.
            planned: expected number of grid trials; with any other number nothing is done.
            trials: user attributes to write, by trial id.
            audited: decisions about audited trials to store, by trial id; if others were stored
                before, nothing is done.

        Returns:
            Ids of the trials that were pruned.
        """
        with self.transaction() as connection:
            if not all_finished_or_paused(connection, study_id, planned):
                return []
            if len(write_audit(connection, audited, require_all=True)) < len(audited):
                return []
            return prune_paused(connection, trials)

    # ------------------------------------------------------------------ leases of other workers

    def running_leases(self, study_id: int) -> dict[int, Lease]:
        """Return the leases of a study's running trials, by trial id.

        A trial that plain Optuna runs has none.
        """
        with self.reading() as connection:
            return running_leases(connection, study_id)

    def expire_leases(
        self, study_id: int, monitor: LeaseMonitor, clock: Callable[[], float]
    ) -> list[int]:
        """Requeue the trials whose leases have expired.

        Observation and requeue share one writing transaction: while an observer cannot write,
        other workers may be unable to send heartbeats.

        Args:
            study_id: id of the study.
            monitor: monitor of the observer.
            clock: monotonic clock, in seconds.

        Returns:
            Ids of the requeued trials.
        """
        with self.transaction() as connection:
            leases = running_leases(connection, study_id)
            expired = monitor.observe(leases.items(), clock())
            if not expired:
                return []
            # On PostgreSQL their workers or other observers may have written meanwhile.
            requeued = [
                trial_id
                for trial_id, (state, lease) in lock_trials(connection, expired).items()
                if state is TrialState.RUNNING and lease == leases[trial_id]
            ]
            requeue(connection, requeued, Failure.LEASE_EXPIRED)
        return requeued

    @contextlib.contextmanager
    def _leased_transaction(self, write: PendingWrite) -> Iterator[tuple[Connection, Lease]]:
        """Open a writing transaction under a claim token, after a write to the trial."""
        with self.transaction() as connection:
            held, lost = write_pending(connection, [write])
            if lost:
                raise _lease_lost(write)
            yield connection, held[write.trial_id]


def _lease_lost(write: PendingWrite) -> LeaseLostError:
    return LeaseLostError(
        f"trial id {write.trial_id} is no longer held by {write.claim_token}: nothing was written"
    )
