"""The queue of a study's trials: claim, decide, settle, requeue; imports no PyTorch.

A trial is its parameters, its curve and a checkpoint, which is bytes here. What trains takes
batches of claimed trials, reports values to the claims, polls often, asks at each rung which trials
stop there, and settles each trial once::

    for claims in queue.batches():
        with queue.holding():
            ...
            queue.settle(claim, TrialResult(TrialState.COMPLETE, value, {}, "complete"))

:mod:`search.worker.trainer` trains batches of networks in lockstep, and
:mod:`search.worker.loop_trial` hands trials to a loop of the user's, one at a time.
"""

import contextlib
import logging
import multiprocessing
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.errors import ShutdownRequestedError, format_error
from search.open_study import OpenStudy
from search.pruning.audited_trials import describe_look
from search.pruning.policy import ALWAYS_CONTINUE, Decisions, PruneDecision
from search.pruning.scheduler import PauseResumeScheduler, StudyProgress, create_schedulers
from search.status import MAX_LINE
from search.worker.checkpoints import Checkpoints
from search.worker.claims import SHUTDOWN_GRACE, Claim, ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.attributes import RETRY_COUNTS, Failure
from studies.config import StudyConfig
from studies.errors import LeaseLostError, StorageUnavailableError
from studies.measure import find_measure
from studies.messages import format_trials, shorten
from studies.storage.counts import count_trials
from studies.trial_params import label_trial

if TYPE_CHECKING:
    from search.worker.lockstep import LockstepPlan

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

STORAGE_ERRORS = (
    ShutdownRequestedError,
    LeaseLostError,
    StorageUnavailableError,
    SQLAlchemyError,
    OptunaError,
)
"""Errors of the queue itself, for which no trial is to blame."""

_logger = logging.getLogger(__name__)


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


PrunerCallback = Callable[[Sequence[Claim]], Mapping[Claim, PruneDecision]]
"""Asks about these trials, all at a rung; returns which of them are paused or pruned now; the
others continue."""


class TrialQueue:
    """The trials of a study, as one worker takes and settles them.

    Args:
        manager: entered claim manager.
        stop: ends the batches, and the training at the next poll.
        on_finished: called with the number of each trial that is finished, pruned ones included.

    Attributes:
        checkpoints: checkpoints of the trials; those of finished ones are removed.
    """

    def __init__(
        self,
        study: OpenStudy,
        manager: ClaimManager,
        stop: ShutdownSignal,
        on_finished: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.checkpoints = Checkpoints(study)
        self._study = study
        self._manager = manager
        self._stop = stop
        self._on_finished = on_finished
        self._schedulers: dict[str, PauseResumeScheduler] = {}  # of each task
        if study.config.pruning.enabled:
            self._schedulers = create_schedulers(study.storage, study.study_id, study.config)
        self._active: list[Claim] = []
        self._failed_ids: set[int] = set()  # claimed again only if no other trial waits
        self._batch_started_at = 0.0
        self._polled_at = 0.0
        self._idle_seconds = 0.0
        self._has_waited = False

    # ------------------------------------------------------------------ claims

    def batches(
        self,
        plan: "LockstepPlan | None" = None,
        wait: bool = True,
        on_wait: Callable[[], object] = lambda: None,
    ) -> Iterator[list[Claim]]:
        """Yield claimed trials, to train together, until none is left or a stop is requested.

        Args:
            plan: which trials to claim together; None for each alone.
            wait: whether to stay until the trials that others run are finished too.
            on_wait: called before each time that this waits for them.

        Raises:
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        while not self._stop.requested:
            try:
                claims = self._claim(plan)
                is_left = bool(claims) or (wait and self._has_unfinished())
            except ShutdownRequestedError:
                return
            if claims:
                self._active = list(claims)
                self._batch_started_at = time.monotonic()
                self._idle_seconds = 0.0
                yield claims
            elif is_left:
                on_wait()
                self._log_wait()
                self._idle()
            else:
                return

    def _claim(self, plan: "LockstepPlan | None") -> list[Claim]:
        """Claim waiting trials, else paused ones, else one that has failed in this process."""
        claims = self._manager.claim(plan, self._failed_ids)
        for scheduler in self._schedulers.values():
            claims = claims or self._claim_paused(scheduler, plan)
        return claims or (self._manager.claim() if self._failed_ids else [])

    def _claim_paused(
        self, scheduler: PauseResumeScheduler, plan: "LockstepPlan | None"
    ) -> list[Claim]:
        least = ALWAYS_CONTINUE if plan is None else plan.min_keep_probability
        for _ in range(MAX_SELECT_ATTEMPTS):
            selected = self._select(scheduler, least)
            if not selected:
                break
            if claims := self._manager.claim(plan, self._failed_ids, selected):
                return claims
        return []

    def _has_unfinished(self) -> bool:
        """Return whether other workers have trials that are not finished."""
        counts = self._manager.ask(partial(count_trials, self._study.storage, self._study.study_id))
        return counts.finished != counts.planned

    def _log_wait(self) -> None:
        """Say once that this worker waits; of several processes the parent waits for all."""
        if not self._has_waited and multiprocessing.parent_process() is None:
            _logger.info("the remaining trials are running in other workers; waiting for them")
        self._has_waited = True

    def _idle(self) -> None:
        """Wait until the next attempt to claim, for longer each time."""
        shortest, longest = CLAIM_INTERVALS
        seconds = min(shortest + self._idle_seconds / 10, longest) * random.uniform(0.5, 1)
        self._idle_seconds += seconds
        self._stop.wait(seconds)

    @contextlib.contextmanager
    def holding(
        self, save: Callable[[Sequence[Claim]], object] = lambda claims: None
    ) -> Iterator[None]:
        """Requeue those of a batch's trials that are not settled when the block ends early.

        A requested shutdown ends the block without an error. At a shutdown and in an outage,
        ``save`` is called with the trials that this worker holds, to write checkpoints of them.
        """
        try:
            yield
        except ShutdownRequestedError:
            save(self.drop_lost())
            self.requeue_in_time()
        except StorageUnavailableError:
            save(self.drop_lost())
            raise
        except BaseException:  # of any kind, such as a closed pipe or a second Ctrl-C
            # Without a message: the output may be closed.
            with contextlib.suppress(*STORAGE_ERRORS):
                self._requeue_all(REQUEUE_TIMEOUT)
            raise

    def drop_lost(self) -> list[Claim]:
        """Drop the trials that another worker has claimed; return those that are held."""
        for claim in [claim for claim in self._active if claim.is_lost]:
            self._end(claim, "dropped: claimed by another worker after its lease expired")
        return list(self._active)

    def poll(self) -> bool:
        """Check claims, storage and shutdown if the interval has passed; return whether it has.

        Raises:
            ShutdownRequestedError: if a stop is requested.
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        now = time.monotonic()
        if now - self._polled_at < POLL_INTERVAL:
            return False
        self._polled_at = now
        self._manager.check()
        if self._stop.requested:
            raise ShutdownRequestedError
        return True

    def requeue_in_time(self) -> None:
        """Requeue the trials that are held, and log in one line whether this was done in time."""
        try:
            self._requeue_all(SHUTDOWN_GRACE)
            outcome = "requeued"
        except STORAGE_ERRORS:
            outcome = "not requeued in time; waiting for lease expiry"
        if claims := self.drop_lost():
            trials = format_trials(claim.trial.number for claim in claims)
            _logger.info(f"{trials} {outcome}")

    def _requeue_all(self, timeout: float) -> None:
        self._manager.requeue_all(self._active, Failure.INTERRUPTED, timeout=timeout)

    # ------------------------------------------------------------------ decisions

    def decide(
        self, claims: Sequence[Claim], can_pause: bool = True
    ) -> Mapping[Claim, PruneDecision]:
        """Decide which of these trials, which have just reached a rung, are paused or pruned.

        They are of one task, as all that train together. None is paused unless it ``can_pause``.
        Training waits: a decision takes a tenth of a second, or a second with 10,000 trials. The
        storage thread reads and writes, and sends heartbeats meanwhile. In an outage all trials
        continue.

        Returns:
            Decisions on those that stop; the others continue.
        """
        if not claims or not self._schedulers:
            return {}
        scheduler = self._schedulers[self._study.config.task_of(claims[0].trial.params)]
        reading = self._manager.submit(scheduler.read, after_flush=True)
        while not futures.wait([reading], 0.1).done:
            self.poll()
            if self._manager.unavailable_reason:
                reading.cancel()
                return {}
        claimed = {claim.trial_id: claim for claim in claims}
        decide = partial(self._decide, scheduler, reading, claimed, can_pause)
        decisions = _attempt(decide, "the trials continue")
        stops = decisions.stops if decisions else {}
        return {claimed[trial_id]: stop for trial_id, stop in stops.items()}

    def _decide(
        self,
        scheduler: PauseResumeScheduler,
        reading: futures.Future[StudyProgress],
        trial_ids: Collection[int],
        can_pause: bool,
    ) -> Decisions:
        progress = reading.result()
        decisions = scheduler.decide(progress, trial_ids, self._failed_ids, can_pause)
        if decisions.audited or decisions.looks:
            self._manager.submit(partial(scheduler.store, progress, decisions), after_flush=True)
            _warn_of_alarms(decisions, scheduler.task)
        return decisions

    def _select(
        self, scheduler: PauseResumeScheduler, min_keep_probability: float
    ) -> Sequence[int]:
        """Select the paused trials to resume, by id; prune those that will not.

        Without a decision, because it failed, they resume one by one: the study still finishes.
        """
        # A trial of a hanging process must not block the others for ever.
        ignore_running = self._idle_seconds > PRUNER_WAIT_TIMEOUT
        while True:
            progress = self._manager.ask(scheduler.read)
            select = partial(
                scheduler.select, progress, min_keep_probability, self._failed_ids, ignore_running
            )
            decisions = _attempt(select, "paused trials resume without it")
            if decisions is None:
                return [trial.trial_id for trial in progress.trials if trial.is_paused][:1]
            for number in self._manager.ask(partial(scheduler.store, progress, decisions)):
                self._finish(number)
            _warn_of_alarms(decisions, scheduler.task)
            if decisions.resumed or not (decisions.audited or decisions.looks):
                return decisions.resumed

    # ------------------------------------------------------------------ ends

    def settle(self, claim: Claim, result: TrialResult) -> None:
        """Record that a trial is finished or paused, unless another worker has claimed it."""
        is_paused = result.state is TrialState.WAITING
        try:
            self._manager.finish(claim, result.state, result.value, result.attributes)
        except LeaseLostError:
            self.drop_lost()
            return
        if not is_paused:
            self._finish(claim.trial.number)
        level = logging.DEBUG if is_paused else logging.INFO  # most trials of a pruned grid are
        self._end(claim, result.message, result.value, level)

    def fail(
        self, claim: Claim, error: Exception, cause: Failure, attributes: Mapping[str, Any]
    ) -> None:
        """Requeue a trial for a retry after an error, or fail it after the last one.

        The cause is counted; the attributes are recorded if the trial fails.
        """
        message = format_error(error)
        counts = claim.trial.user_attrs.get(RETRY_COUNTS, {})
        retries = sum(counts.get(failure, 0) for failure in Failure if failure.is_error)
        if retries >= MAX_RETRIES:
            message = f"failed after {retries} retries ({message})"
            self.settle(claim, TrialResult(TrialState.FAIL, None, attributes, message))
            return
        self._failed_ids.add(claim.trial_id)
        self._manager.requeue_all([claim], cause, message)
        if claim.is_lost:
            self.drop_lost()
            return
        self._end(claim, "failed, requeued for a retry")

    def _finish(self, number: int) -> None:
        self._on_finished(number)
        self.checkpoints.remove(number)

    def _end(
        self, claim: Claim, outcome: str, value: float | None = None, level: int = logging.INFO
    ) -> None:
        self._active.remove(claim)
        seconds = time.monotonic() - self._batch_started_at
        line = format_trial_end(claim.trial, self._study.config, outcome, value, seconds)
        _logger.log(level, line)


def format_trial_end(
    trial: FrozenTrial, config: StudyConfig, outcome: str, value: float | None, seconds: float
) -> str:
    """Format the end of a trial: ``trial 14  1×32 GRU  complete 1.4321 nats  55.3 s``.

    What the trial is called is cut where the line would have more than 120 characters.
    """
    if value is not None:
        outcome += f" {find_measure(config.of_trial(trial.params)).describe(value)}"
    start = f"trial {trial.number}  "
    end = f"  {outcome}  {seconds:.1f} s"
    label = label_trial(trial.params, config)
    return f"{start}{shorten(label, max(20, MAX_LINE - len(start) - len(end)))}{end}"


def _warn_of_alarms(decisions: Decisions, task: str) -> None:
    """Warn of looks at the audited trials that hold back the pruner."""
    for look in decisions.looks.values():
        if look.alarm:
            of_task = f" in the task {task}" if task else ""
            _logger.warning(f"pruning held back{of_task}: {describe_look(look)}")


def _attempt(decide: Callable[[], Decisions], consequence: str) -> Decisions | None:
    """Return decisions; None, with a warning, if they fail, as with too little memory."""
    try:
        return decide()
    except STORAGE_ERRORS:
        raise
    except Exception as error:  # of any kind: a search finishes without the pruner
        _logger.warning(
            f"pruning decision failed ({format_error(error)}); {consequence}", exc_info=True
        )
        return None
