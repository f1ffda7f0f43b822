"""Pruners with which ours is compared, and which Optuna does not contain."""

import math

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from benchmarks.recorded_curves import RecordedCurves, ReplayResult
from search.pruning.regression import Floats
from studies.config import top_count


def keep_best_at_first_rung(recorded: RecordedCurves, keep: float) -> ReplayResult:
    """Train all trials to the first rung, and those to the end that are to be kept.

    The baseline of Egele et al., *Is One Epoch All You Need For Multi-Fidelity Hyperparameter
    Optimization?*, arXiv:2307.15422, 2023.
    """
    count = len(recorded.values)
    kept = top_count(keep, count)
    complete = np.zeros(count, dtype=bool)
    complete[np.argsort(recorded.losses[:, 0], kind="stable")[:kept]] = True
    first = recorded.rungs[0].step
    steps = count * first + kept * (recorded.end - first)
    return ReplayResult.summarize(recorded, keep, complete, steps, count + kept)


class ConformalPruner(BasePruner):
    """Pruner that bounds the expected share of trials that are good and pruned.

    The rule of the pruner of this name in OptunaHub (A. Noonan, package ``pruners/conformal``),
    with its defaults but for the first step. The first complete trials calibrate it: a trial is
    good if it ends within their best fifth, and its score is the most that its loss lies above the
    worst of these ends from the first step on. The threshold is a quantile of the scores, of which
    those of other trials are lowest (conformal risk control). A trial whose loss lies further above
    is pruned.

    Args:
        first_step: step before which no trial is pruned; losses fall so much before it that the
            threshold would be above all later ones.
        calibration: number of trials that are not pruned.
        level: bound of the share.
        good: share of the trials that are good.
    """

    def __init__(
        self, first_step: int, calibration: int = 60, level: float = 0.05, good: float = 0.2
    ) -> None:
        self._first_step = first_step
        self._calibration, self._level, self._good = calibration, level, good
        self._limit: float | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the last loss of a trial is above the limit; none before there is one."""
        if self._limit is None:
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(complete) < self._calibration:
                return False
            curves = [
                [
                    loss
                    for step, loss in each.intermediate_values.items()
                    if step >= self._first_step
                ]
                for each in complete
            ]
            self._limit = self._find_limit(np.array(curves[: self._calibration]))
        last = max(trial.intermediate_values)
        return last >= self._first_step and trial.intermediate_values[last] > self._limit

    def _find_limit(self, curves: Floats) -> float:
        """Return the loss above which a trial is pruned, from complete curves, (N, L)."""
        count, ends = len(curves), curves[:, -1]
        worst = float(np.sort(ends)[math.ceil(self._good * count) - 1])
        scores = np.where(ends <= worst, curves[:, :-1].max(axis=1) - worst, -math.inf)
        place = math.ceil((1 - self._level) * (count + 1)) - 1
        return worst + float(np.sort(scores)[place])
