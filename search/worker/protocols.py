"""Interfaces between a worker, the trainer that it drives and the display that it reports to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from search.pruning.policy import PruneDecision
from search.status import RunningTrial
from search.worker.claim import Claim
from studies.attributes import Failure


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
"""Asks about these trials, all at a rung; returns which of them are paused or pruned now; absent
ones continue."""


class Trainer(Protocol):
    """Trains the trials that a worker has claimed."""

    @property
    def min_keep_probability(self) -> float:
        """Keep probability from which a paused trial resumes together with another."""

    def lockstep_size(self, trial: FrozenTrial) -> int:
        """Return how many trials like this one, including it, to train together."""

    def lockstep_params(self, trial: FrozenTrial) -> Sequence[str]:
        """Return the parameters that trials trained together with this one have in common."""

    def train(
        self, claims: Sequence[Claim], poll: Callable[[], bool], decide: PrunerCallback
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Train trials; yield each one's result as soon as it is known.

        Args:
            claims: claims of the trials, to which values are reported. A trial that is lost
                (``claim.lost``) is dropped without a result.
            poll: called often; returns whether the polling interval has passed, raises to end the
                training.
            decide: called at a rung with the trials that have reached it.
        """

    def release_cores(self) -> None:
        """Leave the cores to other workers until the next training."""

    def save_checkpoints(self, claims: Sequence[Claim]) -> None:
        """Write checkpoints of these trials at their current step."""

    def clean_up(self, number: int) -> None:
        """Remove the files that a finished trial no longer needs."""

    def describe_failure(self, error: Exception, claim: Claim) -> tuple[Failure, Mapping[str, Any]]:
        """Return the cause of an error, and the attributes of a trial that fails with it."""


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

    def on_poll(self) -> None:
        """Handle a check of claims and signals, several times a second during training."""

    def on_trial_end(self, event: TrialEvent) -> None:
        """Handle the end of a trial in this worker: finished, paused, requeued or lost."""

    def on_wait(self) -> None:
        """Handle waiting for trials that other workers run, with none left to claim."""
