"""Interfaces between a worker, the trainer that it drives and the display that it reports to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from search.pruning.pause_resume import PruneDecision
from search.status import RunningTrial
from search.worker.claims import Claim
from studies.attributes import Failure


@dataclass(frozen=True)
class TrialResult:
    """What came of a trial that was run to its end, or put off.

    Attributes:
        state: COMPLETE, PRUNED or FAIL; WAITING of one that is paused, and written down.
        value: of a complete trial.
        attributes: to be recorded with it.
        message: description of the outcome.
    """

    state: TrialState
    value: float | None
    attributes: Mapping[str, Any]
    message: str


Judge = Callable[[Sequence[Claim]], Mapping[Claim, PruneDecision]]
"""Told of trials at a rung, tells of those that do not go on."""


class Trainer(Protocol):
    """What a worker has its points trained by."""

    @property
    def min_keep_probability(self) -> float:
        """The chance from which a paused point is worth taking along with another."""

    def limit(self, trial: FrozenTrial) -> int:
        """Return how many trials like this one, itself among them, to train together."""

    def train(
        self, claims: Sequence[Claim], look: Callable[[], bool], judge: Judge
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Run trials to their ends, and say of each what came of it as soon as it is known.

        Args:
            claims: of the trials, to which their values are reported; of one that is lost meanwhile
                (``claim.lost``) nothing more is said, and nothing more done for it.
            look: to be called often; raises what ends the training before its time, and tells
                whether it was time to look.
            judge: to be asked of trials that have come to a rung.
        """

    def rest(self) -> None:
        """Leave the machine to others: for the time being there is nothing to train."""

    def keep(self, claims: Sequence[Claim]) -> None:
        """Write down how far these trials have come, for whoever takes them up."""

    def forget(self, number: int) -> None:
        """Throw away what was kept for going on with a trial: it is finished."""

    def failure(self, error: Exception, claim: Claim) -> tuple[Failure, Mapping[str, Any]]:
        """Return the cause of an error, and what to record of a trial that it ends for good."""


@dataclass(frozen=True)
class TrialEvent:
    """End of a worker's training of a trial.

    Attributes:
        trial: the trial as it was claimed.
        message: description of the outcome.
        value: objective value of a complete trial, else None.
        seconds: time since its training began.
        is_paused: whether the trial is paused and may resume.
    """

    trial: FrozenTrial
    message: str
    value: float | None
    seconds: float
    is_paused: bool = False


class WorkerCallbacks:
    """Hooks that a worker calls from its main thread; override those of interest."""

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Handle a log point.

        Args:
            running: the running trials and their progress.
        """

    def on_trial_end(self, event: TrialEvent) -> None:
        """Handle the end of a trial in this worker: finished, paused, requeued or lost."""

    def on_wait(self) -> None:
        """Handle waiting for trials that other workers run, with none left to claim."""

    def on_message(self, message: str) -> None:
        """Handle a message for the user."""
