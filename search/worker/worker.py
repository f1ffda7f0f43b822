"""Worker: claims trials, has them trained and records their results until none is left."""

import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from optuna.exceptions import OptunaError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.display import QuietDisplay
from search.errors import ShutdownRequestedError, format_error, is_bug
from search.pruning.audit import describe_look
from search.pruning.policy import Decisions, PruneDecision
from search.pruning.scheduler import PauseResumeScheduler
from search.status import TrialEvent
from search.worker.claims import SHUTDOWN_GRACE, Claim, ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.attributes import RETRY_COUNTS, Failure
from studies.errors import LeaseLostError, StorageUnavailableError
from studies.storage.counts import TrialCounts
from studies.text import format_trials

if TYPE_CHECKING:  # it imports PyTorch
    from search.worker.trainer import Trainer

POLL_INTERVAL = 0.25
"""Seconds between two checks for lost claims, outages and shutdown during training."""

CLAIM_INTERVALS = (1.0, 10.0)
"""Shortest and longest time in seconds between two attempts to claim while others run the rest."""

MAX_SELECT_ATTEMPTS = 3
"""How often to select a paused trial again after another worker has claimed the selected one."""

PRUNER_WAIT_TIMEOUT = 600.0
"""Seconds to wait for results of running trials before paused trials resume without them."""

REQUEUE_TIMEOUT = 1.0
"""Seconds for requeuing trials when the worker has to exit at once."""

MAX_RETRIES = 3
"""How often a trial is retried after errors."""

_STORAGE_ERRORS = (
    ShutdownRequestedError,
    LeaseLostError,
    StorageUnavailableError,
    SQLAlchemyError,
    OptunaError,
)

_logger = logging.getLogger(__name__)


PrunerCallback = Callable[[Sequence[Claim]], Mapping[Claim, PruneDecision]]
"""Asks about these trials, all at a rung; returns which of them are paused or pruned now; the
others continue."""


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial that was trained to its end, pruned or paused.

    Attributes:
        state: COMPLETE, PRUNED or FAIL; WAITING for a paused trial, whose checkpoint is written.
        value: objective value of a complete trial, else None.
        attributes: user attributes to record with the trial.
        message: description of the outcome.
    """

    state: TrialState
    value: float | None
    attributes: Mapping[str, Any]
    message: str


class Worker:
    """Works on a study until all its trials are finished.

    Args:
        manager: entered claim manager.
        trainer: trains the trials.
        count_trials: reads the study's trial counts.
        stop: checked between steps.
        callbacks: display that is told of the worker's events.
        wait: whether to stay until the trials that others run are finished too.
        scheduler: decides which trials are paused, resumed and pruned; None to train every trial to
            its end.
    """

    def __init__(
        self,
        manager: ClaimManager,
        trainer: "Trainer",
        count_trials: Callable[[], TrialCounts],
        stop: ShutdownSignal,
        callbacks: QuietDisplay,
        wait: bool = True,
        scheduler: PauseResumeScheduler | None = None,
    ) -> None:
        self.manager = manager
        self.trainer = trainer
        self.count_trials = count_trials
        self.stop = stop
        self.callbacks = callbacks
        self.wait = wait
        self.scheduler = scheduler
        self._active: list[Claim] = []
        self._failed_ids: set[int] = set()  # claimed again only if no other trial waits
        self._batch_started_at = 0.0
        self._polled_at = 0.0
        self._idle_seconds = 0.0

    def run(self) -> None:
        """Work until no trial is left or a shutdown is requested.

        Raises:
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        while not self.stop.requested:
            try:
                if claims := self._claim():
                    self._run_batch(claims)
                    self._idle_seconds = 0.0
                    continue
                counts = self.manager.ask(self.count_trials)
            except ShutdownRequestedError:
                return
            if not self.wait or counts.finished == counts.planned:
                return
            self.trainer.budget.release()  # until the next training
            self.callbacks.on_wait()
            shortest, longest = CLAIM_INTERVALS
            seconds = min(shortest + self._idle_seconds / 10, longest) * random.uniform(0.5, 1)
            self._idle_seconds += seconds
            self.stop.wait(seconds)

    def _claim(self) -> list[Claim]:
        """Claim waiting trials, else paused ones, else one that has failed in this process."""
        plan = self.trainer.lockstep_plan
        claims = self.manager.claim(self._failed_ids, plan.common_params, plan.size)
        for _ in range(MAX_SELECT_ATTEMPTS):
            if claims or self.scheduler is None or not (selected := self._select(self.scheduler)):
                break
            claims = self.manager.claim(self._failed_ids, plan.common_params, plan.size, selected)
        return claims or (self.manager.claim() if self._failed_ids else [])

    def _decide(self, claims: Sequence[Claim]) -> Mapping[Claim, PruneDecision]:
        """Decide which of these trials, which have just reached a rung, are paused or pruned.

        The storage thread reads and writes, and sends heartbeats meanwhile. In an outage all
        trials continue.
        """
        if not claims or self.scheduler is None:
            return {}
        manager, scheduler = self.manager, self.scheduler
        claimed = {claim.trial_id: claim for claim in claims}
        reading = manager.submit(scheduler.read, after_flush=True)
        while not futures.wait([reading], 0.1).done:
            self._poll()
            if manager.unavailable_reason:
                reading.cancel()
                return {}

        def decide() -> Decisions:
            progress = reading.result()
            decisions = scheduler.decide(progress, claimed, self._failed_ids)
            if decisions.audited:
                manager.submit(partial(scheduler.store, progress, decisions), after_flush=True)
            return decisions

        decisions = _attempt(decide, "the trials continue")
        stops = decisions.stops if decisions else {}
        return {claimed[trial_id]: stop for trial_id, stop in stops.items()}

    def _select(self, scheduler: PauseResumeScheduler) -> Sequence[int]:
        """Select the paused trials to resume, by id; prune those that will not.

        Without a decision, because it failed, they resume one by one: the study still finishes.
        """
        # A trial of a hanging process must not block the others for ever.
        ignore_running = self._idle_seconds > PRUNER_WAIT_TIMEOUT
        choice = self.trainer.min_keep_probability, self._failed_ids, ignore_running
        while True:
            progress = self.manager.ask(scheduler.read)
            decisions = _attempt(
                partial(scheduler.select, progress, *choice), "paused trials resume without it"
            )
            if decisions is None:
                return [trial.trial_id for trial in progress.trials if trial.is_paused][:1]
            for number in self.manager.ask(partial(scheduler.store, progress, decisions)):
                self.trainer.clean_up(number)
            for look in decisions.looks.values():
                if look.alarm:
                    _logger.warning(f"pruning held back: {describe_look(look)}")
            if decisions.resumed or not (decisions.audited or decisions.looks):
                return decisions.resumed

    def _run_batch(self, claims: list[Claim]) -> None:
        """Train trials together; requeue on any exception those that are not finished."""
        self._active, self._batch_started_at = claims, time.monotonic()
        try:
            self._train(claims)
        except ShutdownRequestedError:
            self.trainer.save_checkpoints(self._drop_lost())
            self._requeue_all(SHUTDOWN_GRACE)
        except StorageUnavailableError:
            self.trainer.save_checkpoints(self._drop_lost())
            raise
        except BaseException:  # such as a closed pipe or a second Ctrl-C
            # Without a message: the output may be closed.
            with contextlib.suppress(*_STORAGE_ERRORS):
                self.manager.requeue_all(self._active, Failure.INTERRUPTED, timeout=REQUEUE_TIMEOUT)
            raise

    def _requeue_all(self, timeout: float) -> None:
        """Requeue the active trials, and log in one line whether this was done in time."""
        try:
            self.manager.requeue_all(self._active, Failure.INTERRUPTED, timeout=timeout)
            outcome = "requeued"
        except _STORAGE_ERRORS:
            outcome = "not requeued in time; waiting for lease expiry"
        if claims := self._drop_lost():
            trials = format_trials(claim.trial.number for claim in claims)
            _logger.info(f"{trials} {outcome}")

    def _train(self, claims: Sequence[Claim]) -> None:
        """Train trials together; bisect after an error to find the trial that caused it."""
        try:
            for claim, result in self.trainer.train(claims, self._poll, self._decide):
                self._record(claim, result)
            self._drop_lost()
            return
        except _STORAGE_ERRORS:
            raise
        except Exception as raised:
            if is_bug(raised):
                _logger.warning(f"training failed ({format_error(raised)})", exc_info=True)
            # The traceback would keep the memory of the failed training alive.
            error = raised.with_traceback(None)
        active = self._drop_lost()
        unfinished = [claim for claim in claims if claim in active]
        if len(unfinished) > 1:
            _logger.info(
                f"{len(unfinished)} trials trained in lockstep failed ({format_error(error)}); "
                "retrying in halves"
            )
            middle = len(unfinished) // 2
            self._train(unfinished[:middle])
            self._train(unfinished[middle:])
        elif unfinished:
            self._handle_error(unfinished[0], error)

    def _handle_error(self, claim: Claim, error: Exception) -> None:
        """Requeue a trial for a retry, or fail it after the last one."""
        message = format_error(error)
        cause, attributes = self.trainer.describe_failure(error, claim)
        counts = claim.trial.user_attrs.get(RETRY_COUNTS, {})
        retries = sum(counts.get(failure, 0) for failure in Failure if failure.is_error)
        if retries >= MAX_RETRIES:
            message = f"failed after {retries} retries ({message})"
            self._record(claim, TrialResult(TrialState.FAIL, None, attributes, message))
            return
        self._failed_ids.add(claim.trial_id)
        self.manager.requeue_all([claim], cause, message)
        if claim.is_lost:
            self._drop_lost()
            return
        self._end(claim, "failed, requeued for a retry")

    def _record(self, claim: Claim, result: TrialResult) -> None:
        """Record that a trial is finished or paused."""
        is_paused = result.state is TrialState.WAITING
        try:
            if is_paused:
                self.manager.pause(claim, result.attributes)
            else:
                self.manager.finish(claim, result.state, result.value, result.attributes)
        except LeaseLostError:
            self._drop_lost()
            return
        if not is_paused:
            self.trainer.clean_up(claim.trial.number)
        self._end(claim, result.message, result.value, is_paused)

    def _drop_lost(self) -> list[Claim]:
        """Drop the trials that another worker has claimed; return the active ones."""
        for claim in [claim for claim in self._active if claim.is_lost]:
            self._end(claim, "dropped: claimed by another worker after its lease expired")
        return list(self._active)

    def _end(
        self, claim: Claim, message: str, value: float | None = None, is_paused: bool = False
    ) -> None:
        self._active.remove(claim)
        seconds = time.monotonic() - self._batch_started_at
        self.callbacks.on_trial_end(TrialEvent(claim.trial, message, value, seconds, is_paused))

    def _poll(self) -> bool:
        """Check claims, storage and shutdown if the interval has passed; return whether it has."""
        now = time.monotonic()
        if now - self._polled_at < POLL_INTERVAL:
            return False
        self._polled_at = now
        self.manager.check()
        self.callbacks.on_poll()
        if self.stop.requested:
            raise ShutdownRequestedError
        return True


def _attempt(decide: Callable[[], Decisions], consequence: str) -> Decisions | None:
    """Return decisions; None, with a warning, if they fail, as with too little memory."""
    try:
        return decide()
    except _STORAGE_ERRORS:
        raise
    except Exception as error:
        _logger.warning(
            f"pruning decision failed ({format_error(error)}); {consequence}", exc_info=True
        )
        return None
