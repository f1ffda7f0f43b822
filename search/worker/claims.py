"""Claims of a worker, and the thread in which it talks to the storage.

The thread runs operations in order, writes values and heartbeats, and repeats what fails in an
outage. Training waits for it only where it cannot continue without an answer. It is a daemon thread
with a queue of futures instead of a ``ThreadPoolExecutor``, which would join it at exit: a storage
that does not answer would keep the process alive.
"""

import contextlib
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from search.errors import ShutdownRequestedError
from search.worker.shutdown import ShutdownSignal
from studies.attributes import CHECKPOINTED, CURVE, Failure, HeldOutCurve
from studies.errors import LeaseLostError, StorageLostError, StorageUnavailableError
from studies.messages import format_trials
from studies.storage.database import error_message, is_transient
from studies.storage.leases import LeaseMonitor, PendingWrite
from studies.storage.storage import LeasedRDBStorage
from studies.study_settings import DEFAULT_LEASE_SECONDS

if TYPE_CHECKING:
    from search.worker.lockstep import LockstepPlan

HEARTBEATS_PER_LEASE = 4
"""Heartbeats in the duration of a lease: three may fail before it expires."""

FLUSH_INTERVAL = 1.0
"""Seconds between two writes of a running trial's values: each costs a commit."""

QUERY_TIMEOUT = 2.5
"""Seconds to wait for an answer without which training can continue."""

SHUTDOWN_GRACE = 2.5
"""Seconds to wait for the storage once a shutdown is requested."""

JOIN_TIMEOUT = 2.5
"""Seconds to wait for the thread's last operation on exit."""

NO_RESPONSE_TIMEOUT = 5.0
"""Seconds without an answer to a statement after which the storage counts as unavailable."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})

_MAX_IDLE_SECONDS = 1.0
_MIN_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 5.0

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class Claim:
    """A trial that this worker has claimed, and its values that are not written yet.

    Attributes:
        trial: the trial as it was claimed, with its curve and retry counts.
        is_lost: whether another worker has claimed the trial.
        has_reported: whether values may have been written since the trial was claimed.
    """

    def __init__(self, trial: FrozenTrial, claim_token: str, lease_seconds: float) -> None:
        self.trial = trial
        self.claim_token = claim_token
        self.is_lost = False
        self.has_reported = False
        self._is_checkpointed = CHECKPOINTED in trial.system_attrs
        self._record_checkpoint = False
        self._curve: dict[int, float] = {}
        self._replace_all = False
        # Held-out curves as reported last, and those that are not written yet.
        stored = trial.system_attrs
        self._metrics = {key: stored[key] for key in stored if key.startswith(CURVE)}
        self._new_metrics: dict[str, HeldOutCurve] = {}
        self._lock = threading.Lock()
        self._heartbeat_interval = lease_seconds / HEARTBEATS_PER_LEASE
        self._heartbeat_at = time.monotonic() + self._heartbeat_interval
        self._flush_at = 0.0

    @property
    def trial_id(self) -> int:
        """Id of the trial in the storage."""
        return self.trial._trial_id

    @property
    def due_at(self) -> float:
        """Monotonic time at which the next write is due."""
        has_values = (
            self._curve or self._replace_all or self._record_checkpoint or self._new_metrics
        )
        return min(self._heartbeat_at, self._flush_at if has_values else math.inf)

    def report(self, step: int, value: float) -> None:
        """Add an intermediate value to the next write."""
        with self._lock:
            self._curve[step] = value
            self.has_reported = True

    def report_metric(self, name: str, step: int, value: float) -> None:
        """Add a point to a held-out curve, or replace its last one, in the next write."""
        key = CURVE + name
        point = [step, value if math.isfinite(value) else None]
        with self._lock:
            curve = self._metrics.setdefault(key, [])
            if curve and curve[-1][0] == step:
                curve[-1] = point
            else:
                curve.append(point)
            self._new_metrics[key] = curve

    def report_metrics(self, metrics: Mapping[str, Mapping[int, float]]) -> None:
        """Have the next write replace held-out curves, values by step, that have changed."""
        with self._lock:
            for name, points in metrics.items():
                key = CURVE + name
                curve = [[step, x if math.isfinite(x) else None] for step, x in points.items()]
                if curve != self._metrics.get(key):
                    self._metrics[key] = self._new_metrics[key] = curve

    def replace_metrics(self, metrics: Mapping[str, Mapping[int, float]]) -> None:
        """Have the next write replace held-out curves, and remove those that are not given."""
        self.report_metrics({**{key.removeprefix(CURVE): {} for key in self._metrics}, **metrics})

    def replace_curve(
        self, curve: Mapping[int, float], metrics: Mapping[str, Mapping[int, float]] = _NOTHING
    ) -> None:
        """Have the next write replace all values written before by this curve and these metrics."""
        self.replace_metrics(metrics)
        with self._lock:
            self._curve = dict(curve)
            self._replace_all = True
            self.has_reported = True

    def record_checkpoint(self) -> None:
        """Have the next write record that a checkpoint was written."""
        with self._lock:
            if not self._is_checkpointed:
                self._is_checkpointed = self._record_checkpoint = True

    @contextlib.contextmanager
    def pending_write(self) -> Iterator[PendingWrite]:
        """Take what is to be written, for the duration of the write; keep it if that fails."""
        heartbeat = self._heartbeat_at <= time.monotonic()
        with self._lock:
            write = PendingWrite(
                self.trial_id,
                self.claim_token,
                self._curve,
                self._replace_all,
                heartbeat,
                self._record_checkpoint,
                self._new_metrics,
            )
            self._curve = {}
            self._new_metrics = {}
            self._replace_all = False
            self._record_checkpoint = False
        try:
            yield write
        except BaseException:  # of any kind: the next write has what this one has not
            with self._lock:
                self._record_checkpoint |= write.checkpointed
                self._new_metrics = {**write.metrics, **self._new_metrics}
                if not self._replace_all:  # else the values do not count any more
                    self._curve = {**write.curve, **self._curve}
                    self._replace_all = write.replace_all
            raise
        now = time.monotonic()
        self._flush_at = now + FLUSH_INTERVAL
        if heartbeat:
            self._heartbeat_at = now + self._heartbeat_interval


class ClaimManager:
    """Claims, renews, finishes and requeues trials; a context manager that runs the thread.

    :meth:`ask` is the one way to the storage: it runs an operation in the thread and returns its
    answer as soon as there is one, or raises at a shutdown. :meth:`query` returns a default instead
    of waiting for long, and :meth:`submit` does not wait.

    Args:
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
        self._storage = storage
        self._study_id = study_id
        self._worker = worker
        self._stop = stop
        self._lease_seconds = lease_seconds
        self._outage_seconds = outage_seconds
        # Only the caller adds claims, so that a late answer is never renewed; the thread removes
        # those that end. Each changes the set in place, in one step.
        self._active: set[Claim] = set()
        self._monitor = LeaseMonitor()
        self._observe_at = 0.0
        self._requests: deque[tuple[Callable[[], Any], bool, Future[Any]]] = deque()
        self._is_retry = False  # of the current operation; an earlier attempt may be committed
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._failure: Exception | None = None
        self._busy_since: float | None = None  # of the current statement
        self._outage_message: str | None = None
        self._checked_at = time.monotonic()
        self._unavailable_seconds = 0.0
        self._has_reported_outage = False
        self._retry_seconds = _MIN_RETRY_SECONDS  # longest time until the next attempt
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        sa.event.listen(storage.engine, "before_cursor_execute", self._note_statement)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._wake.set()
        self._thread.join(JOIN_TIMEOUT)

    # ------------------------------------------------------------------ questions

    def ask(
        self,
        operation: Callable[[], _T],
        *,
        timeout: float | None = None,
        after_flush: bool = False,
    ) -> _T:
        """Run an operation in the thread and return its answer.

        Args:
            operation: reads from the storage or writes to it; called again after an outage.
            timeout: seconds to wait for the answer; None until the end of an outage.
            after_flush: whether to write all values of this worker's trials before.

        Raises:
            ShutdownRequestedError: if a shutdown was requested or the timeout has passed. A late
                answer is dropped.
            StorageUnavailableError: if the storage was unavailable for too long.
            Exception: error of the operation.
        """
        future = self.submit(operation, after_flush=after_flush)
        try:
            self._wait(future, timeout)
            return future.result()
        finally:  # also at an interrupt, or if the output is closed
            future.cancel()

    def query(self, operation: Callable[[], _T], default: _T, *, after_flush: bool = False) -> _T:
        """Ask as :meth:`ask`; return a default if there is no answer in :data:`QUERY_TIMEOUT`."""
        if self.unavailable_reason:
            return default
        try:
            return self.ask(operation, timeout=QUERY_TIMEOUT, after_flush=after_flush)
        except ShutdownRequestedError:
            return default

    def submit(self, operation: Callable[[], _T], *, after_flush: bool = False) -> Future[_T]:
        """Have an operation run, as :meth:`ask`, without waiting; may be called in any thread."""
        future: Future[_T] = Future()
        if self._closed.is_set():
            future.set_exception(ShutdownRequestedError())
        else:
            self._requests.append((operation, after_flush, future))
            self._wake.set()
        return future

    def check(self) -> None:
        """Log the start and the end of an outage.

        Raises:
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        self._log_outage()
        if self._failure is not None:
            raise self._failure
        now = time.monotonic()
        reason = self.unavailable_reason
        # The time in which this process was itself suspended does not count as an outage.
        elapsed = min(now - self._checked_at, NO_RESPONSE_TIMEOUT)
        self._checked_at = now
        self._unavailable_seconds = self._unavailable_seconds + elapsed if reason else 0.0
        if self._unavailable_seconds > self._outage_seconds:
            raise StorageUnavailableError(
                f"storage unavailable for {self._unavailable_seconds:.0f} s ({reason}), longer "
                f"than {self._outage_seconds:g} s; recorded results are kept; restore it and run "
                "the same command to resume"
            )

    @property
    def unavailable_reason(self) -> str | None:
        """Why the storage is unavailable now; None if it is available."""
        message = self._outage_message
        busy_since = self._busy_since
        if message is not None or busy_since is None:
            return message
        is_silent = time.monotonic() - busy_since > NO_RESPONSE_TIMEOUT
        return "it does not answer" if is_silent else None

    def _wait(self, future: Future[Any], timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not futures.wait([future], 0.1).done:
            self.check()
            if deadline is None and self._stop.requested:
                deadline = time.monotonic() + SHUTDOWN_GRACE
            if deadline is not None and time.monotonic() > deadline:
                raise ShutdownRequestedError
        self._log_outage()

    def _log_outage(self) -> None:
        reason = self.unavailable_reason
        if reason and not self._has_reported_outage:
            # A statement may also take long because the machine or the server is busy.
            state = "unavailable" if self._outage_message else "slow or unavailable"
            _logger.info(f"storage {state} ({reason}); new results are kept in memory")
        elif self._has_reported_outage and not reason:
            _logger.info("storage available again")
        self._has_reported_outage = reason is not None

    # ------------------------------------------------------------------ claims

    def claim(
        self,
        plan: "LockstepPlan | None" = None,
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> list[Claim]:
        """Claim the next waiting trial, and others to train together with it.

        Args:
            plan: how many others, and which; None for none.
            exclude: ids of trials that are not claimed, except the first of ``paused_ids``, alone.
            paused_ids: id of the paused trial to resume, followed by those that may resume with it;
                None for trials that are not paused.

        Returns:
            The claims; empty if no such trial waits. After a requested shutdown the first alone.

        Raises:
            ShutdownRequestedError: if a shutdown was requested before the storage has answered. The
                leases of a late answer expire: nothing renews them.
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        claim_token = f"{self._worker}/{uuid4().hex}"
        first = self.ask(partial(self._claim_first, claim_token, exclude, paused_ids))
        if first is None:
            return []
        self._active.add(first)
        is_alone = first.trial_id in exclude or (paused_ids is not None and len(paused_ids) == 1)
        if plan is None or is_alone:
            return [first]
        # Here and not in the thread, because it may take long, as when a library is compiled.
        count = plan.size(first.trial.params) - 1
        if count < 1 or self._stop.requested:
            return [first]
        names = plan.common_params(first.trial.params)
        paused = None if paused_ids is None else paused_ids[1:]
        try:
            others = self.ask(partial(self._claim_others, first, count, names, exclude, paused))
        except ShutdownRequestedError:  # to undo a late claim saves nothing on a slow network
            return [first]
        self._active.update(others)
        return [first, *others]

    def _claim_first(
        self, claim_token: str, exclude: Collection[int], paused_ids: Sequence[int] | None
    ) -> Claim | None:
        """Claim a trial, in the thread; None if none waits."""
        trial_ids = self._find_claimed(claim_token)
        if not trial_ids:
            if paused_ids is not None:
                exclude = ()
                paused_ids = paused_ids[:1]
            trial_id = self._storage.claim(
                self._study_id, claim_token, self._lease_seconds, exclude, paused_ids
            )
            trial_ids = [] if trial_id is None else [trial_id]
        return next(iter(self._read_claimed(trial_ids, claim_token)), None)

    def _claim_others(
        self,
        first: Claim,
        count: int,
        names: Sequence[str],
        exclude: Collection[int],
        paused_ids: Sequence[int] | None,
    ) -> list[Claim]:
        """Claim trials that share parameters with a claimed one, in the thread."""
        trial_ids = self._find_claimed(first.claim_token)
        if trial_ids in ([], [first.trial_id]):
            try:
                trial_ids = self._storage.claim_matching(
                    first.trial_id, first.claim_token, count, names, exclude, paused_ids
                )
            except LeaseLostError:  # since the first claim; the next flush finds it
                return []
        claims = self._read_claimed(trial_ids, first.claim_token)
        return [claim for claim in claims if claim.trial_id != first.trial_id]

    def _find_claimed(self, claim_token: str) -> list[int]:
        """Return the ids of the trials that an earlier attempt has claimed, if this is a retry."""
        if not self._is_retry:
            return []
        leases = self._storage.running_leases(self._study_id)
        return [key for key, lease in leases.items() if lease.claim_token == claim_token]

    def finish(
        self,
        claim: Claim,
        state: TrialState,
        value: float | None = None,
        attributes: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """Finish a trial, or pause it (``WAITING``).

        See :meth:`studies.storage.storage.LeasedRDBStorage.finish` and ``pause``.

        Raises:
            LeaseLostError, ShutdownRequestedError, StorageUnavailableError: and the trial is not
                finished; the lease of one that was to be paused expires.
        """
        try:
            self.ask(partial(self._finish, claim, state, value, attributes))
        except LeaseLostError:
            claim.is_lost = True
            raise

    def _finish(
        self, claim: Claim, state: TrialState, value: float | None, attributes: Mapping[str, Any]
    ) -> None:
        """End a claim, in the thread; a retry may find it ended by an earlier attempt."""
        ids = claim.trial_id, claim.claim_token
        is_paused = state is TrialState.WAITING
        try:
            with claim.pending_write() as pending:
                if pending.replace_all or pending.checkpointed or pending.metrics:
                    self._storage.flush([pending])
                curve = {} if pending.replace_all else pending.curve
                if is_paused:
                    self._storage.pause(*ids, attributes, curve)
                else:
                    self._storage.finish(*ids, state, value, attributes, curve)
        except LeaseLostError:
            if not (self._is_retry and (is_paused or self._storage.is_finished_by(*ids))):
                raise
        self._active.discard(claim)

    def requeue_all(
        self,
        claims: Sequence[Claim],
        cause: Failure,
        error: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Requeue trials in one transaction, and mark the claims that are lost.

        Waits, without a timeout in seconds, until the end of an outage.

        Raises:
            ShutdownRequestedError, StorageUnavailableError: and the leases expire.
        """
        # A copy: the caller may continue before the thread is done.
        self.ask(partial(self._requeue, list(claims), cause, error), timeout=timeout)

    def _requeue(self, claims: Sequence[Claim], cause: Failure, error: str | None) -> None:
        lost = self._write(claims, lambda writes: self._storage.requeue_all(writes, cause, error))
        # All at once: an earlier attempt, of which only the answer was lost, requeued them.
        if not (self._is_retry and len(lost) == len(claims)):
            self._mark_lost(claims, lost)
        self._active.difference_update(claims)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._busy_since = time.monotonic()
                self._wake.wait(self._process())
                self._wake.clear()
        except Exception as error:  # of any kind: the caller raises it
            self._failure = self._find_cause(error)

    def _process(self) -> float:
        """Do what was asked and what is due; return the seconds until the next time."""
        try:
            while self._requests:
                self._answer(*self._requests[0])
                self._requests.popleft()
            # All claims together, though only some are due: each transaction costs a commit.
            if any(claim.due_at <= time.monotonic() for claim in list(self._active)):
                self._flush()
            if self._observe_at <= time.monotonic():
                self._requeue_expired()
        except Exception as error:  # is_transient says which begin an outage
            if not is_transient(error):
                raise
            self._outage_message = error_message(error)
            self._monitor.reset()
            # Random, so that clients that were refused together do not return together.
            seconds = random.uniform(0, self._retry_seconds)
            # A heartbeat must be sent before the lease expires.
            longest = min(_MAX_RETRY_SECONDS, self._lease_seconds / 8)
            self._retry_seconds = min(2 * self._retry_seconds, longest)
            return seconds
        self._busy_since = self._outage_message = None
        self._retry_seconds = _MIN_RETRY_SECONDS
        due_at = min([self._observe_at, *(claim.due_at for claim in list(self._active))])
        return min(due_at - time.monotonic(), _MAX_IDLE_SECONDS)

    def _answer(self, operation: Callable[[], _T], after_flush: bool, future: Future[_T]) -> None:
        self._is_retry = future.running()
        if not self._is_retry and not future.set_running_or_notify_cancel():
            return
        try:
            if after_flush:
                self._flush()
            result = operation()
        except Exception as error:  # of any kind: the caller of ask raises it
            if is_transient(error):
                raise
            future.set_exception(self._find_cause(error))
        else:
            future.set_result(result)

    def _note_statement(self, *statement: object) -> None:
        # Many statements may take long together while each one is answered.
        if threading.current_thread() is self._thread:
            self._busy_since = time.monotonic()

    def _find_cause(self, error: Exception) -> Exception:
        try:
            self._storage.verify()  # rows of a deleted study are not found
        except StorageLostError as lost:
            return lost
        except Exception:  # an outage began meanwhile: the first error says more
            return error
        return error

    def _flush(self) -> None:
        if claims := list(self._active):
            self._mark_lost(claims, self._write(claims, self._storage.flush))

    def _write(
        self, claims: Sequence[Claim], write: Callable[[list[PendingWrite]], list[int]]
    ) -> list[int]:
        """Write what claims have to write; return the ids of the trials that are lost."""
        with contextlib.ExitStack() as stack:
            return write([stack.enter_context(claim.pending_write()) for claim in claims])

    def _mark_lost(self, claims: Sequence[Claim], lost_ids: Collection[int]) -> None:
        lost = [claim for claim in claims if claim.trial_id in lost_ids]
        for claim in lost:
            claim.is_lost = True
        self._active.difference_update(lost)

    def _requeue_expired(self) -> None:
        trial_ids = self._storage.expire_leases(self._study_id, self._monitor, time.monotonic)
        shortest = min([self._lease_seconds, *self._monitor.durations()])
        self._observe_at = time.monotonic() + shortest / HEARTBEATS_PER_LEASE
        if trial_ids:
            requeued = self._storage.get_trials(self._study_id, trial_ids)
            trials = format_trials(trial.number for trial in requeued)
            _logger.info(f"{trials}: lease expired, its worker sent no heartbeat; requeued")

    def _read_claimed(self, trial_ids: Sequence[int], claim_token: str) -> list[Claim]:
        trials = self._storage.get_trials(self._study_id, trial_ids) if trial_ids else []
        return [Claim(trial, claim_token, self._lease_seconds) for trial in trials]
