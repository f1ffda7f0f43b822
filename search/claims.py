"""The trials that a worker holds, and all its business with the storage, beside its training.

One thread talks to the storage: it records, renews leases, watches those of others, and tries again
while the storage is away. The thread that trains never waits for it, except where there is nothing
to be done until the storage has answered; even then it hears a signal.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Self, TypeVar
from uuid import uuid4

from optuna.trial import FrozenTrial, TrialState

from search.errors import Stopped
from search.stopping import StopRequest
from studies.errors import ClaimLost, StorageOutage
from studies.leases import Watch
from studies.outages import is_outage, reason
from studies.records import Failure
from studies.storage import Storage

RECORD_SECONDS = 1.0
"""Between two times that a running trial's new values are recorded: each costs a commit."""

GRACE_SECONDS = 2.5
"""How long an answer of the storage is still waited for once a stop is asked for."""

SILENCE_SECONDS = 5.0
"""After which a storage that neither answers nor refuses is said to be away."""

_LONGEST_PAUSE_SECONDS = 5.0
_RENEWALS = 4
"""In the length of a lease: three may fail before it runs out."""

_T = TypeVar("_T")


class Claim:
    """A trial that this worker holds.

    Attributes:
        trial: as it was claimed, with the curve and the setbacks that it had.
        owner: the token of this claim.
    """

    def __init__(self, trial: FrozenTrial, owner: str, lease_seconds: float) -> None:
        self.trial = trial
        self.owner = owner
        self.lost: ClaimLost | None = None
        self.record_at = 0.0
        self._curve: dict[int, float] = {}
        self._anew = False
        self._lock = threading.Lock()
        self._pause = lease_seconds / _RENEWALS
        self.renewed()

    @property
    def trial_id(self) -> int:
        """The trial's id in the storage."""
        return self.trial._trial_id

    def report(self, step: int, value: float) -> None:
        """Have an intermediate value recorded; what is not recorded yet is kept."""
        with self._lock:
            self._curve[step] = value

    def begin_with(self, curve: Mapping[int, float]) -> None:
        """Have the trial's curve be this one and no longer, whatever was recorded before."""
        with self._lock:
            self._curve, self._anew = dict(curve), True

    def unrecorded(self) -> tuple[dict[int, float], bool]:
        """Return the values still to be recorded, and if they are to take the place of all."""
        with self._lock:
            return self._curve.copy(), self._anew

    def recorded(self, curve: Mapping[int, float]) -> None:
        """Take note that these values, of those still to be recorded, are."""
        with self._lock:
            self._anew = False
            for step in curve:
                del self._curve[step]

    def renewed(self) -> None:
        """Take note that the lease is as good as new."""
        self.renew_at = time.monotonic() + self._pause


class _Task(Generic[_T]):
    """Something to be done by the thread, and what came of it."""

    def __init__(self, operation: Callable[[bool], _T]) -> None:
        self._operation = operation
        self._tried = False
        self.abandoned = False
        self.done = threading.Event()
        self.result: _T | None = None
        self.error: BaseException | None = None

    def attempt(self) -> None:
        """Do it; an outage is the caller's, all else is the waiting thread's."""
        tried, self._tried = self._tried, True
        try:
            self.result = self._operation(tried)
        except Exception as error:
            if is_outage(error):
                raise
            self.error = error
        self.done.set()

    def fail(self, error: BaseException) -> None:
        """Give it up."""
        self.error = error
        self.done.set()


class ClaimKeeper:
    """Claims trials, keeps them and lets go of them; a context that begins and ends its thread.

    Args:
        storage: that holds the study.
        study_id: of the study.
        worker: this worker's name.
        stop: what signals ask for.
        says: told of what a person should know, by the thread that trains.
        lease_seconds: without a renewal, after which a trial of this worker is anybody's.
        outage_seconds: how long a storage that is away is waited for.
    """

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        worker: str,
        stop: StopRequest,
        says: Callable[[str], None],
        lease_seconds: float = 120,
        outage_seconds: float = 600,
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self._worker = worker
        self._stop = stop
        self._says = says
        self._lease_seconds = lease_seconds
        self._outage_seconds = outage_seconds
        self._changed = threading.Condition()
        self._tasks: deque[_Task[Any]] = deque()
        self._held: list[Claim] = []
        self._watch = Watch()
        self._watch_at = 0.0
        self._watch_pause = lease_seconds / _RENEWALS
        self._news: deque[str] = deque()
        self._since: float | None = None  # when the thread began with what is not done yet
        self._refusal: str | None = None
        self._looked = time.monotonic()
        self._away = 0.0
        self._told = False
        self._broken: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(GRACE_SECONDS)

    # ------------------------------------------------------------------ for the one who trains

    @property
    def trouble(self) -> str | None:
        """What is wrong with the storage now; None if nothing is."""
        since, refusal = self._since, self._refusal
        if refusal is None and since is not None and time.monotonic() - since > SILENCE_SECONDS:
            return "it does not answer"
        return refusal

    def claim(self, avoid: Collection[int] = ()) -> Claim | None:
        """Take the next waiting point.

        Args:
            avoid: the ids of trials that are taken only if no other waits.

        Returns:
            None if no point waits.

        Raises:
            Stopped: if a stop is asked for before the storage has answered.
            StorageOutage: if it has been away for too long.
        """
        owner = f"{self._worker}/{uuid4().hex}"

        def attempt(tried: bool) -> Claim | None:
            trial_id = None
            if tried:  # it may have been done, and only the answer been lost
                leases = self._storage.leases(self._study_id).items()
                trial_id = next((key for key, lease in leases if lease.owner == owner), None)
            if trial_id is None:
                trial_id = self._storage.claim(self._study_id, owner, self._lease_seconds, avoid)
            if trial_id is None:
                return None
            claim = Claim(self._storage.get_trial(trial_id), owner, self._lease_seconds)
            self._held.append(claim)
            return claim

        return self._do(attempt)

    def check(self, claim: Claim) -> None:
        """Look, in the midst of training, at how the trial and the storage stand.

        Raises:
            ClaimLost: if another worker has taken the trial over.
            StorageOutage: if the storage has been away for too long.
        """
        self._tell()
        if claim.lost:
            raise claim.lost
        self._require_patience()

    def finish(
        self, claim: Claim, state: TrialState, value: float | None, attributes: Mapping[str, Any]
    ) -> None:
        """Record a trial's end; see :meth:`studies.storage.Storage.finish`.

        Raises:
            ClaimLost, Stopped, StorageOutage: and the trial's end is not recorded.
        """

        def attempt(tried: bool) -> None:
            if tried and self._storage.has_finished(claim.trial_id, claim.owner):
                return
            curve = self._last_values(claim)
            self._storage.finish(claim.trial_id, claim.owner, state, value, attributes, curve)

        self._let_go(claim, attempt)

    def give_back(
        self,
        claim: Claim,
        cause: Failure,
        error: str | None = None,
        within: float | None = None,
    ) -> None:
        """Let a trial wait for another worker; see :meth:`studies.storage.Storage.give_back`.

        Args:
            claim: of the trial.
            cause: of its coming back.
            error: the exception, in one line.
            within: seconds after which the storage is not waited for.

        Raises:
            ClaimLost, Stopped, StorageOutage: and the lease is left to run out.
        """

        def attempt(tried: bool) -> None:
            try:
                curve = self._last_values(claim)
                self._storage.give_back(claim.trial_id, claim.owner, cause, error, curve)
            except ClaimLost:
                if not tried:  # else it may have been done, and only the answer been lost
                    raise

        self._let_go(claim, attempt, within)

    def read(self, query: Callable[[], _T], within: float | None = None) -> _T:
        """Have the thread read something from the storage.

        Args:
            query: reads it.
            within: seconds after which the storage is not waited for.

        Raises:
            Stopped, StorageOutage: before it is read.
        """
        return self._do(lambda tried: query(), within)

    # ------------------------------------------------------------------ tasks

    def _let_go(
        self, claim: Claim, attempt: Callable[[bool], None], within: float | None = None
    ) -> None:
        def operation(tried: bool) -> None:
            attempt(tried)
            if claim in self._held:
                self._held.remove(claim)

        try:
            self._do(operation, within)
        except ClaimLost as lost:
            claim.lost = lost
            raise

    def _do(self, operation: Callable[[bool], _T], within: float | None = None) -> _T:
        task = _Task(operation)
        if self._closed:
            raise Stopped
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()
        began = time.monotonic()
        stopped_at = None if within is None else began + within
        while not task.done.wait(0.1):
            self._tell()
            self._require_patience()
            if stopped_at is None and self._stop.requested:
                stopped_at = time.monotonic() + GRACE_SECONDS
            if stopped_at is not None and time.monotonic() > stopped_at:
                task.abandoned = True
                raise Stopped
        self._tell()
        if task.error is not None:
            raise task.error
        return task.result  # type: ignore[return-value]  # set where there is no error

    def _require_patience(self) -> None:
        if self._broken is not None:
            raise self._broken
        now, trouble = time.monotonic(), self.trouble
        # A worker that was itself frozen has not seen the storage be away meanwhile.
        elapsed, self._looked = min(now - self._looked, SILENCE_SECONDS), now
        if trouble is None:
            self._away = 0.0
            return
        self._away += elapsed
        if self._away > self._outage_seconds:
            raise StorageOutage(
                f"the storage has been away for {self._away:.0f} s ({trouble}), waited for are "
                f"{self._outage_seconds:g} s; what is recorded is kept; mend it and run again"
            )

    def _tell(self) -> None:
        while self._news:
            self._says(self._news.popleft())
        trouble = self.trouble
        if trouble and not self._told:
            self._says(f"the storage is away ({trouble}); what is found meanwhile is kept")
        elif self._told and not trouble:
            self._says("the storage is back")
        self._told = trouble is not None

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        failures = 0
        while not self._closed:
            if not self._is_due():
                self._rest()
                continue
            if self._since is None:
                self._since = time.monotonic()
            try:
                self._do_what_is_due()
            except Exception as error:
                if not is_outage(error):
                    self._give_up(error)
                    return
                failures += 1
                self._refusal = reason(error)
                self._watch.forget()
                self._pause(failures)
            else:
                failures = 0
                self._since = self._refusal = None

    def _is_due(self) -> bool:
        return bool(self._tasks) or self._next_time() <= time.monotonic()

    def _next_time(self) -> float:
        times = [self._watch_at]
        for claim in list(self._held):
            times.append(claim.renew_at)
            if any(claim.unrecorded()):
                times.append(claim.record_at)
        return min(times)

    def _rest(self) -> None:
        with self._changed:
            if not self._tasks and not self._closed:
                # A value that is reported meanwhile waits for no longer than is said.
                left = self._next_time() - time.monotonic()
                self._changed.wait(min(max(left, 0.0), RECORD_SECONDS))

    def _pause(self, failures: int) -> None:
        # Not so long that a lease runs out before it can be renewed again.
        longest = min(_LONGEST_PAUSE_SECONDS, self._lease_seconds / 8)
        seconds = random.uniform(0.02, min(0.05 * 2 ** min(failures, 9), longest))
        with self._changed:
            waiting = len(self._tasks)  # who comes now is in a hurry
            self._changed.wait_for(lambda: self._closed or len(self._tasks) > waiting, seconds)

    def _do_what_is_due(self) -> None:
        while self._tasks:
            task = self._tasks[0]
            task.attempt()
            self._tasks.popleft()
            if task.abandoned and isinstance(task.result, Claim):  # nobody is there to train it
                self._held.remove(task.result)
                owner = task.result.owner
                self._storage.give_back(task.result.trial_id, owner, Failure.INTERRUPTED)
        for claim in list(self._held):
            try:
                self._keep(claim)
            except ClaimLost as lost:
                claim.lost = lost
                self._held.remove(claim)
        if self._watch_at <= time.monotonic():
            self._look_at_others()

    def _keep(self, claim: Claim) -> None:
        if claim.renew_at <= time.monotonic():
            self._storage.renew(claim.trial_id, claim.owner)
            claim.renewed()
        if claim.record_at <= time.monotonic():
            self._record(claim)

    def _record(self, claim: Claim) -> None:
        curve, anew = claim.unrecorded()
        if curve or anew:
            self._storage.report(claim.trial_id, claim.owner, curve, anew)
            claim.recorded(curve)
        claim.record_at = time.monotonic() + RECORD_SECONDS

    def _last_values(self, claim: Claim) -> dict[int, float]:
        """Return what is to be recorded together with a trial's end."""
        curve, anew = claim.unrecorded()
        if anew:
            self._record(claim)
            return {}
        return curve

    def _look_at_others(self) -> None:
        released = self._storage.release_stale(self._study_id, self._watch, time.monotonic)
        shortest = min([self._lease_seconds, *self._watch.lengths()])
        self._watch_pause = shortest / _RENEWALS
        self._watch_at = time.monotonic() + self._watch_pause
        for trial_id in released:
            self._news.append(
                f"trial id {trial_id} was not heard of for the length of its lease; it waits again"
            )

    def _give_up(self, error: BaseException) -> None:
        self._broken = error
        for task in list(self._tasks):
            task.fail(error)
