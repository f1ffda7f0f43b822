"""Decide which trials to continue, pause, resume or prune, from their predicted final values.

Trials are compared at *rungs*, fixed fractions of the training. Predictions of the final values
(:mod:`search.pruning.predictions`) give the probability of each trial to finish among the best that
are to be kept. As in freeze-thaw Bayesian optimization (Swersky, Snoek & Adams, arXiv:1406.3896),
every trial is trained to the first rung; then the most promising are promoted from rung to rung,
and their results improve the predictions of the others. The least promising are pruned meanwhile,
as far as the allowed loss of the best permits, and all that are paused once it covers them.

Decisions depend on the stored state of the study alone. Audited trials
(:mod:`search.pruning.audited_trials`) are, in decisions, where the policy would have stopped them.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.pruning.audited_trials import AuditedTrials
from search.pruning.predictions import (
    Prediction,
    PredictionMemory,
    Rungs,
    predict_final_values,
)
from search.pruning.regression import DesignMatrix, Floats, Indices, Mask
from studies.attributes import FIRST_LOOK, LAST_LOOK, AuditLook, AuditState
from studies.best import top_count
from studies.storage.storage import AuditDecision
from studies.storage.trials import TrialStatus

ALWAYS_CONTINUE = 0.5
"""Keep probability from which a trial is continued without a pause for others."""

MAX_ACTIVE_FACTOR = 2.0
"""How many of the most promising trials may be promoted while others run, as a multiple of the
number to keep. Without a limit, 64 workers on 96 trials trained half as much again."""

SPENDING_EXPONENT = 2.0
"""How late the loss budget is spent: see :meth:`PruningPolicy.to_prune`."""


@dataclass(frozen=True)
class PruneDecision:
    """Decision that a trial is pruned (``is_final``) or paused, with attributes to record."""

    is_final: bool
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Decisions:
    """Decisions on a study's trials.

    Attributes:
        stops: trials at a rung that are paused or pruned, by id; trials that continue are absent.
        pruned: paused trials that are pruned, by id.
        resumed: ids of paused trials to resume, the most promising first.
        audited: decisions about audited trials to store, by id.
        looks: planned looks at the audited trials to store before anything is pruned, by name.
    """

    stops: Mapping[int, PruneDecision] = field(default_factory=dict)
    pruned: Mapping[int, PruneDecision] = field(default_factory=dict)
    resumed: Sequence[int] = ()
    audited: Mapping[int, AuditDecision] = field(default_factory=dict)
    looks: Mapping[str, AuditLook] = field(default_factory=dict)


def is_stopped(audit: AuditState, losses: Sequence[float]) -> bool:
    """Return whether an audited trial with these losses, (R,), has stopped in decisions."""
    return audit.rungs <= len(losses) and not math.isnan(losses[audit.rungs - 1])


@dataclass(frozen=True)
class StudyState:
    """Those N trials of a study that did not fail, as decisions see them, with R rungs.

    An audited trial has the stage that it would have if it were not audited.

    Attributes:
        stages: (N,) stage of each trial.
        losses: (N, R) loss at each rung; NaN where a trial has not reached it.
        values: (N,) values of complete trials; NaN for the others.
        design: parameters of the trials.
        architectures: (N,) architecture of each trial.
        steps_to_next_rung: (R + 1,) steps from the start and from each rung to the next.
        held_out: (N,) number of rungs after which an audited trial with a value is paused or pruned
            in decisions; -1 for all other trials.
        pruned_at: (N,) keep probability recorded when a trial was last stopped; NaN without one.
        failed: number of trials that failed, which rank last.
    """

    stages: Sequence[TrialStatus]
    losses: Floats
    values: Floats
    design: DesignMatrix
    architectures: Indices
    steps_to_next_rung: Floats
    held_out: Rungs
    pruned_at: Floats
    failed: int = 0

    def stop_audited(
        self, audits: Mapping[int, AuditState], asked: Collection[int] = ()
    ) -> "StudyState":
        """Return the state in which audited trials are where the policy would have stopped them.

        Args:
            audits: what was decided about each audited trial, by index.
            asked: indices of running trials to decide about; audited ones are not stopped yet.
        """
        stages, losses, held_out = list(self.stages), self.losses.copy(), self.held_out.copy()
        for index, audit in audits.items():
            if not is_stopped(audit, losses[index]):
                continue
            if math.isnan(self.values[index]):
                losses[index, audit.rungs :] = math.nan
            else:
                held_out[index] = audit.rungs
            paused = TrialStatus.RUNNING if index in asked else TrialStatus.PAUSED
            stages[index] = TrialStatus.PRUNED if audit.pruned else paused
        return replace(self, stages=stages, losses=losses, held_out=held_out)

    def leave_out(self, trial: int) -> "StudyState":
        """Return the state without the values of the held trials of a trial's architecture."""
        left_out = self.is_held & (self.architectures == self.architectures[trial])
        is_later = np.arange(self.losses.shape[1]) >= self.held_out[:, None]
        return replace(
            self,
            losses=np.where(left_out[:, None] & is_later, math.nan, self.losses),
            values=np.where(left_out, math.nan, self.values),
            held_out=np.where(left_out, -1, self.held_out),
        )

    def in_stage(self, *stages: TrialStatus) -> Mask:
        """Return which trials are in one of these stages, (N,)."""
        return np.isin(self._names, stages)

    @cached_property
    def _names(self) -> NDArray[np.str_]:
        return np.array(self.stages, dtype=str)

    @cached_property
    def rungs_reached(self) -> Rungs:
        """Number of rungs that each trial has reached in decisions, (N,)."""
        return np.where(self.is_held, self.held_out, (~np.isnan(self.losses)).sum(axis=1))

    @property
    def is_held(self) -> Mask:
        """Which trials have a value that decisions about them do not use, (N,)."""
        return self.held_out >= 0

    @cached_property
    def complete(self) -> int:
        """Number of complete trials."""
        return int(self.in_stage(TrialStatus.COMPLETE).sum())


class PruningPolicy:
    """Decisions for one state of a study.

    Args:
        state: state of its trials.
        keep: fraction of the trials to keep.
        confidence: share of that fraction that is expected to be kept.
        recalibrate: whether a look at the audited trials has found the predictions to be wrong.
        memory: predictions for earlier states of the study, which is updated.

    Attributes:
        count: number of trials, those that failed included.
        top_count: number of trials to keep.
        loss_budget: expected number of them that may be lost.
    """

    def __init__(
        self,
        state: StudyState,
        keep: float,
        confidence: float,
        recalibrate: bool = False,
        memory: PredictionMemory | None = None,
    ) -> None:
        self.state = state
        self._keep = keep
        self._confidence = confidence
        self._recalibrate = recalibrate
        self._memory = {} if memory is None else memory
        self.count = len(state.stages) + state.failed
        # Trials and not architectures, also with nuisance parameters: the same confidence for a
        # smaller set allows fewer losses, and searches cost half as much again.
        self.top_count = top_count(keep, self.count)
        self.loss_budget = (1 - confidence) * self.top_count

    def leave_out(self, trial: int) -> "PruningPolicy":
        """Return the policy as if an audited trial were trained no further than in decisions.

        In :attr:`prediction` the trial's value has a part in its own prediction: it is data for
        trials that stopped at later rungs, whose predictions are data for this one. What is
        recorded to be compared with the value must not depend on it.
        """
        if not self.state.is_held[trial]:
            return self
        state = self.state.leave_out(trial)
        return PruningPolicy(state, self._keep, self._confidence, self._recalibrate)

    def predict_to_record(self) -> Prediction:
        """Predict the final values once more, to be recorded with paused trials to prune, (N,).

        Each audited trial is predicted as by :meth:`leave_out`, and these errors set the width of
        all predictions. Those in decisions are too small for that, because the trial's value has a
        part in them. It takes a regression for each audited trial.
        """
        found = self._uncorrected
        mean, scale = found.mean.copy(), found.scale.copy()
        for trial in np.flatnonzero(self.state.is_held).tolist():
            alone = self.leave_out(trial)._uncorrected
            mean[trial], scale[trial] = alone.mean[trial], alone.scale[trial]
        return self._correct(replace(found, mean=mean, scale=scale))

    @cached_property
    def prediction(self) -> Prediction:
        """Final value of each trial, (N,)."""
        return self._correct(self._uncorrected)

    @cached_property
    def top_threshold(self) -> float:
        """Value below which as many trials are expected to finish as are to be kept."""
        return self.prediction.threshold_for_count(self.top_count)

    @cached_property
    def keep_probabilities(self) -> Floats:
        """Probability of each trial to finish among the best, (N,); they sum to the top count."""
        return self.prediction.cdf(self.top_threshold)

    @cached_property
    def promotion_scores(self) -> Floats:
        """Score of training each trial to its next rung, (N,).

        Between the probability, which ignores that late rungs cost many steps, and the probability
        per step, which would train everything cheap first. To count the time of a step as well
        saved no time: how close the best finish decides what must be trained, not the order.
        """
        steps = self.state.steps_to_next_rung[self.state.rungs_reached]
        scores: Floats = self.keep_probabilities / np.sqrt(steps)
        return scores

    @cached_property
    def to_resume(self) -> list[int]:
        """Those of :attr:`to_resume_ignoring_running` that resume while others run."""
        return [trial for trial in self.to_resume_ignoring_running if self._is_active[trial]]

    @cached_property
    def to_resume_ignoring_running(self) -> list[int]:
        """Indices of the paused trials, the most promising first; empty if none is needed."""
        if self.state.in_stage(TrialStatus.WAITING).any():
            return []
        paused = np.flatnonzero(self.state.in_stage(TrialStatus.PAUSED))
        if not len(paused) or self._lost <= self.loss_budget:
            return []
        order = np.argsort(-self.promotion_scores[paused], kind="stable")
        return [int(trial) for trial in paused[order]]

    def look(self) -> AuditLook:
        """Test the predictions on the audited trials that are stopped in decisions.

        Their scale is not adjusted, which would hide that they are wrong; after an alarm they are
        recalibrated.
        """
        found = self.prediction if self._recalibrate else self._uncorrected
        return self._audit(found).look(self.state.complete)

    def due_look(self, taken: Collection[str], is_idle: bool) -> str | None:
        """Return the planned look that is due before any trial is pruned; None without one.

        The last one is due once no trial is trained (``is_idle``), audited ones included.
        """
        if is_idle and self.is_final:
            return None if LAST_LOOK in taken else LAST_LOOK
        return FIRST_LOOK if self._has_enough_complete and not taken else None

    @property
    def is_final(self) -> bool:
        """Whether no paused trial will be resumed."""
        unfinished = self.state.in_stage(TrialStatus.WAITING, TrialStatus.RUNNING)
        return not unfinished.any() and not self.to_resume_ignoring_running

    def is_likely(self, trial: int) -> bool:
        """Return whether a running trial at a rung continues whatever others do."""
        is_waiting = self.state.in_stage(TrialStatus.WAITING).any()
        return bool(not is_waiting and self.keep_probabilities[trial] >= ALWAYS_CONTINUE)

    def is_unlikely(self, trial: int) -> bool:
        """Return whether a running trial is pruned now because it cannot be paused.

        Each may be pruned with its share of the loss budget, so that all together spend at most
        that.
        """
        share = self.loss_budget / self.count
        return bool(self._has_enough_complete and self.keep_probabilities[trial] <= share)

    def should_continue(self, trial: int) -> bool:
        """Return whether a running trial at a rung continues; otherwise others come first."""
        if self.is_likely(trial):
            return True
        if self.state.in_stage(TrialStatus.WAITING).any() or not self._is_active[trial]:
            return False
        keep_probability = self.keep_probabilities[trial]
        paused = self.state.in_stage(TrialStatus.PAUSED)
        best_paused = self.promotion_scores[paused].max(initial=0)
        is_needed = self._lost + keep_probability > self.loss_budget
        return bool(is_needed and self.promotion_scores[trial] >= best_paused)

    @cached_property
    def to_prune(self) -> Collection[int]:
        """Indices of the paused trials, and of running ones at a rung, that are pruned now.

        With a loss budget of B, and L of the best expected among the unfinished and the pruned
        trials, B · (B / L)² may be spent so far (as by the spending functions of Lan & DeMets,
        *Discrete Sequential Boundaries for Clinical Trials*, 1983): little while much is open, all
        of it at the end. The least probable trials are pruned for it, none that is to train on.
        Keep probabilities of calibrated predictions are a martingale, so as many of the best are
        expected to be lost as are spent, whatever evidence comes later.

        Empty until as many trials are complete as are to be kept and all have reached a rung.
        """
        if not self._has_enough_complete or self.state.in_stage(TrialStatus.WAITING).any():
            return ()
        unfinished = self.state.in_stage(TrialStatus.PAUSED, TrialStatus.RUNNING)
        at_stake = self._pruned_loss + float(self.keep_probabilities[unfinished].sum())
        share = (self.loss_budget / max(at_stake, self.loss_budget)) ** SPENDING_EXPONENT
        unfinished[self.plan_training()] = False
        candidates = np.flatnonzero(unfinished)
        order = candidates[np.argsort(self.keep_probabilities[candidates], kind="stable")]
        spent = self._pruned_loss + self.keep_probabilities[order].cumsum()
        return frozenset(order[spent <= share * self.loss_budget].tolist())

    def plan_training(self) -> list[int]:
        """Return the indices of the trials that train on if predictions stay as they are.

        They are running and paused ones, the most promising first. Among the others and the pruned
        ones, no more of the best are expected than the loss budget.
        """
        unfinished = self.state.in_stage(TrialStatus.PAUSED, TrialStatus.RUNNING)
        candidates = np.flatnonzero(unfinished)
        order = candidates[np.argsort(-self.promotion_scores[candidates], kind="stable")]
        probabilities = self.keep_probabilities[order]
        lost = self._pruned_loss + probabilities.sum() - (probabilities.cumsum() - probabilities)
        return [int(trial) for trial in order[lost > self.loss_budget]]

    @cached_property
    def _lost(self) -> float:
        """Number of the best that are expected among the paused and the pruned trials."""
        paused = self.state.in_stage(TrialStatus.PAUSED)
        return self._pruned_loss + float(self.keep_probabilities[paused].sum())

    @cached_property
    def _pruned_loss(self) -> float:
        """Number of the best that were expected among the pruned trials when they were pruned.

        Later evidence about them does not count: it cannot bring them back, and the expected number
        of losses is that at the time of each decision.
        """
        pruned_at = self.state.pruned_at
        expected = np.where(np.isnan(pruned_at), self.keep_probabilities, pruned_at)
        return float(expected[self.state.in_stage(TrialStatus.PRUNED)].sum())

    @cached_property
    def _is_active(self) -> Mask:
        """Which trials are among the most promising, or run while no other trial does, (N,).

        The limit does not depend on the number of workers: results of the first few improve the
        predictions of the others. Finished trials count.
        """
        running = self.state.in_stage(TrialStatus.RUNNING)
        others = running.sum() - running  # (N,) other running trials
        ordered = np.sort(self.keep_probabilities)
        better = len(ordered) - np.searchsorted(ordered, self.keep_probabilities, side="right")
        active: Mask = (better < MAX_ACTIVE_FACTOR * self.top_count) | (others == 0)
        return active

    @property
    def _has_enough_complete(self) -> bool:
        return self.state.complete >= self.top_count

    @cached_property
    def _uncorrected(self) -> Prediction:
        state = self.state
        return predict_final_values(
            state.design,
            state.losses,
            state.values,
            state.held_out,
            state.architectures,
            self._memory,
        )

    def _correct(self, prediction: Prediction) -> Prediction:
        audited = self._audit(prediction)
        return audited.recalibrate() if self._recalibrate else audited.adjust_scale()

    def _audit(self, prediction: Prediction) -> AuditedTrials:
        state = self.state
        return AuditedTrials(prediction, state.values, state.is_held, state.architectures)
