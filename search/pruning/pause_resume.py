"""Pause-and-resume scheduler: apply the pruning policy to the stored state of a study.

Reads and writes take a few statements; the computation between them may take minutes in a study of
thousands of trials.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.pruning.policy import (
    PruningPolicy,
    StudyState,
    TrialStage,
    compute_rungs,
    compute_steps_to_next_rung,
)
from search.pruning.predictions import MIN_COMPLETE, DesignMatrix
from studies.attributes import RUNG
from studies.config import StudyConfig
from studies.storage.queries import TrialProgress, read_progress, read_trials
from studies.storage.storage import LeasedRDBStorage


@dataclass(frozen=True)
class PruneDecision:
    """Decision that a trial at a rung is paused or pruned.

    Attributes:
        is_final: whether the trial is pruned rather than paused.
        attributes: user attributes to record with the trial.
    """

    is_final: bool
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class StudyProgress:
    """State of a study, from which decisions are computed.

    Attributes:
        trials: progress of the grid trials, by number.
        params: parameters of each of them; the same object until the study is extended.
    """

    trials: Sequence[TrialProgress]
    params: Sequence[Mapping[str, Any]]


class PauseResumeScheduler:
    """Decides which trials to pause, resume and prune, from the stored state of the study alone.

    Only :meth:`read` and :meth:`prune` use the storage. The other methods may run in another
    thread than these.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        config: study config with pruning enabled.
    """

    def __init__(self, storage: LeasedRDBStorage, study_id: int, config: StudyConfig) -> None:
        self._storage = storage
        self._study_id = study_id
        self._settings = config.pruning
        self._steps = config.training.steps
        self._rungs = compute_rungs(config.training.steps, config.training.log_every)
        self._numbers: list[int] = []
        self._params: list[Mapping[str, Any]] = []
        self._encoded: tuple[Sequence[Mapping[str, Any]], DesignMatrix] | None = None

    def read(self) -> StudyProgress:
        """Read the state of the study."""
        trials = read_progress(self._storage, self._study_id, self._rungs)
        numbers = [trial.number for trial in trials]
        if numbers != self._numbers:
            params = {row.number: row.params for row in read_trials(self._storage, self._study_id)}
            self._params = [params[number] for number in numbers]
            self._numbers = numbers
        return StudyProgress(trials, self._params)

    def decide(
        self, progress: StudyProgress, trial_ids: Collection[int], deferred: Collection[int] = ()
    ) -> dict[int, PruneDecision]:
        """Decide which of these running trials, which have reached a rung, are paused or pruned.

        Args:
            progress: state of the study.
            trial_ids: ids of the trials.
            deferred: ids of waiting trials to retry after an error; other trials do not wait for
                them.

        Returns:
            Decisions by trial id; trials that continue are absent.
        """
        policy = self._build_policy(progress, deferred)
        indices = {trial.trial_id: index for index, trial in enumerate(progress.trials)}
        decisions = {}
        for trial_id in trial_ids:
            index = indices.get(trial_id)
            if index is None or policy.should_continue(index):
                continue
            is_final = policy.should_prune_now(index)
            attributes = self._decision_attributes(policy, index, is_final)
            decisions[trial_id] = PruneDecision(is_final, attributes)
        return decisions

    def select_to_resume(
        self,
        progress: StudyProgress,
        min_keep_probability: float,
        deferred: Collection[int] = (),
        ignore_running: bool = False,
    ) -> list[int]:
        """Return the paused trials to resume in one batch.

        Args:
            progress: state of the study.
            min_keep_probability: keep probability from which a trial joins the first one's batch.
            deferred: ids of waiting trials to retry after an error; other trials do not wait for
                them.
            ignore_running: resume even if results of running trials are still expected.

        Returns:
            Ids of trials at one rung, the most promising first; empty if none is needed.
        """
        trials, policy = progress.trials, self._build_policy(progress, deferred)
        to_resume = policy.to_resume_ignoring_running if ignore_running else policy.to_resume
        if not to_resume:
            return []
        reached = policy.state.rungs_reached
        first, *others = to_resume
        return [trials[first].trial_id] + [
            trials[index].trial_id
            for index in others
            if reached[index] == reached[first]
            and policy.keep_probabilities[index] >= min_keep_probability
        ]

    def select_to_prune(self, progress: StudyProgress) -> dict[int, Mapping[str, Any]]:
        """Select all paused trials to be pruned if none of them will be resumed.

        Returns:
            User attributes to write, by trial id; empty if some may resume.
        """
        policy = self._build_policy(progress)
        if not policy.is_final:
            return {}
        paused = np.flatnonzero(policy.state.in_stage(TrialStage.PAUSED)).tolist()
        return {
            progress.trials[index].trial_id: self._decision_attributes(policy, index, is_final=True)
            for index in paused
        }

    def prune(
        self, progress: StudyProgress, selected: Mapping[int, Mapping[str, Any]]
    ) -> list[int]:
        """Prune paused trials, unless the study was extended or a trial resumed since it was read.

        Args:
            progress: state of the study from which they were selected.
            selected: user attributes to write, by trial id.

        Returns:
            Numbers of the trials pruned by this call.
        """
        trials = progress.trials
        pruned = set(self._storage.prune_paused(self._study_id, len(trials), selected))
        return [trial.number for trial in trials if trial.trial_id in pruned]

    def _build_policy(
        self, progress: StudyProgress, deferred: Collection[int] = ()
    ) -> PruningPolicy:
        trials = progress.trials
        state = StudyState(
            [_stage(trial, deferred) for trial in trials],
            np.array([trial.losses for trial in trials]),
            np.array([trial.value for trial in trials]),
            self._encode(progress.params),
            compute_steps_to_next_rung(self._rungs, self._steps),
        )
        return PruningPolicy(state, self._settings.keep, self._settings.confidence)

    def _encode(self, params: Sequence[Mapping[str, Any]]) -> DesignMatrix:
        """Encode the trials' parameters; they are the same object until they change."""
        if self._encoded is None or self._encoded[0] is not params:
            self._encoded = (params, DesignMatrix.from_params(params))
        return self._encoded[1]

    def _decision_attributes(
        self, policy: PruningPolicy, index: int, is_final: bool
    ) -> dict[str, Any]:
        """Return the user attributes that record why a trial is paused or pruned."""
        state = policy.state
        step = [0, *(rung.step for rung in self._rungs)][state.rungs_reached[index]]
        attributes: dict[str, Any] = {RUNG: step}
        complete = int(state.in_stage(TrialStage.COMPLETE).sum())
        if complete < MIN_COMPLETE and not is_final:
            return attributes  # without a regression there is no prediction to record
        mean = float(policy.prediction.mean[index])
        scale = float(policy.prediction.scale[index])
        keep_probability = float(policy.keep_probabilities[index])
        attributes |= {"keep_probability": keep_probability, "predicted_value": mean}
        if is_final:
            attributes["reason"] = (
                f"at step {step:,} of {self._steps:,}: predicted {mean:.3f} ± {scale:.3f}; "
                f"the top {policy.top_count} of {len(state.stages)} trials are expected below "
                f"{policy.top_threshold:.3f}; keep probability {keep_probability:.2g} with "
                f"{complete} trials complete"
            )
        return attributes


def _stage(trial: TrialProgress, deferred: Collection[int]) -> TrialStage:
    if trial.is_paused:
        return TrialStage.PAUSED
    stage = TrialStage.from_state(trial.state)
    # A deferred trial is retried last, but is unfinished like a running one.
    is_deferred = stage is TrialStage.WAITING and trial.trial_id in deferred
    return TrialStage.RUNNING if is_deferred else stage
