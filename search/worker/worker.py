"""A worker: claim points → have them trained → record what came of each, until none is left."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from optuna.exceptions import OptunaError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.errors import ShutdownRequestedError, format_error
from search.pruning.pause_resume import PauseResumeScheduler, PruneDecision
from search.worker.claims import Claim, ClaimManager
from search.worker.protocols import Trainer, TrialEvent, TrialResult, WorkerCallbacks
from search.worker.shutdown import ShutdownSignal
from search.worker.storage_client import SHUTDOWN_GRACE
from studies.attributes import RETRY_COUNTS, Failure
from studies.errors import LeaseLostError, StorageUnavailableError
from studies.space import COST_PARAMS, REPLICATE
from studies.storage.counts import TrialCounts

LOOK_SECONDS = 0.25
"""Between two looks, in the midst of training, at how things stand and what signals ask."""

POLL_SECONDS = (1.0, 10.0)
"""Between two looks for a point, while the last ones are in other workers' hands: at first, and
when it has taken long."""

PATIENCE_SECONDS = 600.0
"""How long a worker waits for what those that run will tell, before it goes on with paused points
all the same."""

LEAVE_SECONDS = 1.0
"""How long giving a point back may take a worker that is to leave at once."""

ALIKE = (*COST_PARAMS, REPLICATE)
"""The parameters in which networks that are trained together are the same: those of their shape,
and the replicate's number, for each replicate reads another text."""

RETRIES = 3
"""How often a point is run again after an error."""


class Worker:
    """Works on a study until all its points are finished.

    Args:
        keeper: of the claims, entered.
        trainer: trains the points.
        count: reads the study's accounting.
        stop: looked at between steps.
        callbacks: called at the worker's events.
        wait: stay until the points that others hold are finished too.
        pausing: decides which points are put off, and when they are gone on with; None where every
            point is run to its end.
    """

    def __init__(
        self,
        keeper: ClaimManager,
        trainer: Trainer,
        count: Callable[[], TrialCounts],
        stop: ShutdownSignal,
        callbacks: WorkerCallbacks,
        wait: bool = True,
        pausing: PauseResumeScheduler | None = None,
    ) -> None:
        self.keeper = keeper
        self.trainer = trainer
        self.count = count
        self.stop = stop
        self.callbacks = callbacks
        self.wait = wait
        self.pausing = pausing
        self._failed_here: set[int] = set()
        self._looked = 0.0
        self._idle = 0.0  # seconds, waited for others
        self._in_hand: list[Claim] = []
        self._began = 0.0

    def run(self) -> None:
        """Work. Returns when a stop is asked for, or no point is left.

        Raises:
            StorageUnavailableError: if the storage has been away for too long.
        """
        while not self.stop.requested:
            try:
                claims = self.keeper.claim(
                    self._failed_here, ALIKE, self.trainer.limit, self._choose
                )
                if claims:
                    self._work_on(claims)
                    self._idle = 0.0
                    continue
                self._conclude()
                counts = self.keeper.read(self.count)
            except ShutdownRequestedError:
                return
            if not self.wait or counts.finished == counts.planned:
                return
            self.trainer.rest()
            self.callbacks.on_wait()
            shortest, longest = POLL_SECONDS
            pause = min(shortest + self._idle / 10, longest) * random.uniform(0.5, 1)
            self._idle += pause
            self.stop.wait(pause)

    def _choose(self) -> list[int]:
        """Read which paused trials to go on with."""
        if self.pausing is None:
            return []
        # One that runs for ever, as of a process that hangs, is not to hold all others up.
        at_any_rate = self._idle > PATIENCE_SECONDS
        return self.pausing.select_to_resume(
            self.trainer.min_keep_probability, self._failed_here, at_any_rate
        )

    def _judge(self, claims: Sequence[Claim]) -> Mapping[Claim, PruneDecision]:
        """Read what is to become of trials at a rung; while the storage is away, they go on."""
        pausing, by_id = self.pausing, {claim.trial_id: claim for claim in claims}
        if pausing is None or not claims:
            return {}
        try:
            found = (
                self.keeper.query_after_flush(lambda: pausing.decide(by_id, self._failed_here))
                or {}
            )
        except (ShutdownRequestedError, StorageUnavailableError, SQLAlchemyError, OptunaError):
            raise
        except Exception as error:  # which is none of the training's, and must not count as such
            self.callbacks.on_message(f"warning: nothing could be decided ({format_error(error)})")
            return {}
        return {by_id[trial_id]: verdict for trial_id, verdict in (found or {}).items()}

    def _conclude(self) -> None:
        """Prune what is paused, if that is final."""
        if self.pausing is None:
            return
        pruned = self.keeper.read(self.pausing.prune_paused)
        for number in pruned:
            self.trainer.forget(number)
        if pruned:
            self.callbacks.on_message(f"pruned {len(pruned)} paused trials")

    def _work_on(self, claims: list[Claim]) -> None:
        """Run trials to their ends; whatever happens, none of them stays in hand."""
        self._in_hand, self._began = claims, time.monotonic()
        try:
            self._train(claims)
        except ShutdownRequestedError:
            self.trainer.keep(self._held())
            for claim, is_back in self._give_all_back(SHUTDOWN_GRACE):
                self._done(
                    claim,
                    "given back" if is_back else "left to who finds that its lease has run out",
                )
        except StorageUnavailableError:
            self.trainer.keep(self._held())
            raise
        except BaseException:  # a closed pipe, a second Ctrl-C: the points are not lost
            for _ in self._give_all_back(LEAVE_SECONDS):
                pass  # nobody may be there to be told
            raise

    def _give_all_back(self, within: float) -> Iterator[tuple[Claim, bool]]:
        """Give back what is in hand; say of each if that was done in so many seconds for all."""
        end = time.monotonic() + within
        for claim in self._held():
            left = end - time.monotonic()
            yield claim, left > 0 and self._try_to_give_back(claim, left)

    def _train(self, claims: Sequence[Claim]) -> None:
        """Train trials together; after an error in halves, until it is known whose it is."""
        try:
            for claim, outcome in self.trainer.train(claims, self._look, self._judge):
                self._finish(claim, outcome)
            self._held()
            return
        except (
            ShutdownRequestedError,
            LeaseLostError,
            StorageUnavailableError,
            SQLAlchemyError,
            OptunaError,
        ):
            raise
        except Exception as raised:  # whatever it is, it is a point's own, and others may do well
            # Without what it was raised in, which would keep all of that one's memory.
            error = raised.with_traceback(None)
        held = self._held()
        left = [claim for claim in claims if claim in held]
        if len(left) > 1:
            self.callbacks.on_message(
                f"{len(left)} trials that are trained together failed ({format_error(error)}); "
                "they go on in halves"
            )
            middle = len(left) // 2
            self._train(left[:middle])
            self._train(left[middle:])
        elif left:
            self._fail(left[0], error)

    def _fail(self, claim: Claim, error: Exception) -> None:
        """Give a trial back to be run again, or up."""
        line = format_error(error)
        cause, attributes = self.trainer.failure(error, claim)
        retries = claim.trial.user_attrs.get(RETRY_COUNTS, {})
        if sum(retries.get(failure, 0) for failure in Failure if failure.is_error) >= RETRIES:
            words = f"failed for good ({line})"
            self._finish(claim, TrialResult(TrialState.FAIL, None, attributes, words))
            return
        self._failed_here.add(claim.trial_id)
        try:
            self.keeper.requeue(claim, cause, line)
        except LeaseLostError:
            self._held()
            return
        self._done(claim, "failed, and waits to be run again")

    def _finish(self, claim: Claim, outcome: TrialResult) -> None:
        """Record a trial's end, or that it is put off."""
        is_paused = outcome.state is TrialState.WAITING
        try:
            if is_paused:
                self.keeper.pause(claim, outcome.attributes)
            else:
                self.keeper.finish(claim, outcome.state, outcome.value, outcome.attributes)
        except LeaseLostError:
            self._held()
            return
        if not is_paused:
            self.trainer.forget(claim.trial.number)
        self._done(claim, outcome.message, outcome.value, is_paused)

    def _done(
        self, claim: Claim, words: str, value: float | None = None, is_paused: bool = False
    ) -> None:
        self._in_hand.remove(claim)
        seconds = time.monotonic() - self._began
        self.callbacks.on_trial_end(TrialEvent(claim.trial, words, value, seconds, is_paused))

    def _held(self) -> list[Claim]:
        """Return the claims in hand; those that are lost meanwhile are dropped."""
        for claim in [claim for claim in self._in_hand if claim.lost]:
            self._done(claim, "dropped: another worker has taken it over")
        return list(self._in_hand)

    def _look(self) -> bool:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        self.keeper.check()
        if self.stop.requested:
            raise ShutdownRequestedError
        return True

    def _try_to_give_back(self, claim: Claim, within: float) -> bool:
        try:
            self.keeper.requeue(claim, Failure.INTERRUPTED, timeout=within)
        except (
            SQLAlchemyError,
            OptunaError,
            ShutdownRequestedError,
            LeaseLostError,
            StorageUnavailableError,
        ):
            return False
        return True
