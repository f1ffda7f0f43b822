"""Pruning decisions of a worker, computed while training continues.

In a study of ten thousand trials a decision may take seconds. The storage thread only
reads the state of the study and keeps sending heartbeats; decisions are computed from that state in
a daemon thread, one question at a time. A ``ThreadPoolExecutor`` would delay the exit: it joins its
threads.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import TypeVar

from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from search.errors import format_error
from search.pruning.audit import describe_look
from search.pruning.decisions import Decisions, PruneDecision
from search.pruning.pause_resume import PauseResumeScheduler
from search.pruning.study_progress import StudyProgress
from search.worker.claims import Claim, ClaimManager
from studies.errors import StorageUnavailableError, StudiesError

DECISION_WAIT = 2.5
"""Seconds for which training waits for a decision at a rung. A decision usually takes less, so that
a trial stops at its rung."""

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class PruningDecisions:
    """Decisions of a scheduler, computed in another thread.

    Args:
        manager: entered claim manager, whose thread reads from the storage.
        scheduler: computes the decisions.
        poll: called while a caller waits; raises to end the wait.
    """

    def __init__(
        self,
        manager: ClaimManager,
        scheduler: PauseResumeScheduler,
        poll: Callable[[], object],
    ) -> None:
        self._manager = manager
        self._scheduler = scheduler
        self._poll = poll
        self._pending: dict[int, Claim] = {}  # at a rung, for the next question
        self._asked: dict[int, Claim] = {}  # in the question that is being answered
        self._answer: Future[Decisions] | None = None

    def decide(
        self, claims: Sequence[Claim], deferred: Collection[int] = ()
    ) -> Mapping[Claim, PruneDecision]:
        """Ask about trials at a rung, and return the decisions that are known by now.

        Training waits for a moment if there are trials at a rung. An answer that takes longer is
        returned by a later call. In an outage the question waits for the storage.

        Args:
            claims: trials that have just reached a rung; often none.
            deferred: ids of waiting trials to retry after an error.

        Returns:
            Decisions on trials of this or an earlier call that are paused or pruned; some of them
            may no longer train.
        """
        self._pending |= {claim.trial_id: claim for claim in claims}
        decisions: dict[Claim, PruneDecision] = {}
        deadline = time.monotonic() + DECISION_WAIT
        while True:
            decisions |= self._take_answer()
            self._ask(deferred)
            if not claims or self._answer is None or time.monotonic() >= deadline:
                return decisions
            if self._manager.unavailable_reason:
                return decisions
            futures.wait([self._answer], 0.05)
            self._poll()

    def forget(self) -> None:
        """Ignore the answers to all questions so far."""
        self._pending, self._asked = {}, {}

    def select_to_resume(
        self, min_keep_probability: float, deferred: Collection[int], ignore_running: bool
    ) -> list[int]:
        """Return the paused trials to resume; see :class:`PauseResumeScheduler`.

        Without a decision, because it failed, they resume one by one: the study still finishes.
        """
        while True:
            selected = self._compute(
                lambda progress: self._scheduler.select_to_resume(
                    progress, min_keep_probability, deferred, ignore_running
                )
            )
            if selected is None:
                progress = self._manager.ask(self._scheduler.read)
                return [trial.trial_id for trial in progress.trials if trial.is_paused][:1]
            if not self._store(selected) or selected.resumed:
                return list(selected.resumed)

    def prune_paused(self) -> list[int]:
        """Prune all paused trials if none of them will be resumed; return their numbers."""
        answer = self._compute(
            lambda progress: (progress, self._scheduler.select_to_prune(progress))
        )
        if answer is None or not (answer[1].pruned or answer[1].audited):
            return []
        return self._manager.ask(lambda: self._scheduler.prune(*answer))

    def _store(self, decisions: Decisions) -> bool:
        """Store decisions about audited trials and looks at them; return whether there are any."""
        if not (decisions.audited or decisions.looks):
            return False
        self._manager.ask(lambda: self._scheduler.store(decisions))
        for look in decisions.looks.values():
            if look.alarm:
                _logger.warning(f"pruning held back: {describe_look(look)}")
        return True

    def _take_answer(self) -> dict[Claim, PruneDecision]:
        """Return the decisions of the question that is being answered, if they are known."""
        if self._answer is None or not self._answer.done():
            return {}
        answer, asked = self._answer, self._asked
        self._answer, self._asked = None, {}
        try:
            decisions = answer.result()
        except (StorageUnavailableError, SQLAlchemyError, OptunaError):
            raise
        except Exception as error:  # must not count as a failure of the training
            _logger.warning(
                f"pruning decision failed ({format_error(error)}); the trials continue",
                exc_info=True,
            )
            return {}
        if decisions.audited:
            self._manager.submit(lambda: self._scheduler.store(decisions), after_flush=True)
        known = {asked[key]: decision for key, decision in decisions.stops.items() if key in asked}
        for claim in known:  # may have reached another rung meanwhile
            self._pending.pop(claim.trial_id, None)
        return known

    def _ask(self, deferred: Collection[int]) -> None:
        """Ask about the trials that have reached a rung, unless another question is open."""
        if not self._pending or self._answer is not None or self._manager.unavailable_reason:
            return
        self._asked, self._pending = self._pending, {}
        trial_ids, deferred = list(self._asked), frozenset(deferred)
        self._answer = self._start(
            lambda progress: self._scheduler.decide(progress, trial_ids, deferred)
        )

    def _compute(self, compute: Callable[[StudyProgress], _T]) -> _T | None:
        """Compute something while the worker has nothing to train.

        Returns:
            The result; None, with a warning, if the computation fails.
        """
        if self._answer is not None:  # the last trials have ended before their decision
            self._wait(self._answer)
            self._answer = None
        answer = self._start(compute)
        self._wait(answer)
        try:
            return answer.result()
        except (StudiesError, SQLAlchemyError, OptunaError):
            raise
        except Exception as error:  # such as too little memory for the prediction
            _logger.warning(
                f"pruning decision failed ({format_error(error)}); paused trials resume without it",
                exc_info=True,
            )
            return None

    def _wait(self, answer: Future[_T]) -> None:
        while not futures.wait([answer], 0.1).done:
            self._poll()

    def _start(self, compute: Callable[[StudyProgress], _T]) -> Future[_T]:
        """Read the state of the study in the storage thread, then start to compute."""
        answer: Future[_T] = Future()
        reading = self._manager.submit(self._scheduler.read, after_flush=True)

        def run() -> None:
            try:
                answer.set_result(compute(reading.result()))
            except BaseException as error:  # raised where the answer is needed
                answer.set_exception(error)

        def start(reading: Future[StudyProgress]) -> None:
            try:
                threading.Thread(target=run, name="pruning", daemon=True).start()
            except RuntimeError as error:  # the system allows no more threads
                answer.set_exception(error)

        reading.add_done_callback(start)
        return answer
