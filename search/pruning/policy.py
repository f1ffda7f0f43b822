"""When to give up on a point: only when it is unlikely to end among the best that are to be kept.

A study is looked at where its points have come to a *rung*, one of a few steps that the share of
the whole training is fixed for. What an unfinished point will come to is foretold
(:mod:`search.pruning.predictions`), and with it the chance that it will be among the best. Points
that are not
yet needed are paused, as in freeze-thaw Bayesian optimization (Swersky, Snoek & Adams,
arXiv:1406.3896): every point is first trained to the first rung; then those with the best chances
go on, one rung after another, and what they come to tells more of the others. It is enough when, of
the best that are to be kept, less than the allowed share is expected to lie among those that are
paused; these are then pruned.

Whatever is decided follows from what is stored of the study, and from nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from search.pruning.predictions import DesignMatrix, Flags, Floats, Prediction, predict_final_values
from studies.config import top_count

SHARES = (0.04, 0.08, 0.16, 0.32, 0.64)
"""Of the steps, at which the rungs are."""

WINDOW = 0.2
"""Of a rung's steps: the log points over whose last part a loss is averaged, for a single one is
noisy."""

NEEDED = 0.5
"""The chance from which a point will be wanted whatever is learnt: it need not pause for others."""

VIEW = 2.0
"""In quotas, how many of the most promising points are gone on with while others run."""

HOPELESS = 0.1
"""The share of what may be lost that may be lost before the end, by points without a chance."""


class TrialStage(Enum):
    """Where a point stands."""

    FRESH = auto()  # waits, and was not paused
    RUNNING = auto()
    PAUSED = auto()
    COMPLETE = auto()
    PRUNED = auto()
    FAILED = auto()  # for good, and ranks last

    @classmethod
    def of(cls, state: TrialState) -> "TrialStage":
        """Return where a trial of Optuna's stands, which knows no pausing."""
        return {
            TrialState.WAITING: cls.FRESH,
            TrialState.RUNNING: cls.RUNNING,
            TrialState.COMPLETE: cls.COMPLETE,
            TrialState.PRUNED: cls.PRUNED,
            TrialState.FAIL: cls.FAILED,
        }[state]


@dataclass(frozen=True)
class Rung:
    """A step at which points are looked at.

    Attributes:
        step: of it.
        after: its loss is the mean over the log points after this step, up to it.
    """

    step: int
    after: int


def rungs_of(steps: int, log_every: int) -> list[Rung]:
    """Return the rungs of a training: at log points, before its end."""
    found: list[Rung] = []
    last = 0
    for share in SHARES:
        step = math.ceil(share * steps / log_every) * log_every
        if last < step < steps:
            found.append(Rung(step, max(last, min(int((1 - WINDOW) * step), step - log_every))))
            last = step
    return found


def ahead_of(rungs: Sequence[Rung], steps: int) -> Floats:
    """Return the steps between one look and the next, from the beginning to the end."""
    return np.diff([0, *(rung.step for rung in rungs), steps]).astype(float)


@dataclass(frozen=True)
class StudyState:
    """Where the points of a study stand.

    Attributes:
        stages: (N,) of :class:`TrialStage`.
        losses: (N, R) at each rung; NaN where a point has not come to it.
        values: (N,) of the complete points; NaN of the others.
        factors: of the N points.
        ahead: (R + 1,) steps from the beginning, and from each rung, to where a point is looked at
            next.
    """

    stages: Sequence[TrialStage]
    losses: Floats
    values: Floats
    factors: DesignMatrix
    ahead: Floats

    def where(self, *stages: TrialStage) -> Flags:
        """Return which points are in one of these stages, (N,)."""
        return np.isin(self._codes, [stage.value for stage in stages])

    @cached_property
    def _codes(self) -> NDArray[np.int64]:
        return np.array([stage.value for stage in self.stages], dtype=np.int64)

    @property
    def reached(self) -> NDArray[np.int64]:
        """How many rungs each point has come to, (N,)."""
        found: NDArray[np.int64] = (~np.isnan(self.losses)).sum(axis=1)
        return found


class PruningPolicy:
    """What is to become of a study's points.

    Args:
        standing: of its N points.
        keep: the fraction of them that is to be kept.
        confidence: of that fraction, the share that is expected to be kept at least.
        known: what each point will come to, of those that did not fail, if that is known already.

    Attributes:
        top_count: how many are to be kept.
        allowance: how many of them may be lost, in expectation.
    """

    def __init__(
        self, standing: StudyState, keep: float, confidence: float, known: Prediction | None = None
    ) -> None:
        self.standing = standing
        self._known = known
        self.top_count = top_count(keep, len(standing.stages))
        self.allowance = (1 - confidence) * self.top_count

    @cached_property
    def forecast(self) -> Prediction:
        """What each point will come to; of those that failed, infinite."""
        counts = ~self.standing.where(TrialStage.FAILED)
        found = self._of_those_that_count
        mean, deviation = np.full(len(counts), np.inf), np.zeros(len(counts))
        mean[counts], deviation[counts] = found.mean, found.deviation
        return Prediction(mean, deviation)

    @cached_property
    def bound(self) -> float:
        """The value below which as many points are expected to end as are to be kept."""
        return self._of_those_that_count.bound(self.top_count)

    @cached_property
    def chances(self) -> Floats:
        """The probability of each point to end below that bound, (N,); they sum up to the quota."""
        chances = np.zeros(len(self.standing.stages))
        counts = ~self.standing.where(TrialStage.FAILED)
        chances[counts] = self._of_those_that_count.below(self.bound)
        return chances

    @cached_property
    def prospects(self) -> Floats:
        """What training each point to its next rung promises, (N,), to be compared.

        Neither the chance alone counts, for a late look costs many steps, nor chance by step, which
        would look at all that is cheap first.
        """
        found: Floats = self.chances / np.sqrt(self.standing.ahead[self.standing.reached])
        return found

    @cached_property
    def wanted(self) -> list[int]:
        """The paused points to go on with, the most promising first; none if it is enough.

        While others run, only those in view.
        """
        return [point for point in self.lacking if self._in_view[point]]

    @cached_property
    def lacking(self) -> list[int]:
        """The paused points, the most promising first; none if it is enough without them."""
        if self.standing.where(TrialStage.FRESH).any():
            return []
        paused = np.flatnonzero(self.standing.where(TrialStage.PAUSED))
        lost = self.chances[self.standing.where(TrialStage.PAUSED, TrialStage.PRUNED)].sum()
        if not len(paused) or lost <= self.allowance:
            return []
        order = np.argsort(-self.prospects[paused], kind="stable")
        return [int(i) for i in paused[order]]

    @property
    def is_settled(self) -> bool:
        """Whether what is paused will not be gone on with any more."""
        open_ones = self.standing.where(TrialStage.FRESH, TrialStage.RUNNING)
        return not open_ones.any() and not self.lacking

    def goes_on(self, point: int) -> bool:
        """Tell whether a running point at a rung goes on; else others are to be trained first."""
        if self.standing.where(TrialStage.FRESH).any():
            return False
        keep_probability = self.chances[point]
        if keep_probability >= NEEDED:
            return True
        if not self._in_view[point]:
            return False
        waiting = self.standing.where(TrialStage.PAUSED)
        lost = (
            self.chances[waiting | self.standing.where(TrialStage.PRUNED)].sum() + keep_probability
        )
        best_waiting = self.prospects[waiting].max(initial=0)
        return bool(lost > self.allowance and self.prospects[point] >= best_waiting)

    def is_hopeless(self, point: int) -> bool:
        """Tell whether a point at a rung will not be wanted, whatever the others come to.

        Not before as many points are complete as are to be kept. Of what may be lost, all that is
        lost so is a tenth at most.
        """
        known = self.standing.where(TrialStage.COMPLETE).sum() >= self.top_count
        bound = HOPELESS * self.allowance / len(self.standing.stages)
        return bool(known and self.chances[point] <= bound)

    @cached_property
    def _in_view(self) -> Flags:
        """Which points are among the most promising, or have nothing else trained beside them.

        However many workers there are: what the first few come to tells of the others. Those that
        are finished count.
        """
        running = self.standing.where(TrialStage.RUNNING)
        others = running.sum() - running  # (N,) that run beside each
        ordered = np.sort(self.chances)
        better = len(ordered) - np.searchsorted(ordered, self.chances, side="right")
        found: Flags = (better < VIEW * self.top_count) | (others == 0)
        return found

    def may_stop(self, point: int) -> bool:
        """Tell whether a running point at a rung is given up, where nothing can be paused."""
        if self.chances[point] > self.allowance / self.top_count:
            return False
        begun = (~self.standing.where(TrialStage.FRESH)).mean()
        lost = self.chances[self.standing.where(TrialStage.PRUNED)].sum() + self.chances[point]
        return bool(lost <= self.allowance * begun)

    @cached_property
    def _of_those_that_count(self) -> Prediction:
        standing = self.standing
        if self._known is not None:
            return self._known
        counts = ~standing.where(TrialStage.FAILED)
        return predict_final_values(
            standing.factors.of_some(counts), standing.losses[counts], standing.values[counts]
        )
