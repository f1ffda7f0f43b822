"""Pause-and-resume scheduler: apply the pruning policy to the stored state of a study."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search.pruning.audited_trials import number_architectures
from search.pruning.policy import Decisions, PruneDecision, PruningPolicy, StudyState, is_stopped
from search.pruning.predictions import MIN_COMPLETE, Prediction, PredictionMemory
from search.pruning.regression import DesignMatrix, Floats, Indices
from studies.attributes import (
    AUDIT_LOOKS,
    AUDIT_NUISANCE,
    KEEP_PROBABILITY,
    RUNG,
    AuditLook,
    AuditState,
)
from studies.config import StudyConfig
from studies.storage.edits import update_system_attributes
from studies.storage.reads import Rung, read_attribute_of_all, read_audit_looks
from studies.storage.storage import AuditDecision, LeasedRDBStorage
from studies.storage.tables import TRIAL_PARAMS, TRIAL_VALUES
from studies.storage.trials import StoredTrial, TrialStatus

RUNG_FRACTIONS = (0.04, 0.08, 0.16, 0.32, 0.64)
"""Fractions of the training steps at which the rungs lie. More, fewer and other ones cost as much
within a few percent of the steps, and none was better on all curves."""

SMOOTHING_FRACTION = 0.2
"""Last part of the steps to a rung over which the loss is averaged: single log points are noisy."""


def compute_rungs(steps: int, log_every: int) -> list[Rung]:
    """Return the rungs of a training: log points before its end."""
    rungs: list[Rung] = []
    last = 0
    for fraction in RUNG_FRACTIONS:
        step = math.ceil(fraction * steps / log_every) * log_every
        if last < step < steps:
            start = max(last, min(int((1 - SMOOTHING_FRACTION) * step), step - log_every))
            rungs.append(Rung(step, start))
            last = step
    return rungs


def compute_steps_to_next_rung(rungs: Sequence[Rung], steps: int) -> Floats:
    """Return the steps from the start and from each rung to the next rung or the end, (R + 1,)."""
    return np.diff([0, *(rung.step for rung in rungs), steps]).astype(float)


@dataclass(frozen=True)
class StudyProgress:
    """State of a study as it is stored, from which decisions are computed.

    Attributes:
        trials: those N grid trials that did not fail, as decisions see them, by number.
        state: what is known of them; the design is the same object while they are the same.
        planned: number of grid trials.
        is_audited: whether some trials are audited.
        looks: planned looks at the audited trials so far, by name.
    """

    trials: Sequence[StoredTrial]
    state: StudyState
    planned: int
    is_audited: bool
    looks: Mapping[str, AuditLook]

    @property
    def can_prune(self) -> bool:
        """Whether trials may be pruned: the first look comes before."""
        return not self.is_audited or bool(self.looks)

    @property
    def is_idle(self) -> bool:
        """Whether every trial is finished or paused."""
        return all(trial.is_paused or trial.state.is_finished() for trial in self.trials)


class PauseResumeScheduler:
    """Decides which trials to pause, resume and prune, from the stored state of the study alone.

    Only :meth:`read` and :meth:`store` use the storage.
    """

    def __init__(self, storage: LeasedRDBStorage, study_id: int, config: StudyConfig) -> None:
        self._storage = storage
        self._study_id = study_id
        self._settings = config.pruning
        length = config.length_of()
        self._steps = length.steps
        self._rungs = compute_rungs(length.steps, length.log_every)
        columns = TRIAL_PARAMS, TRIAL_VALUES
        self._reader = storage.reader(study_id, columns, self._rungs)
        self._memory: PredictionMemory = {}
        self._encoded: list[tuple[int, bool]] = []  # number of each trial, whether it did not fail
        self._design = DesignMatrix.from_params([])
        self._architectures: Indices = np.empty(0, dtype=np.int64)

    def read(self) -> StudyProgress:
        """Read the state of the study; after the first time, little more than what has changed."""
        stored = self._reader.read()
        is_viable = [not _has_failed(trial) for trial in stored]
        encoded = [(trial.number, viable) for trial, viable in zip(stored, is_viable, strict=True)]
        if encoded != self._encoded:
            params = [trial.params for trial in stored]
            attributes = self._storage.get_study_user_attrs(self._study_id)
            architectures = number_architectures(params, attributes.get(AUDIT_NUISANCE, []))
            mask = np.array(is_viable, dtype=bool)
            self._design = DesignMatrix.from_params(params).select(mask)
            self._architectures = architectures[mask]
            self._encoded = encoded
        trials = list(itertools.compress(stored, is_viable))
        pruned_at = read_attribute_of_all(self._storage, self._study_id, KEEP_PROBABILITY)
        state = StudyState(
            [trial.status for trial in trials],
            np.array([trial.losses for trial in trials]).reshape(len(trials), len(self._rungs)),
            np.array([trial.value for trial in trials], dtype=np.float64),  # NaN for None
            self._design,
            self._architectures,
            compute_steps_to_next_rung(self._rungs, self._steps),
            np.full(len(trials), -1),
            np.array([pruned_at.get(trial.number, math.nan) for trial in trials]),
            is_viable.count(False),
        )
        return StudyProgress(
            trials,
            state,
            planned=len(stored),
            is_audited=any(trial.is_audited for trial in stored),
            looks=read_audit_looks(self._storage, self._study_id),
        )

    def decide(
        self, progress: StudyProgress, trial_ids: Collection[int], deferred: Collection[int] = ()
    ) -> Decisions:
        """Decide which of these running trials, which have reached a rung, are paused or pruned.

        Other trials do not wait for the deferred ones, to retry after an error.
        """
        asked = {
            trial.trial_id: index
            for index, trial in enumerate(progress.trials)
            if trial.trial_id in trial_ids
        }
        policy = self.build_policy(progress, deferred, asked.values())
        stops: dict[int, PruneDecision] = {}
        audited: dict[int, AuditDecision] = {}
        for trial_id, index in asked.items():
            trial = progress.trials[index]
            audit = trial.audit
            reached = int((~np.isnan(trial.losses)).sum())
            if audit is not None and (audit.pruned or reached != audit.rungs):
                continue  # the pruner has decided about this rung before
            if not policy.state.rungs_reached[index]:
                continue  # before the first target of its task nothing tells it from others
            if policy.should_continue(index):
                if audit is not None:
                    audited[trial_id] = _let_continue(audit)
                continue
            is_final = progress.can_prune and index in policy.to_prune
            if audit is None:
                stops[trial_id] = self._stop(policy, policy.prediction, index, is_final)
            elif is_final:
                left_out = policy.leave_out(index)
                audited[trial_id] = self._record_pruned(left_out, left_out.prediction, index, audit)
        return Decisions(stops, audited=audited)

    def select(
        self,
        progress: StudyProgress,
        min_keep_probability: float,
        deferred: Collection[int] = (),
        ignore_running: bool = False,
    ) -> Decisions:
        """Select the paused trials to resume in one batch, and those to prune.

        Args:
            progress: state of the study.
            min_keep_probability: keep probability from which a trial joins the first one's batch.
            deferred: ids of waiting trials to retry after an error; other trials do not wait for
                them.
            ignore_running: resume even if results of running trials are still expected.

        Returns:
            Trials at one rung to resume, and trials to prune: once none will resume, all that are
            paused. With ``audited`` or ``looks``, there may be more to decide once these are
            stored.
        """
        policy = self.build_policy(progress, deferred)
        look = policy.due_look(progress.looks, progress.is_idle) if progress.is_audited else None
        if look is not None:
            return Decisions(looks={look: policy.look()})
        paused = np.flatnonzero(policy.state.in_stage(TrialStatus.PAUSED)).tolist()
        if policy.is_final and (progress.is_idle or not progress.is_audited):
            return self._prune(progress, policy, paused)
        to_resume = policy.to_resume_ignoring_running if ignore_running else policy.to_resume
        batch = _choose_batch(policy, to_resume, min_keep_probability)
        chosen = policy.to_prune if progress.can_prune else ()
        pruned = self._prune(
            progress, policy, [index for index in paused if index in chosen and index not in batch]
        )
        audits = {progress.trials[index].trial_id: progress.trials[index].audit for index in batch}
        resumed = {key: _let_continue(audit) for key, audit in audits.items() if audit is not None}
        return replace(
            pruned,
            resumed=[trial_id for trial_id, audit in audits.items() if audit is None],
            audited={**pruned.audited, **resumed},
        )

    def store(self, progress: StudyProgress, decisions: Decisions) -> list[int]:
        """Store decisions about audited trials and looks at them, and prune paused trials.

        What another worker has stored since is kept: its decisions, its looks, trials that it has
        resumed, and all paused trials if the study was extended.

        Returns:
            Numbers of the trials pruned by this call.
        """
        if decisions.looks:
            new = {name: look.model_dump() for name, look in decisions.looks.items()}

            def add(stored: dict[str, Any]) -> dict[str, Any]:
                return {AUDIT_LOOKS: {**new, **stored.get(AUDIT_LOOKS, {})}}

            update_system_attributes(self._storage, self._study_id, add)
        if decisions.audited:
            self._storage.write_audit(decisions.audited)
        if not decisions.pruned:
            return []
        attributes = {trial_id: stop.attributes for trial_id, stop in decisions.pruned.items()}
        pruned = self._storage.prune_paused(self._study_id, progress.planned, attributes)
        return [trial.number for trial in progress.trials if trial.trial_id in {*pruned}]

    def build_policy(
        self,
        progress: StudyProgress,
        deferred: Collection[int] = (),
        asked: Collection[int] = (),
    ) -> PruningPolicy:
        """Return the policy for the state of a study; ``asked`` are indices of trials."""
        stages = list(progress.state.stages)
        for index, trial in enumerate(progress.trials):
            # A deferred trial is retried last, but is unfinished like a running one.
            if trial.status is TrialStatus.WAITING and trial.trial_id in deferred:
                stages[index] = TrialStatus.RUNNING
        audits = {
            index: trial.audit
            for index, trial in enumerate(progress.trials)
            if trial.audit is not None
        }
        state = replace(progress.state, stages=stages).stop_audited(audits, asked)
        has_alarm = any(look.alarm for look in progress.looks.values())
        settings = self._settings
        return PruningPolicy(state, settings.keep, settings.confidence, has_alarm, self._memory)

    def _prune(
        self, progress: StudyProgress, policy: PruningPolicy, indices: Sequence[int]
    ) -> Decisions:
        """Return the decisions that paused trials are pruned, audited ones in decisions alone."""
        if not indices:
            return Decisions()
        prediction = policy.predict_to_record()
        pruned: dict[int, PruneDecision] = {}
        audited: dict[int, AuditDecision] = {}
        for index in indices:
            trial = progress.trials[index]
            if trial.audit is None:
                pruned[trial.trial_id] = self._stop(policy, prediction, index, is_final=True)
            else:
                audited[trial.trial_id] = self._record_pruned(
                    policy, prediction, index, trial.audit
                )
        return Decisions(pruned=pruned, audited=audited)

    def _record_pruned(
        self, policy: PruningPolicy, prediction: Prediction, index: int, audit: AuditState
    ) -> AuditDecision:
        """Return the decision that an audited trial would have been pruned."""
        attributes = dict(self._stop(policy, prediction, index, is_final=True).attributes)
        attributes["reason"] = f"audited; would have been pruned {attributes['reason']}"
        return AuditDecision(audit, audit.model_copy(update={"pruned": True}), attributes)

    def _stop(
        self, policy: PruningPolicy, prediction: Prediction, index: int, is_final: bool
    ) -> PruneDecision:
        """Return the decision that a trial is paused or pruned, with the reason.

        ``prediction`` is recorded with the probability by which the policy has decided.
        """
        state = policy.state
        step = [0, *(rung.step for rung in self._rungs)][state.rungs_reached[index]]
        attributes: dict[str, Any] = {RUNG: step}
        if state.complete < MIN_COMPLETE and not is_final:
            # Without a regression there is no prediction to record.
            return PruneDecision(is_final, attributes)
        mean, scale = float(prediction.mean[index]), float(prediction.scale[index])
        keep_probability = float(policy.keep_probabilities[index])
        attributes |= {
            KEEP_PROBABILITY: keep_probability,
            "predicted_value": mean,
            "predicted_scale": scale,
        }
        if is_final:
            attributes["reason"] = (
                f"at step {step:,} of {self._steps:,}: predicted {mean:#.4g} ± {scale:#.2g}; "
                f"the top {policy.top_count} of {policy.count} trials are expected below "
                f"{policy.top_threshold:#.4g}; keep probability {keep_probability:.2g} with "
                f"{state.complete} trials complete"
            )
        return PruneDecision(is_final, attributes)


def _has_failed(trial: StoredTrial) -> bool:
    """Return whether a trial has failed, an audited one before it would have stopped."""
    if trial.status not in (TrialStatus.DIVERGED, TrialStatus.FAIL):
        return False
    return trial.audit is None or not is_stopped(trial.audit, trial.losses)


def _let_continue(audit: AuditState) -> AuditDecision:
    """Return the decision that an audited trial would have trained to its next rung."""
    return AuditDecision(audit, audit.model_copy(update={"rungs": audit.rungs + 1}))


def _choose_batch(
    policy: PruningPolicy, to_resume: Sequence[int], min_keep_probability: float
) -> list[int]:
    """Return the first trial to resume, and those at its rung that are likely to be kept."""
    first = to_resume[:1]
    others = to_resume[1:]
    rung = policy.state.rungs_reached[first]
    return [*first] + [
        index
        for index in others
        if policy.state.rungs_reached[index] == rung
        and policy.keep_probabilities[index] >= min_keep_probability
    ]
