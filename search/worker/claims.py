"""Claims of a worker: their values and heartbeats are written by the storage thread.

The training thread waits for the storage only where it cannot continue without an answer; see
:mod:`search.worker.storage_client`.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from search.errors import ShutdownRequestedError
from search.worker.claim import HEARTBEATS_PER_LEASE, Claim
from search.worker.shutdown import ShutdownSignal
from search.worker.storage_client import StorageClient
from studies.attributes import ERROR, FAILURE, Failure
from studies.config import DEFAULT_LEASE_SECONDS
from studies.errors import LeaseLostError, StorageLostError
from studies.storage.leases import LeaseMonitor, PendingWrite
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import DamagedTrialError
from studies.text import format_trials

QUERY_TIMEOUT = 2.5
"""Seconds to wait for an answer without which training can continue."""

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class ClaimManager(StorageClient):
    """Claims, renews, finishes and requeues trials; a context manager that runs the thread.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        worker: name of this worker.
        stop: signal to return early on.
        lease_seconds: time without a heartbeat after which others may claim a trial of this worker.
        outage_seconds: how long an unavailable storage is waited for.
    """

    def __init__(
        self,
        storage: LeasedRDBStorage,
        study_id: int,
        worker: str,
        stop: ShutdownSignal,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        outage_seconds: float = 600,
    ) -> None:
        # Short enough for a heartbeat before the lease expires.
        super().__init__(stop, outage_seconds, max_retry_seconds=lease_seconds / 8)
        self._storage = storage
        self._study_id = study_id
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._active: list[Claim] = []
        self._monitor = LeaseMonitor()
        self._observe_at = 0.0
        sa.event.listen(storage.engine, "before_cursor_execute", self._note_statement)

    # ------------------------------------------------------------------ called by the worker

    def claim(
        self,
        exclude: Collection[int] = (),
        lockstep_params: Callable[[FrozenTrial], Sequence[str]] = lambda trial: (),
        lockstep_size: Callable[[FrozenTrial], int] = lambda trial: 1,
        paused_ids: Sequence[int] | None = None,
    ) -> list[Claim]:
        """Claim the next waiting trial, and others to train in lockstep with it.

        Args:
            exclude: ids of trials that are not claimed, except the first of ``paused_ids``, alone.
            lockstep_params: returns the parameters in which the others must equal the first one;
                one that it lacks they must lack, too.
            lockstep_size: returns how many trials to claim in total, given the first one.
            paused_ids: id of the paused trial to resume, followed by those that may resume with it;
                None for trials that are not paused.

        Returns:
            The claims; empty if no such trial waits.

        Raises:
            ShutdownRequestedError: if a shutdown was requested before the storage has answered.
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        storage, study_id, lease_seconds = self._storage, self._study_id, self._lease_seconds
        claim_token = f"{self._worker}/{uuid4().hex}"
        was_paused = paused_ids is not None
        first_ids = None if paused_ids is None else paused_ids[:1]
        other_ids = None if paused_ids is None else paused_ids[1:]

        def claim_others(first: Claim) -> list[int]:
            limit = lockstep_size(first.trial) - 1
            if limit < 1 or (other_ids is not None and not other_ids):
                return []
            parameters = lockstep_params(first.trial)
            try:
                return storage.claim_matching(
                    first.trial_id, claim_token, limit, parameters, exclude, other_ids
                )
            except LeaseLostError:  # between the two calls; the next flush finds it
                return []

        def operation(is_retry: bool) -> list[Claim]:
            trial_ids: list[int] = []
            if is_retry:  # an earlier attempt may have been committed and only its answer lost
                self._active = [each for each in self._active if each.claim_token != claim_token]
                leases = storage.running_leases(study_id).items()
                trial_ids = [key for key, lease in leases if lease.claim_token == claim_token]
            claims = self._register(trial_ids, claim_token, was_paused)
            while not claims:  # the first that waits, unless it is damaged
                first = storage.claim(
                    study_id, claim_token, lease_seconds, () if was_paused else exclude, first_ids
                )
                if first is None:
                    return []
                trial_ids = [first]
                claims = self._register(trial_ids, claim_token, was_paused)
            if len(claims) == 1 and trial_ids[0] not in exclude:
                claims += self._register(claim_others(claims[0]), claim_token, was_paused)
            return claims

        return self._call(operation, undo=self._undo_claims)

    def query_after_flush(self, query: Callable[[], _T]) -> _T | None:
        """Write all values of this worker's trials, then run a query.

        Returns:
            The query's result; None if the storage does not answer soon.

        Raises:
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        if self.unavailable_reason:
            return None
        future = self.submit_after_flush(query)
        try:
            self._wait(future, QUERY_TIMEOUT)
        except ShutdownRequestedError:
            future.cancel()
            return None
        return future.result()

    def submit_after_flush(self, query: Callable[[], _T]) -> Future[_T]:
        """Have all values of this worker's trials written, then a query run; do not wait for it.

        In an outage it runs as soon as the storage is available again.
        """

        def operation(is_retry: bool) -> _T:
            self._flush()
            return query()

        future: Future[_T] = Future()
        self._submit(operation, future)
        return future

    def finish(
        self, claim: Claim, state: TrialState, value: float | None, attributes: Mapping[str, Any]
    ) -> None:
        """Finish a trial; see :meth:`studies.storage.storage.LeasedRDBStorage.finish`.

        Raises:
            LeaseLostError, ShutdownRequestedError, StorageUnavailableError: and the trial is not
                finished.
        """
        trial_id, claim_token = claim.trial_id, claim.claim_token
        self._release(
            claim,
            lambda curve: self._storage.finish(
                trial_id, claim_token, state, value, attributes, curve
            ),
            was_written=lambda: self._storage.is_finished_by(trial_id, claim_token),
        )

    def pause(self, claim: Claim, attributes: Mapping[str, Any]) -> None:
        """Pause a trial; see :meth:`studies.storage.storage.LeasedRDBStorage.pause`.

        Raises:
            LeaseLostError, ShutdownRequestedError, StorageUnavailableError: and the lease expires.
        """
        self._release(
            claim,
            lambda curve: self._storage.pause(claim.trial_id, claim.claim_token, attributes, curve),
        )

    def requeue(self, claim: Claim, cause: Failure, error: str | None = None) -> None:
        """Requeue a trial; see :meth:`studies.storage.storage.LeasedRDBStorage.requeue`.

        Raises:
            LeaseLostError, ShutdownRequestedError, StorageUnavailableError: and the lease expires.
        """
        self.requeue_all([claim], cause, error)
        if claim.lost:
            raise claim.lost

    def requeue_all(
        self,
        claims: Sequence[Claim],
        cause: Failure,
        error: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Requeue trials in one transaction, and mark the claims that are lost.

        Args:
            claims: claims of the trials.
            cause: why they are requeued.
            error: exception in one line.
            timeout: seconds to wait for the storage; None until the end of an outage.

        Raises:
            ShutdownRequestedError, StorageUnavailableError: and the leases expire.
        """
        claims = list(claims)  # the caller may continue before the thread is done

        def operation(is_retry: bool) -> None:
            with self._pending_writes(claims) as writes:
                lost = self._storage.requeue_all(writes, cause, error)
            # All at once: an earlier attempt, of which only the answer was lost, requeued them.
            if not (is_retry and len(lost) == len(claims)):
                self._mark_lost(claims, lost)
            self._active = [claim for claim in self._active if claim not in claims]

        self._call(operation, timeout=timeout)

    def _release(
        self,
        claim: Claim,
        write: Callable[[Mapping[int, float]], None],
        was_written: Callable[[], bool] = lambda: True,
    ) -> None:
        """End a claim.

        Args:
            claim: claim to end.
            write: writes the trial's new state together with its last values.
            was_written: called if the claim no longer stands after an attempt that may have been
                committed; whether this is so because it was.
        """

        def operation(is_retry: bool) -> None:
            try:
                with claim.pending_write() as pending:
                    if pending.replace_all or pending.checkpointed:
                        self._storage.flush([pending])
                    write({} if pending.replace_all else pending.curve)
            except LeaseLostError:
                if not (is_retry and was_written()):
                    raise
            if claim in self._active:
                self._active.remove(claim)

        try:
            self._call(operation)
        except LeaseLostError as lost:
            claim.lost = lost
            raise

    # ------------------------------------------------------------------ called by the thread

    def _next_maintenance(self) -> float:
        return min([self._observe_at, *(claim.due_at for claim in list(self._active))])

    def _run_maintenance(self) -> None:
        # All claims together, though only some are due: each transaction costs a commit.
        if min((claim.due_at for claim in self._active), default=math.inf) <= time.monotonic():
            self._flush()
        if self._observe_at <= time.monotonic():
            self._requeue_expired()

    def _on_outage(self) -> None:
        self._monitor.reset()

    def _note_statement(self, *statement: object) -> None:
        # Many statements may take long together while each one is answered.
        if threading.current_thread() is self._thread:
            self._busy_since = time.monotonic()

    def _find_cause(self, error: Exception) -> Exception:
        try:
            self._storage.verify()  # rows of a deleted study are not found
        except StorageLostError as lost:
            return lost
        except Exception:  # an outage began
            pass
        return error

    def _flush(self) -> None:
        """Write the values and heartbeats of all claims."""
        claims = list(self._active)
        if not claims:
            return
        with self._pending_writes(claims) as writes:
            lost = self._storage.flush(writes)
        self._mark_lost(claims, lost)

    @contextlib.contextmanager
    def _pending_writes(self, claims: Sequence[Claim]) -> Iterator[list[PendingWrite]]:
        """Take what is to be written to several trials, for the duration of the write."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(claim.pending_write()) for claim in claims]

    def _mark_lost(self, claims: Sequence[Claim], lost_ids: Collection[int]) -> None:
        for claim in claims:
            if claim.trial_id in lost_ids:
                claim.lost = LeaseLostError(
                    f"trial id {claim.trial_id} is no longer held by {claim.claim_token}"
                )
                self._active = [each for each in self._active if each is not claim]

    def _requeue_expired(self) -> None:
        trial_ids = self._storage.expire_leases(self._study_id, self._monitor, time.monotonic)
        shortest = min([self._lease_seconds, *self._monitor.durations()])
        self._observe_at = time.monotonic() + shortest / HEARTBEATS_PER_LEASE
        if trial_ids:
            numbers = [
                trial.number for trial in self._storage.get_trials(self._study_id, trial_ids)
            ]
            _logger.info(
                f"{format_trials(numbers)}: lease expired, its worker sent no heartbeat; requeued"
            )

    def _register(
        self, trial_ids: Sequence[int], claim_token: str, was_paused: bool
    ) -> list[Claim]:
        trials = self._storage.get_trials(self._study_id, trial_ids) if trial_ids else []
        for trial_id in {*trial_ids} - {trial._trial_id for trial in trials}:
            self._fail_damaged(trial_id, claim_token)
        claims = [Claim(trial, claim_token, self._lease_seconds, was_paused) for trial in trials]
        self._active += claims
        return claims

    def _fail_damaged(self, trial_id: int, claim_token: str) -> None:
        """Finish a claimed trial that cannot be read, so that no worker waits for it."""
        try:
            self._storage.get_trial(trial_id)
        except DamagedTrialError as error:
            attributes = {FAILURE: Failure.EXCEPTION, ERROR: f"damaged: {error.summary}"}
            with contextlib.suppress(LeaseLostError):
                self._storage.finish(trial_id, claim_token, TrialState.FAIL, None, attributes)

    def _undo_claims(self, claims: Sequence[Claim]) -> None:
        # First, so that their leases expire if the storage is unavailable.
        self._active = [claim for claim in self._active if claim not in claims]
        # Some may be lost, also after a first attempt.
        writes = [PendingWrite(claim.trial_id, claim.claim_token) for claim in claims]
        if writes:
            self._storage.requeue_all(writes, Failure.INTERRUPTED)
