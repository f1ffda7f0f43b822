"""Pruner for plain Optuna, which stops trials for good instead of pausing them."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.pruning.design_matrix import DesignMatrix
from search.pruning.policy import PruningPolicy
from search.pruning.predictions import MIN_COMPLETE
from search.pruning.rungs import compute_rungs, compute_steps_to_next_rung
from search.pruning.study_state import StudyState, TrialStage
from studies.attributes import AUDIT
from studies.config import top_count
from studies.storage.reads import bridge_start


class TopFractionPruner(BasePruner):
    """Pruner that stops trials that are unlikely to finish among the best of their study.

    Optuna cannot resume a stopped trial. So that early trials are not stopped for lack of evidence,
    no trial is pruned before as many are complete as are to be kept, and the expected losses grow
    no faster than the number of started trials.

    Args:
        steps: step at which a trial ends.
        log_every: steps between two reports, and before the first.
        keep: fraction of all trials to keep.
        confidence: share of that fraction that is expected to be kept.
        planned: number of trials that the study will have, unless they are already enqueued.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        steps: int,
        log_every: int = 1,
        *,
        keep: float = 0.1,
        confidence: float = 0.95,
        planned: int = 0,
    ) -> None:
        if not 0 < keep < 1:
            raise ValueError(f"keep is {keep}: expected a value above 0 and below 1")
        if not 0.5 <= confidence < 1:
            raise ValueError(f"confidence is {confidence}: expected at least 0.5 and less than 1")
        if not 0 < log_every <= steps:
            raise ValueError(
                f"log_every is {log_every} and steps is {steps}: expected 1 <= log_every <= steps"
            )
        self._steps = steps
        self._rungs = compute_rungs(steps, log_every)
        self._keep = keep
        self._confidence = confidence
        self._planned = planned

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether a trial that has just reported should stop; an audited one never does."""
        if AUDIT in trial.system_attrs:
            return False
        reported = sorted(trial.intermediate_values)
        previous, last = ([0, 0, *reported])[-2:]
        if not any(previous < rung.step <= last for rung in self._rungs):
            return False
        if math.isnan(trial.intermediate_values[last]):
            return True  # as Optuna's pruners do
        trials = study.get_trials(deepcopy=False)
        index = next(i for i, other in enumerate(trials) if other.number == trial.number)
        trials[index] = trial
        state = self._state(study, trials)
        if not state.rungs_reached[index]:
            return False  # it has no loss at a rung yet
        needed = top_count(self._keep, max(self._planned, len(trials)))
        # Without a regression the prediction is the current loss, which complete trials are below.
        if state.in_stage(TrialStage.COMPLETE).sum() < max(needed, MIN_COMPLETE):
            return False
        return PruningPolicy(state, self._keep, self._confidence).should_stop(index)

    def _state(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> StudyState:
        sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
        values = [
            sign * trial.value
            if trial.state is TrialState.COMPLETE and trial.value is not None
            else math.nan
            for trial in trials
        ]
        stages = [TrialStage.from_state(trial.state) for trial in trials]
        stages = [
            TrialStage.FAILED
            if stage is TrialStage.COMPLETE and not math.isfinite(value)
            else stage
            for stage, value in zip(stages, values, strict=True)
        ]
        values = [value if math.isfinite(value) else math.nan for value in values]
        losses = [
            [
                sign * loss
                for loss in bridge_start(list(self._rung_losses(trial.intermediate_values)))
            ]
            for trial in trials
        ]
        return StudyState(
            stages,
            np.array(losses),
            np.array(values),
            DesignMatrix.from_params([trial.params for trial in trials]),
            compute_steps_to_next_rung(self._rungs, self._steps),
        )

    def _rung_losses(self, curve: Mapping[int, float]) -> Iterator[float]:
        """Yield a trial's loss at each rung, NaN where it has none."""
        last = max(curve, default=0)
        for rung in self._rungs:
            seen = [loss for step, loss in curve.items() if rung.after < step <= rung.step]
            seen = seen or [curve[step] for step in sorted(curve) if step <= rung.step][-1:]
            is_known = last >= rung.step and seen and np.isfinite(seen).all()
            yield float(np.mean(seen)) if is_known else math.nan
