"""State of a study as the pruning policy sees it.

Some trials are *audited*: they are trained to the end whatever the policy decides. In decisions an
audited trial is seen as if it had stopped where the policy would have stopped it: its stage is the
one that it would have, and its prediction is made without its value. The predictions of the other
trials use its value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from search.pruning.design_matrix import DesignMatrix
from search.pruning.regression import Floats, Indices, Mask
from search.pruning.rungs import Rungs


class TrialStage(Enum):
    """State of a trial for the pruner: Optuna's states, and paused."""

    WAITING = auto()
    RUNNING = auto()
    PAUSED = auto()
    COMPLETE = auto()
    PRUNED = auto()
    FAILED = auto()  # permanently; ranks last

    @classmethod
    def from_state(cls, state: TrialState) -> "TrialStage":
        """Return the stage of an Optuna trial that is not paused."""
        return {
            TrialState.WAITING: cls.WAITING,
            TrialState.RUNNING: cls.RUNNING,
            TrialState.COMPLETE: cls.COMPLETE,
            TrialState.PRUNED: cls.PRUNED,
            TrialState.FAIL: cls.FAILED,
        }[state]


@dataclass(frozen=True)
class StudyState:
    """State of a study's N trials with R rungs.

    Attributes:
        stages: (N,) stage of each trial.
        losses: (N, R) loss at each rung; NaN where a trial has not reached it.
        values: (N,) values of complete trials; NaN for the others.
        design: parameters of the trials.
        steps_to_next_rung: (R + 1,) steps from the start and from each rung to the next.
        held_out: (N,) number of rungs after which an audited trial with a value is paused or pruned
            in decisions; -1 for all other trials.
        architectures: (N,) architecture of each trial; None if each is an architecture.
    """

    stages: Sequence[TrialStage]
    losses: Floats
    values: Floats
    design: DesignMatrix
    steps_to_next_rung: Floats
    held_out: Rungs | None = None
    architectures: Indices | None = None

    def in_stage(self, *stages: TrialStage) -> Mask:
        """Return which trials are in one of these stages, (N,)."""
        return np.isin(self._codes, [stage.value for stage in stages])

    @cached_property
    def _codes(self) -> NDArray[np.int64]:
        return np.array([stage.value for stage in self.stages], dtype=np.int64)

    @property
    def rungs_reached(self) -> Rungs:
        """Number of rungs that each trial has reached in decisions, (N,)."""
        reached: Rungs = (~np.isnan(self.losses)).sum(axis=1)
        return reached if self.held_out is None else np.where(self.is_held, self.held_out, reached)

    @property
    def is_held(self) -> Mask:
        """Which trials have a value that decisions about them do not use, (N,)."""
        if self.held_out is None:
            return np.zeros(len(self.stages), dtype=bool)
        return self.held_out >= 0

    @property
    def owners(self) -> Indices:
        """Architecture of each trial, (N,)."""
        count = len(self.stages)
        return np.arange(count) if self.architectures is None else self.architectures


def to_decision_stage(
    stage: TrialStage, reached: int, granted: int, is_pruned: bool, rungs: int
) -> tuple[TrialStage, int]:
    """Return how decisions see an audited trial, which trains on where others are paused.

    Args:
        stage: its stage.
        reached: number of rungs that it has reached.
        granted: number of rungs to which the policy has let it train; ``rungs`` + 1 for its end.
        is_pruned: whether the policy would have pruned it there.
        rungs: number of rungs R.

    Returns:
        Its stage in decisions, and the number of rungs after which it is stopped in them; -1 if it
        is not.
    """
    if granted > rungs or reached < granted:
        return stage, -1
    return (TrialStage.PRUNED if is_pruned else TrialStage.PAUSED), granted
