"""Those that a worker works with: who trains its points, who judges them, whom it tells."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from search.pruning.pause_resume import PruneDecision
from search.worker.claim import Claim
from studies.attributes import Failure


@dataclass(frozen=True)
class TrialResult:
    """What came of a trial that was run to its end, or put off.

    Attributes:
        state: COMPLETE, PRUNED or FAIL; WAITING of one that is paused, and written down.
        value: of a complete trial.
        attributes: to be recorded with it.
        words: for a person.
    """

    state: TrialState
    value: float | None
    attributes: Mapping[str, Any]
    words: str


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
    """A trial that a worker has done with, as it is told of."""

    trial: FrozenTrial
    outcome: str
    value: float | None
    seconds: float
    is_paused: bool = False


class Listener(Protocol):
    """Whom a worker tells of itself."""

    def ended(self, ended: TrialEvent) -> None:
        """A trial in hand is done with."""

    def says(self, line: str) -> None:
        """Something that a person should know."""

    def waits(self) -> None:
        """No point is left to claim, but others still hold some."""
