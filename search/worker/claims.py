"""The trials that a worker holds: claimed, recorded, kept and let go of, beside its training.

The thread that trains never waits for the storage, except where there is nothing to be done until
it has answered; see :mod:`search.worker.storage_client`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from optuna.trial import FrozenTrial, TrialState

from search.errors import ShutdownRequestedError
from search.worker.claim import RENEWALS, Claim
from search.worker.shutdown import ShutdownSignal
from search.worker.storage_client import StorageClient
from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage.leases import LeaseMonitor
from studies.storage.queue import PendingWrite
from studies.storage.storage import LeasedRDBStorage

CHOICES = 3
"""How often a paused trial is chosen anew because somebody else was quicker."""

CONSULT_SECONDS = 2.5
"""How long an answer on which training does not depend is waited for."""

RECORD_SECONDS = 1.0
"""Between two times that a running trial's new values are recorded: each costs a commit."""

_T = TypeVar("_T")


class ClaimManager(StorageClient):
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
        storage: LeasedRDBStorage,
        study_id: int,
        worker: str,
        stop: ShutdownSignal,
        says: Callable[[str], None],
        lease_seconds: float = 120,
        outage_seconds: float = 600,
    ) -> None:
        # Not so long that a lease runs out before it can be renewed again.
        super().__init__(stop, says, outage_seconds, longest_pause=lease_seconds / 8)
        self._storage = storage
        self._study_id = study_id
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._held: list[Claim] = []
        self._watch = LeaseMonitor()
        self._watch_at = 0.0

    # ------------------------------------------------------------------ for the one who trains

    def claim(
        self,
        avoid: Collection[int] = (),
        alike: Sequence[str] = (),
        limit: Callable[[FrozenTrial], int] = lambda trial: 1,
        choose: Callable[[], Sequence[int]] = tuple,
    ) -> list[Claim]:
        """Take the next waiting point, and others that are like it.

        Args:
            avoid: the ids of trials that are taken only if no other waits, and then alone.
            alike: the parameters whose values must be the same, where a trial has them.
            limit: says how many to take in all, if the first is this trial.
            choose: where no other waits, reads which paused trial to go on with, and after it those
                that may be taken along; nothing for none.

        Returns:
            The claims; none if no point waits, or none is wanted.

        Raises:
            ShutdownRequestedError: if a stop is asked for before the storage has answered.
            StorageUnavailableError: if it has been away for too long.
        """
        claim_token = f"{self._worker}/{uuid4().hex}"

        def attempt(tried: bool) -> list[Claim]:
            taken: list[int] = []
            if tried:  # it may have been done, and only the answer been lost
                self._held = [claim for claim in self._held if claim.claim_token != claim_token]
                running_leases = self._storage.running_leases(self._study_id).items()
                taken = [key for key, lease in running_leases if lease.claim_token == claim_token]
            first = taken.pop(0) if taken else None
            fellows: Sequence[int] | None = None
            study_id, seconds = self._study_id, self._lease_seconds
            if first is None:
                first = self._storage.claim(study_id, claim_token, seconds, avoid)
            for _ in range(CHOICES):
                if first is not None or not (chosen := choose()):
                    break
                # None if somebody else has just taken it: then others may be wanted.
                first = self._storage.claim(study_id, claim_token, seconds, paused_ids=chosen[:1])
                fellows = chosen[1:]
            if first is None and avoid:
                first = self._storage.claim(study_id, claim_token, seconds)
            if first is None:
                return []
            claims = [self._hold(first, claim_token)]
            if not taken and first not in avoid:
                taken = more(claims[0], fellows)
            return claims + [self._hold(trial_id, claim_token) for trial_id in taken]

        def more(first: Claim, fellows: Sequence[int] | None) -> list[int]:
            others = limit(first.trial) - 1
            if others < 1 or (fellows is not None and not fellows):
                return []
            own = [parameter for parameter in alike if parameter in first.trial.params]
            try:
                return self._storage.claim_matching(
                    first.trial_id, claim_token, others, own, avoid, fellows
                )
            except LeaseLostError:  # between the two; it will be seen where others are
                return []

        return self._do(attempt)

    def check(self) -> None:
        """Look, in the midst of training, at how the storage stands; see ``Claim.lost`` too.

        Raises:
            StorageUnavailableError: if the storage has been away for too long.
        """
        self._tell()
        self._require_patience()

    def consult(self, query: Callable[[], _T]) -> _T | None:
        """Have all that is known of the trials in hand recorded, then read something.

        Returns:
            What is read; None if the storage does not answer soon.

        Raises:
            StorageUnavailableError: if it has been away for too long.
        """

        def attempt(tried: bool) -> _T:
            self._keep(list(self._held))
            return query()

        if self.trouble:
            return None
        try:
            return self._do(attempt, CONSULT_SECONDS)
        except ShutdownRequestedError:
            return None

    def finish(
        self, claim: Claim, state: TrialState, value: float | None, attributes: Mapping[str, Any]
    ) -> None:
        """Record a trial's end; see :meth:`studies.storage.storage.LeasedRDBStorage.finish`.

        Raises:
            ClaimLost, Stopped, StorageOutage: and the trial's end is not recorded.
        """

        def attempt(tried: bool) -> None:
            if tried and self._storage.is_finished_by(claim.trial_id, claim.claim_token):
                return
            curve = self._last_values(claim)
            self._storage.finish(claim.trial_id, claim.claim_token, state, value, attributes, curve)

        self._let_go(claim, attempt)

    def pause(self, claim: Claim, attributes: Mapping[str, Any]) -> None:
        """Pause a trial; see :meth:`studies.storage.storage.LeasedRDBStorage.pause`.

        Raises:
            ClaimLost, Stopped, StorageOutage: and the lease is left to run out.
        """
        self._let_wait(
            claim,
            lambda curve: self._storage.pause(claim.trial_id, claim.claim_token, attributes, curve),
        )

    def requeue(
        self,
        claim: Claim,
        cause: Failure,
        error: str | None = None,
        within: float | None = None,
    ) -> None:
        """Requeue a trial; see :meth:`studies.storage.storage.LeasedRDBStorage.requeue`.

        Args:
            claim: of the trial.
            cause: of its coming back.
            error: the exception, in one line.
            within: seconds after which the storage is not waited for.

        Raises:
            ClaimLost, Stopped, StorageOutage: and the lease is left to run out.
        """

        def write(curve: Mapping[int, float]) -> None:
            self._storage.requeue(claim.trial_id, claim.claim_token, cause, error, curve)

        self._let_wait(claim, write, within)

    def _let_wait(
        self,
        claim: Claim,
        write: Callable[[Mapping[int, float]], None],
        within: float | None = None,
    ) -> None:
        def attempt(tried: bool) -> None:
            try:
                write(self._last_values(claim))
            except LeaseLostError:
                if not tried:  # else it may have been done, and only the answer been lost
                    raise

        self._let_go(claim, attempt, within)

    def _let_go(
        self, claim: Claim, attempt: Callable[[bool], None], within: float | None = None
    ) -> None:
        def operation(tried: bool) -> None:
            attempt(tried)
            if claim in self._held:
                self._held.remove(claim)

        try:
            self._do(operation, within)
        except LeaseLostError as lost:
            claim.lost = lost
            raise

    # ------------------------------------------------------------------ the thread

    def _next_time(self) -> float:
        return min([self._watch_at, *(claim.due_at for claim in list(self._held))])

    def _do_upkeep(self) -> None:
        # Together, though not all of it is due: each transaction costs a commit.
        if min((claim.due_at for claim in self._held), default=math.inf) <= time.monotonic():
            self._keep(list(self._held))
        if self._watch_at <= time.monotonic():
            self._look_at_others()

    def _keep(self, claims: Sequence[Claim]) -> None:
        """Record what there is of trials, and renew their leases."""
        now = time.monotonic()
        unrecorded = [claim.unrecorded() for claim in claims]
        lost = self._storage.flush(
            PendingWrite(
                claim.trial_id,
                claim.claim_token,
                values.curve,
                values.replace_all,
                claim.renew_at <= now,
            )
            for claim, values in zip(claims, unrecorded, strict=True)
        )
        for claim, values in zip(claims, unrecorded, strict=True):
            if claim.trial_id in lost:
                claim.lost = LeaseLostError(
                    f"trial id {claim.trial_id} is no longer held by {claim.claim_token}; "
                    "it is dropped"
                )
                self._held.remove(claim)
                continue
            claim.recorded(values)
            if claim.renew_at <= now:
                claim.renewed()
            claim.record_at = time.monotonic() + RECORD_SECONDS

    def _last_values(self, claim: Claim) -> dict[int, float]:
        """Return what is to be recorded together with a trial's end."""
        values = claim.unrecorded()
        if values.replace_all:
            self._storage.report(
                claim.trial_id, claim.claim_token, values.curve, values.replace_all
            )
            claim.recorded(values)
            return {}
        return values.curve

    def _look_at_others(self) -> None:
        released = self._storage.expire_leases(self._study_id, self._watch, time.monotonic)
        shortest = min([self._lease_seconds, *self._watch.durations()])
        self._watch_at = time.monotonic() + shortest / RENEWALS
        for trial_id in released:
            number = self._storage.get_trial_number_from_id(trial_id)
            self._news.append(
                f"trial {number}: its worker was not heard of for the length of its lease; the "
                "point waits again"
            )

    def _is_away(self) -> None:
        self._watch.reset()

    def _hold(self, trial_id: int, claim_token: str) -> Claim:
        claim = Claim(self._storage.get_trial(trial_id), claim_token, self._lease_seconds)
        self._held.append(claim)
        return claim

    def _undo(self, result: object) -> None:
        found = result if isinstance(result, list) else ()
        claims = [claim for claim in found if isinstance(claim, Claim)]
        # Before the storage is asked: their leases must not be renewed any more.
        self._held = [claim for claim in self._held if claim not in claims]
        for claim in claims:
            with contextlib.suppress(
                LeaseLostError
            ):  # also if the answer to a first attempt was lost
                self._storage.requeue(claim.trial_id, claim.claim_token, Failure.INTERRUPTED)
