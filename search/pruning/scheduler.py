"""Pause-and-resume scheduler: apply the pruning policy to the stored state of a study."""

import bisect
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from search.pruning.audited_trials import number_architectures
from search.pruning.candidates import Candidate, average_runs, count_rungs
from search.pruning.policy import Decisions, PruneDecision, PruningPolicy, StudyState, is_stopped
from search.pruning.predictions import MIN_COMPLETE, Prediction, PredictionMemory
from search.pruning.regression import DesignMatrix, Floats, Indices
from studies.attributes import (
    AUDIT_LOOKS,
    AUDIT_NUISANCE,
    KEEP_PROBABILITY,
    RUNG,
    AuditLook,
    name_look,
    select_looks,
)
from studies.config import StudyConfig
from studies.measure import find_measure
from studies.space import REPLICATE, TASK
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
        trials: those grid trials that did not fail, as decisions see them, by number.
        candidates: the N candidates that they are the runs of, in the order of their first runs.
        state: what is known of the candidates; the design is the same object while the trials are
            the same.
        planned: number of grid trials, of all tasks.
        is_audited: whether some trials are audited.
        looks: planned looks at the audited trials so far, by name.
    """

    trials: Sequence[StoredTrial]
    candidates: Sequence[Candidate]
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

    Only :meth:`read` and :meth:`store` use the storage. Of a study of several tasks it knows the
    trials of one, as if they were a study. Values of which the greatest is the best are negated as
    they are read: to all decisions they are losses.

    Attributes:
        task: name of the task; "" for the only one.
    """

    def __init__(
        self, storage: LeasedRDBStorage, study_id: int, config: StudyConfig, task: str = ""
    ) -> None:
        config = config.at_task(task)
        self._storage = storage
        self._study_id = study_id
        self.task = task
        self._has_replicates = config.replicates > 1
        self._settings = config.pruning
        self._measure = find_measure(config)
        length = config.length_of()
        self._steps = length.steps
        self._rungs = compute_rungs(length.steps, length.log_every)
        columns = TRIAL_PARAMS, TRIAL_VALUES
        self._reader = storage.reader(study_id, columns, self._rungs)
        self._memory: PredictionMemory = {}
        self._encoded: tuple[list[int], list[int]] = [], []  # all trials, those that did not fail
        self._owners: list[int] = []  # candidate of each of the latter
        self._design = DesignMatrix.from_params([])
        self._architectures: Indices = np.empty(0, dtype=np.int64)
        self._failed = 0

    def read(self) -> StudyProgress:
        """Read the state of the study; after the first time, little more than what has changed."""
        with self._storage.reading():
            trials = self._reader.read()
            attributes = self._storage.get_study_user_attrs(self._study_id)
            pruned_at = read_attribute_of_all(self._storage, self._study_id, KEEP_PROBABILITY)
            paused_at: dict[int, int] = {}
            if any(REPLICATE in trial.params for trial in trials):
                paused_at = read_attribute_of_all(self._storage, self._study_id, RUNG)
            looks = read_audit_looks(self._storage, self._study_id)
        return self.assemble(
            trials,
            pruned_at,
            paused_at,
            select_looks(looks, self.task),
            attributes.get(AUDIT_NUISANCE, []),
        )

    def assemble(
        self,
        trials: Sequence[StoredTrial],
        pruned_at: Mapping[int, float],
        paused_at: Mapping[int, int],
        looks: Mapping[str, AuditLook],
        nuisance: Sequence[str],
    ) -> StudyProgress:
        """Return the state of a study.

        Args:
            trials: all of its trials, with their losses at the rungs of this task.
            pruned_at: keep probability of each trial when it was last stopped, by number.
            paused_at: step at which each was last stopped.
            looks: planned looks at the audited trials so far, by name.
            nuisance: parameters over which the audited architectures were drawn.
        """
        stored = [trial for trial in trials if not self.task or trial.params.get(TASK) == self.task]
        viable = [trial for trial in stored if not _has_failed(trial)]
        self._encode(stored, viable, nuisance)
        runs: dict[int, list[StoredTrial]] = {}
        for owner, trial in zip(self._owners, viable, strict=True):
            runs.setdefault(owner, []).append(trial)
        steps = [rung.step for rung in self._rungs]
        candidates = [
            Candidate(
                runs[owner],
                [bisect.bisect(steps, paused_at.get(run.number, 0)) for run in runs[owner]],
            )
            for owner in sorted(runs)
        ]
        return StudyProgress(
            viable,
            candidates,
            self._summarize(candidates, pruned_at),
            planned=len(trials),
            is_audited=any(trial.is_audited for trial in stored),
            looks=looks,
        )

    def _encode(
        self, stored: Sequence[StoredTrial], viable: Sequence[StoredTrial], nuisance: Sequence[str]
    ) -> None:
        """Encode the parameters of the candidates, and find the one that each trial is a run of."""
        numbers = [trial.number for trial in stored], [trial.number for trial in viable]
        if numbers == self._encoded:
            return
        owners = number_architectures([trial.params for trial in stored], ()).tolist()
        of_trial = {trial.number: owner for trial, owner in zip(stored, owners, strict=True)}
        params: dict[int, dict[str, Any]] = {}
        for owner, trial in zip(owners, stored, strict=True):
            params.setdefault(owner, {n: v for n, v in trial.params.items() if n != REPLICATE})
        self._owners = [of_trial[trial.number] for trial in viable]
        mask = np.isin(np.arange(len(params)), self._owners)
        self._design = DesignMatrix.from_params(list(params.values())).select(mask)
        self._architectures = number_architectures(list(params.values()), nuisance)[mask]
        self._failed = int((~mask).sum())
        self._encoded = numbers

    def _summarize(
        self, candidates: Sequence[Candidate], pruned_at: Mapping[int, float]
    ) -> StudyState:
        runs = [run for candidate in candidates for run in candidate.runs]
        # Losses at the rungs, and the value; NaN for None.
        numbers = np.array([[*run.losses, run.value] for run in runs], dtype=np.float64)
        numbers = self._measure.to_loss(numbers)
        means = average_runs(candidates, numbers.reshape(len(runs), len(self._rungs) + 1))
        first = [candidate.runs[0].number for candidate in candidates]
        return StudyState(
            [candidate.find_stage() for candidate in candidates],
            means[:, :-1],
            means[:, -1],
            self._design,
            self._architectures,
            compute_steps_to_next_rung(self._rungs, self._steps),
            np.full(len(candidates), -1),
            np.array([pruned_at.get(number, math.nan) for number in first]),
            self._failed,
        )

    def decide(
        self,
        progress: StudyProgress,
        trial_ids: Collection[int],
        deferred: Collection[int] = (),
        can_pause: bool = True,
    ) -> Decisions:
        """Decide which of these running trials, which have reached a rung, are paused or pruned.

        Other trials do not wait for the deferred ones, to retry after an error. Trials that cannot
        be paused, because they write no checkpoint, are pruned or continue.
        """
        asked = {
            index: runs
            for index, candidate in enumerate(progress.candidates)
            if (runs := [run for run in candidate.runs if run.trial_id in trial_ids])
        }
        policy = self.build_policy(progress, deferred, asked)
        # Where trials are paused, the look is taken when one is selected.
        look = policy.due_look(progress.looks, False) if progress.is_audited else None
        if look is not None and not can_pause:
            return Decisions(looks={look: policy.look()})
        stops: dict[int, PruneDecision] = {}
        audited: dict[int, AuditDecision] = {}
        for index, runs in asked.items():
            if progress.candidates[index].audit is not None:
                audited |= self._decide_audited(progress, policy, index, runs)
                continue
            for run in runs:
                if self._continues(progress, policy, index, run):
                    continue
                is_alone = len(progress.candidates[index].runs) == 1
                if can_pause:
                    # Several runs are pruned together, once all are paused.
                    is_final = is_alone and progress.can_prune and index in policy.to_prune
                elif is_alone and progress.can_prune and policy.is_unlikely(index):
                    is_final = True
                else:
                    continue
                prediction = policy.prediction
                stop = self._stop(policy, prediction, index, count_rungs(run), is_final)
                stops[run.trial_id] = stop
        return Decisions(stops, audited=audited)

    def _continues(
        self, progress: StudyProgress, policy: PruningPolicy, index: int, run: StoredTrial
    ) -> bool:
        """Return whether a run at a rung trains on; the last one to reach it decides for all."""
        candidate = progress.candidates[index]
        rungs = count_rungs(run)
        # Before the first target of its task nothing tells a trial from others.
        if not rungs or candidate.must_continue(run):
            return True
        if candidate.is_together(rungs):
            return policy.should_continue(index)
        # Others train to this rung, or are paused here and resume together with this one.
        return policy.is_likely(index)

    def _decide_audited(
        self,
        progress: StudyProgress,
        policy: PruningPolicy,
        index: int,
        runs: Sequence[StoredTrial],
    ) -> dict[int, AuditDecision]:
        """Decide about an audited candidate once the last of its runs has reached a rung."""
        candidate = progress.candidates[index]
        audit = candidate.audit
        assert audit is not None
        is_last = audit.rungs in map(count_rungs, runs)
        if audit.pruned or not is_last or progress.state.rungs_reached[index] != audit.rungs:
            return {}  # the pruner has decided about this rung before, or will
        if policy.should_continue(index):
            return _let_continue(candidate)
        if progress.can_prune and index in policy.to_prune:
            left_out = policy.leave_out(index)
            return self._record_pruned(left_out, left_out.prediction, index, candidate)
        return {}

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
        if behind := _choose_behind(progress, policy):
            return replace(pruned, resumed=behind)
        audited = dict(pruned.audited)
        resumed: list[int] = []
        for index in batch:
            candidate = progress.candidates[index]
            if candidate.audit is not None:
                audited |= _let_continue(candidate)
            else:
                resumed += _list_paused(candidate)
        return replace(pruned, resumed=resumed, audited=audited)

    def store(self, progress: StudyProgress, decisions: Decisions) -> list[int]:
        """Store decisions about audited trials and looks at them, and prune paused trials.

        What another worker has stored since is kept: its decisions, its looks, trials that it has
        resumed, and all paused trials if the study was extended.

        Returns:
            Numbers of the trials pruned by this call.
        """
        if decisions.looks:
            new = {
                name_look(name, self.task): look.model_dump()
                for name, look in decisions.looks.items()
            }

            def add(stored: dict[str, Any]) -> dict[str, Any]:
                return {AUDIT_LOOKS: {**new, **stored.get(AUDIT_LOOKS, {})}}

            update_system_attributes(self._storage, self._study_id, add)
        if decisions.audited:
            self._storage.write_audit(decisions.audited)
        if not decisions.pruned:
            return []
        of_candidates = [
            {
                run.trial_id: decisions.pruned[run.trial_id].attributes
                for run in candidate.runs
                if run.trial_id in decisions.pruned
            }
            for candidate in progress.candidates
        ]
        pruned = self._storage.prune_paused(self._study_id, progress.planned, of_candidates)
        return [trial.number for trial in progress.trials if trial.trial_id in {*pruned}]

    def build_policy(
        self,
        progress: StudyProgress,
        deferred: Collection[int] = (),
        asked: Collection[int] = (),
    ) -> PruningPolicy:
        """Return the policy for the state of a study; ``asked`` are indices of candidates."""
        stages = [candidate.find_stage(deferred) for candidate in progress.candidates]
        audits = {
            index: candidate.audit
            for index, candidate in enumerate(progress.candidates)
            if candidate.audit is not None
        }
        state = replace(progress.state, stages=stages).stop_audited(audits, asked)
        has_alarm = any(look.alarm for look in progress.looks.values())
        settings = self._settings
        return PruningPolicy(state, settings.keep, settings.confidence, has_alarm, self._memory)

    def _prune(
        self, progress: StudyProgress, policy: PruningPolicy, indices: Sequence[int]
    ) -> Decisions:
        """Return the decisions to prune paused candidates, audited ones in decisions alone."""
        if not indices:
            return Decisions()
        prediction = policy.predict_to_record()
        pruned: dict[int, PruneDecision] = {}
        audited: dict[int, AuditDecision] = {}
        for index in indices:
            candidate = progress.candidates[index]
            if candidate.audit is not None:
                audited |= self._record_pruned(policy, prediction, index, candidate)
                continue
            rungs = int(policy.state.rungs_reached[index])
            stop = self._stop(policy, prediction, index, rungs, is_final=True)
            pruned |= dict.fromkeys(_list_paused(candidate), stop)
        return Decisions(pruned=pruned, audited=audited)

    def _record_pruned(
        self, policy: PruningPolicy, prediction: Prediction, index: int, candidate: Candidate
    ) -> dict[int, AuditDecision]:
        """Return the decisions that the runs of an audited candidate would have been pruned."""
        rungs = int(policy.state.rungs_reached[index])
        attributes = dict(self._stop(policy, prediction, index, rungs, is_final=True).attributes)
        attributes["reason"] = f"audited; would have been pruned {attributes['reason']}"
        return _decide_alike(candidate, {"pruned": True}, attributes)

    def _stop(
        self,
        policy: PruningPolicy,
        prediction: Prediction,
        index: int,
        rungs: int,
        is_final: bool,
    ) -> PruneDecision:
        """Return the decision that runs of a candidate are paused or pruned, with the reason.

        ``prediction`` is recorded with the probability by which the policy has decided.
        """
        state = policy.state
        step = [0, *(rung.step for rung in self._rungs)][rungs]
        attributes: dict[str, Any] = {RUNG: step}
        if state.complete < MIN_COMPLETE and not is_final:
            # Without a regression there is no prediction to record.
            return PruneDecision(is_final, attributes)
        mean = self._measure.to_loss(float(prediction.mean[index]))
        scale = float(prediction.scale[index])
        keep_probability = float(policy.keep_probabilities[index])
        attributes |= {
            KEEP_PROBABILITY: keep_probability,
            "predicted_value": mean,
            "predicted_scale": scale,
        }
        if is_final:
            predicted = "predicted mean" if self._has_replicates else "predicted"
            noun = "architectures" if self._has_replicates else "trials"
            side = "above" if self._measure.higher_is_better else "below"
            threshold = self._measure.to_loss(policy.top_threshold)
            attributes["reason"] = (
                f"at step {step:,} of {self._steps:,}: {predicted} {mean:#.4g} ± {scale:#.2g}; "
                f"the top {policy.top_count} of {policy.count} {noun} are expected {side} "
                f"{threshold:#.4g}; keep probability {keep_probability:.2g} with "
                f"{state.complete} {noun} complete"
            )
        return PruneDecision(is_final, attributes)


def create_schedulers(
    storage: LeasedRDBStorage, study_id: int, config: StudyConfig
) -> dict[str, PauseResumeScheduler]:
    """Return a scheduler for each of several tasks by name, for the only one by ``""``."""
    tasks = list(config.task_records) or [""]
    return {task: PauseResumeScheduler(storage, study_id, config, task) for task in tasks}


def _has_failed(trial: StoredTrial) -> bool:
    """Return whether a trial has failed or is told, an audited one before it would have stopped."""
    if trial.status not in (TrialStatus.DIVERGED, TrialStatus.TOLD, TrialStatus.FAIL):
        return False
    return trial.audit is None or not is_stopped(trial.audit, trial.losses)


def _let_continue(candidate: Candidate) -> dict[int, AuditDecision]:
    """Return the decisions that the runs of an audited candidate would have trained on."""
    assert candidate.audit is not None
    return _decide_alike(candidate, {"rungs": candidate.audit.rungs + 1})


def _decide_alike(
    candidate: Candidate,
    update: Mapping[str, Any],
    attributes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[int, AuditDecision]:
    """Return one decision about all runs of an audited candidate, by id."""
    assert candidate.audit is not None
    after = candidate.audit.model_copy(update=update)
    return {
        run.trial_id: AuditDecision(run.audit, after, attributes)
        for run in candidate.runs
        if run.audit is not None
    }


def _list_paused(candidate: Candidate) -> list[int]:
    """List the ids of the paused runs of a candidate."""
    return [run.trial_id for run in candidate.runs if run.status is TrialStatus.PAUSED]


def _choose_behind(progress: StudyProgress, policy: PruningPolicy) -> list[int]:
    """Return the runs at one rung that have to catch up, those of the most promising first."""
    behind = [
        run
        for index in np.argsort(-policy.promotion_scores, kind="stable").tolist()
        for run in progress.candidates[index].behind
    ]
    return [run.trial_id for run in behind if count_rungs(run) == count_rungs(behind[0])]


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
