"""Decide which trials to continue, pause, resume or prune, from their predicted final values.

Trials are compared at *rungs*, fixed fractions of the training. Predictions of the final values
(:mod:`search.pruning.predictions`) give the probability of each trial to finish among the best that
are to be kept. As in freeze-thaw Bayesian optimization (Swersky, Snoek & Adams, arXiv:1406.3896),
every trial is trained to the first rung; then the most promising are promoted from rung to rung,
and their results improve the predictions of the others. The search is complete when less than the
allowed share of the best is expected among the paused trials; these are then pruned.

Decisions depend on the stored state of the study alone.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property

import numpy as np

from search.pruning.audit import Look, adjust_scale, look, recalibrate
from search.pruning.predictions import Prediction, PredictionMemory, predict_final_values
from search.pruning.regression import Floats, Indices, Mask
from search.pruning.study_state import StudyState, TrialStage
from studies.config import top_count

ALWAYS_CONTINUE = 0.5
"""Keep probability from which a trial is continued without a pause for others."""

MAX_ACTIVE_FACTOR = 2.0
"""How many of the most promising trials may be promoted while others run, as a multiple of the
number to keep."""

FIRST_LOOK, LAST_LOOK = "first", "last"
"""Planned looks at the audited trials: once as many trials are complete as are to be kept, before
which none is pruned, and before the paused trials are pruned."""

HOPELESS_SHARE = 0.1
"""Share of the loss budget that trials pruned before the end of the search may use."""


class PruningPolicy:
    """Decisions for one state of a study.

    Args:
        state: state of its N trials.
        keep: fraction of the trials to keep.
        confidence: share of that fraction that is expected to be kept.
        prediction: final values of the trials that did not fail, if already computed.
        recalibrate: whether a look at the audited trials has found the predictions to be wrong.
        memory: predictions for earlier states of the study.

    Attributes:
        top_count: number of trials to keep.
        loss_budget: expected number of them that may be lost.
    """

    def __init__(
        self,
        state: StudyState,
        keep: float,
        confidence: float,
        prediction: Prediction | None = None,
        recalibrate: bool = False,
        memory: PredictionMemory | None = None,
    ) -> None:
        self.state = state
        self._memory = memory
        self.recalibrate = recalibrate
        self._given_prediction = prediction
        self.top_count = top_count(keep, len(state.stages))
        self.loss_budget = (1 - confidence) * self.top_count

    @cached_property
    def prediction(self) -> Prediction:
        """Final value of each trial, (N,); infinite for failed trials."""
        viable, prediction = self._viable, self._viable_prediction
        mean, scale = np.full(len(viable), np.inf), np.zeros(len(viable))
        mean[viable], scale[viable] = prediction.mean, prediction.scale
        return replace(prediction, mean=mean, scale=scale)

    @cached_property
    def top_threshold(self) -> float:
        """Value below which as many trials are expected to finish as are to be kept."""
        return self._viable_prediction.threshold_for_count(self.top_count)

    @cached_property
    def keep_probabilities(self) -> Floats:
        """Probability of each trial to finish among the best, (N,); they sum to the top count."""
        viable = self._viable
        probabilities = np.zeros(len(viable))
        probabilities[viable] = self._viable_prediction.cdf(self.top_threshold)
        return probabilities

    @cached_property
    def promotion_scores(self) -> Floats:
        """Score of training each trial to its next rung, (N,).

        A compromise: the probability alone ignores that late rungs cost many steps, and probability
        per step would train everything cheap first.
        """
        steps = self.state.steps_to_next_rung[self.state.rungs_reached]
        scores: Floats = self.keep_probabilities / np.sqrt(steps)
        return scores

    @cached_property
    def to_resume(self) -> list[int]:
        """Indices of the paused trials to resume now, the most promising first.

        While others run, only trials within the active set.
        """
        return [trial for trial in self.to_resume_ignoring_running if self._is_active[trial]]

    @cached_property
    def to_resume_ignoring_running(self) -> list[int]:
        """Indices of the paused trials, the most promising first; empty if none is needed."""
        if self.state.in_stage(TrialStage.WAITING).any():
            return []
        paused = np.flatnonzero(self.state.in_stage(TrialStage.PAUSED))
        stopped = self.state.in_stage(TrialStage.PAUSED, TrialStage.PRUNED)
        lost = self.keep_probabilities[stopped].sum()
        if not len(paused) or lost <= self.loss_budget:
            return []
        order = np.argsort(-self.promotion_scores[paused], kind="stable")
        return [int(trial) for trial in paused[order]]

    def look(self) -> Look:
        """Test the predictions on the audited trials that are stopped in decisions.

        Their scale is not adjusted, which would hide that they are wrong; after an alarm they are
        recalibrated.
        """
        found = self._viable_prediction if self.recalibrate else self._uncorrected_prediction
        return look(found, *self._audit_of_viable)

    def due_look(self, taken: Collection[str], is_idle: bool) -> str | None:
        """Return the planned look that is due before any trial is pruned; None without one.

        Args:
            taken: names of the looks so far.
            is_idle: whether no trial is being trained, audited ones included.
        """
        if is_idle and self.is_final:
            return None if LAST_LOOK in taken else LAST_LOOK
        return FIRST_LOOK if self._has_enough_complete and not taken else None

    @property
    def is_final(self) -> bool:
        """Whether no paused trial will be resumed."""
        unfinished = self.state.in_stage(TrialStage.WAITING, TrialStage.RUNNING)
        return not unfinished.any() and not self.to_resume_ignoring_running

    def should_continue(self, trial: int) -> bool:
        """Return whether a running trial at a rung continues; otherwise others come first."""
        if self.state.in_stage(TrialStage.WAITING).any():
            return False
        keep_probability = self.keep_probabilities[trial]
        if keep_probability >= ALWAYS_CONTINUE:
            return True
        if not self._is_active[trial]:
            return False
        paused = self.state.in_stage(TrialStage.PAUSED)
        stopped = paused | self.state.in_stage(TrialStage.PRUNED)
        lost = self.keep_probabilities[stopped].sum() + keep_probability
        best_paused = self.promotion_scores[paused].max(initial=0)
        return bool(lost > self.loss_budget and self.promotion_scores[trial] >= best_paused)

    def should_prune_now(self, trial: int) -> bool:
        """Return whether a trial at a rung can be pruned whatever the results of the others.

        Only once as many trials are complete as are to be kept. Together, trials pruned so use at
        most :data:`HOPELESS_SHARE` of the loss budget.
        """
        bound = HOPELESS_SHARE * self.loss_budget / len(self.state.stages)
        return self._has_enough_complete and bool(self.keep_probabilities[trial] <= bound)

    def should_stop(self, trial: int) -> bool:
        """Return whether a running trial at a rung is pruned where trials cannot be paused."""
        if self.keep_probabilities[trial] > self.loss_budget / self.top_count:
            return False
        started = (~self.state.in_stage(TrialStage.WAITING)).mean()
        pruned = self.state.in_stage(TrialStage.PRUNED)
        lost = self.keep_probabilities[pruned].sum() + self.keep_probabilities[trial]
        return bool(lost <= self.loss_budget * started)

    @cached_property
    def _is_active(self) -> Mask:
        """Which trials are among the most promising, or run while no other trial does, (N,).

        The limit does not depend on the number of workers: results of the first few improve the
        predictions of the others. Finished trials count.
        """
        running = self.state.in_stage(TrialStage.RUNNING)
        others = running.sum() - running  # (N,) other running trials
        ordered = np.sort(self.keep_probabilities)
        better = len(ordered) - np.searchsorted(ordered, self.keep_probabilities, side="right")
        active: Mask = (better < MAX_ACTIVE_FACTOR * self.top_count) | (others == 0)
        return active

    @property
    def _has_enough_complete(self) -> bool:
        """Whether as many trials are complete as are to be kept."""
        return bool(self.state.in_stage(TrialStage.COMPLETE).sum() >= self.top_count)

    @property
    def _viable(self) -> Mask:
        return ~self.state.in_stage(TrialStage.FAILED)

    @cached_property
    def _viable_prediction(self) -> Prediction:
        if self._given_prediction is not None:
            return self._given_prediction
        correct = recalibrate if self.recalibrate else adjust_scale
        return correct(self._uncorrected_prediction, *self._audit_of_viable)

    @cached_property
    def _uncorrected_prediction(self) -> Prediction:
        state, viable = self.state, self._viable
        return predict_final_values(
            state.design,
            state.losses,
            state.values,
            state.held_out,
            state.owners,
            ~viable,
            self._memory,
        ).select(viable)

    @property
    def _audit_of_viable(self) -> tuple[Floats, Mask, Indices]:
        """Values, which are held out, and architectures of the trials that did not fail."""
        state, viable = self.state, self._viable
        return state.values[viable], state.is_held[viable], state.owners[viable]
