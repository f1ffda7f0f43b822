"""A worker: claim a point → have it trained → record what came of it, until no point is left."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.claims import Claim, ClaimKeeper
from search.errors import Stopped
from search.stopping import StopRequest
from studies.accounting import Accounting
from studies.errors import ClaimLost, StorageOutage
from studies.records import SETBACKS, Failure

LOOK_SECONDS = 0.25
"""Between two looks, in the midst of training, at how things stand and what signals ask."""

POLL_SECONDS = (1.0, 10.0)
"""Between two looks for a point, while the last ones are in other workers' hands: at first, and
when it has taken long."""

LEAVE_SECONDS = 1.0
"""How long giving a point back may take a worker that is to leave at once."""

RETRIES = 3
"""How often a point is run again after an error."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial that was run to its end.

    Attributes:
        state: COMPLETE, PRUNED or FAIL.
        value: of a complete trial.
        attributes: to be recorded with it.
        words: for a person.
    """

    state: TrialState
    value: float | None
    attributes: Mapping[str, Any]
    words: str


class Trainer(Protocol):
    """What a worker has its points trained by."""

    def train(self, claim: Claim, look: Callable[[], bool]) -> Outcome:
        """Run a trial to its end.

        Args:
            claim: of the trial, to which its values are reported.
            look: to be called often; raises what ends the trial before its time, and tells
                whether it was time to look.
        """

    def keep(self, claim: Claim) -> None:
        """Write down how far the trial in hand has come, for whoever takes it up."""

    def forget(self, claim: Claim) -> None:
        """Throw away what was kept for going on with a trial: it is finished."""

    def failure(self, error: Exception, claim: Claim) -> tuple[Failure, Mapping[str, Any]]:
        """Return the cause of an error, and what to record of a trial that it ends for good."""


@dataclass(frozen=True)
class Ended:
    """A trial that a worker has done with, as it is told of."""

    trial: FrozenTrial
    outcome: str
    value: float | None
    seconds: float


class Listener(Protocol):
    """Whom a worker tells of itself."""

    def ended(self, ended: Ended) -> None:
        """The trial in hand is done with."""

    def waits(self) -> None:
        """No point is left to claim, but others still hold some."""


class Worker:
    """Works on a study until all its points are finished.

    Args:
        keeper: of the claims, entered.
        trainer: trains the points.
        count: reads the study's accounting.
        stop: looked at between steps.
        listener: told of every trial.
        wait: stay until the points that others hold are finished too.
    """

    def __init__(
        self,
        keeper: ClaimKeeper,
        trainer: Trainer,
        count: Callable[[], Accounting],
        stop: StopRequest,
        listener: Listener,
        wait: bool = True,
    ) -> None:
        self.keeper = keeper
        self.trainer = trainer
        self.count = count
        self.stop = stop
        self.listener = listener
        self.wait = wait
        self._failed_here: set[int] = set()
        self._looked = 0.0

    def run(self) -> None:
        """Work. Returns when a stop is asked for, or no point is left.

        Raises:
            StorageOutage: if the storage has been away for too long.
        """
        idle = 0.0
        while not self.stop.requested:
            try:
                claim = self.keeper.claim(avoid=self._failed_here)
                if claim is not None:
                    self._work_on(claim)
                    idle = 0.0
                    continue
                accounting = self.keeper.read(self.count)
            except Stopped:
                return
            if not self.wait or accounting.finished == accounting.planned:
                return
            self.listener.waits()
            shortest, longest = POLL_SECONDS
            pause = min(shortest + idle / 10, longest) * random.uniform(0.5, 1)
            idle += pause
            self.stop.wait(pause)

    def _work_on(self, claim: Claim) -> None:
        began = time.monotonic()

        def look() -> bool:
            return self._look(claim)

        def tell(words: str, value: float | None = None) -> None:
            self.listener.ended(Ended(claim.trial, words, value, time.monotonic() - began))

        try:
            outcome = self._train_or_fail(claim, look)
            if outcome is None:
                tell("failed, and waits to be run again")
                return
            self.keeper.finish(claim, outcome.state, outcome.value, outcome.attributes)
            self.trainer.forget(claim)
            tell(outcome.words, outcome.value)
        except Stopped:
            self.trainer.keep(claim)
            is_back = self._try_to_give_back(claim)
            tell("given back" if is_back else "left to who finds that its lease has run out")
        except ClaimLost:
            tell("dropped: another worker has taken it over")
        except StorageOutage:
            self.trainer.keep(claim)
            raise
        except BaseException:  # a closed pipe, a second Ctrl-C: the point is not lost
            self._try_to_give_back(claim, LEAVE_SECONDS)
            raise

    def _train_or_fail(self, claim: Claim, look: Callable[[], bool]) -> Outcome | None:
        """Run a trial to its end; None if it failed and is given back to be run again."""
        try:
            return self.trainer.train(claim, look)
        except (Stopped, ClaimLost, StorageOutage, SQLAlchemyError, OptunaError):
            raise
        except Exception as error:  # whatever it is, it is this point's, and others may do well
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            cause, attributes = self.trainer.failure(error, claim)
            setbacks = claim.trial.user_attrs.get(SETBACKS, {})
            if sum(setbacks.get(failure, 0) for failure in Failure if failure.is_error) < RETRIES:
                self._failed_here.add(claim.trial_id)
                self.keeper.give_back(claim, cause, line)
                return None
            return Outcome(TrialState.FAIL, None, attributes, f"failed for good ({line})")

    def _look(self, claim: Claim) -> bool:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        self.keeper.check(claim)  # first: who has lost its trial leaves no checkpoint of it
        if self.stop.requested:
            raise Stopped
        return True

    def _try_to_give_back(self, claim: Claim, within: float | None = None) -> bool:
        try:
            self.keeper.give_back(claim, Failure.INTERRUPTED, within=within)
        except (SQLAlchemyError, OptunaError, Stopped, ClaimLost, StorageOutage):
            return False
        return True
