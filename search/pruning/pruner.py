"""The pruner for plain Optuna; what our own worker makes of the same judgement is in `pausing`."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.pruning.policy import PruningPolicy, StudyState, TrialStage, ahead_of, rungs_of
from search.pruning.predictions import DesignMatrix
from studies.config import top_count


class TopFractionPruner(BasePruner):
    """Gives up on a trial when it is unlikely to end among the best of its study, in plain Optuna.

    Optuna knows no pausing: a trial that is stopped is not gone on with. So that points that began
    early are not stopped for want of better knowledge, none is before as many trials are complete
    as are to be kept, and what may be lost is spent no faster than trials are begun.

    Args:
        steps: at which a trial ends.
        log_every: steps between two reports, the first after as many.
        keep: the fraction of all trials that is to be kept.
        confidence: of that fraction, the share that is expected to be kept at least.
        planned: how many trials the study will have, if it does not hold them already, waiting.
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
            raise ValueError(f"keep is {keep}; allowed: above 0 and below 1; correct it")
        if not 0.5 <= confidence < 1:
            raise ValueError(
                f"confidence is {confidence}; allowed: 0.5 and more, below 1; correct it"
            )
        if not 0 < log_every <= steps:
            raise ValueError(
                f"log_every is {log_every} and steps {steps}; allowed: 1 ≤ log_every ≤ steps; "
                "correct them"
            )
        self._steps = steps
        self._rungs = rungs_of(steps, log_every)
        self._keep = keep
        self._confidence = confidence
        self._planned = planned

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial, which has just reported, is to be given up."""
        reported = sorted(trial.intermediate_values)
        before, last = ([0, 0, *reported])[-2:]
        if not any(before < rung.step <= last for rung in self._rungs):
            return False
        if math.isnan(trial.intermediate_values[last]):
            return True  # as Optuna's own pruners do
        trials = study.get_trials(deepcopy=False)
        place = next(i for i, other in enumerate(trials) if other.number == trial.number)
        trials[place] = trial
        standing = self._standing(study, trials)
        needed = top_count(self._keep, max(self._planned, len(trials)))
        if standing.where(TrialStage.COMPLETE).sum() < needed:
            return False
        return PruningPolicy(standing, self._keep, self._confidence).may_stop(place)

    def _standing(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> StudyState:
        sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
        values = [
            sign * trial.value
            if trial.state is TrialState.COMPLETE and trial.value is not None
            else math.nan
            for trial in trials
        ]
        stages = [
            TrialStage.FAILED
            if stage is TrialStage.COMPLETE and not math.isfinite(value)
            else stage
            for stage, value in zip((TrialStage.of(t.state) for t in trials), values, strict=True)
        ]
        values = [value if math.isfinite(value) else math.nan for value in values]
        losses = [
            [sign * loss for loss in self._losses(trial.intermediate_values)] for trial in trials
        ]
        return StudyState(
            stages,
            np.array(losses),
            np.array(values),
            DesignMatrix.of([trial.params for trial in trials]),
            ahead_of(self._rungs, self._steps),
        )

    def _losses(self, curve: Mapping[int, float]) -> Iterator[float]:
        """Yield a trial's loss at each rung, NaN from the first that it has not come to."""
        last = max(curve, default=0)
        for rung in self._rungs:
            seen = [loss for step, loss in curve.items() if rung.after < step <= rung.step]
            seen = seen or [curve[step] for step in sorted(curve) if step <= rung.step][-1:]
            if last < rung.step or not seen or not np.isfinite(seen).all():
                last = 0  # nothing after a gap
            yield float(np.mean(seen)) if last else math.nan
