"""State of a study that decisions are computed from, read from its storage."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from search.pruning.audit import number_architectures
from search.pruning.design_matrix import DesignMatrix
from search.pruning.regression import Floats, Indices
from search.pruning.study_state import StudyState, TrialStage, to_decision_stage
from studies.attributes import AUDIT_NUISANCE, AuditLook
from studies.storage.reads import Rung, TrialReader, read_audit_looks
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import TRIAL_PARAMS, TRIAL_VALUES
from studies.storage.trials import StoredTrial


@dataclass(frozen=True)
class StudyProgress:
    """State of a study, from which decisions are computed.

    Attributes:
        trials: progress of the grid trials, by number.
        params: parameters of each of them; the same object until the study is extended.
        architectures: architecture of each of them, of which some were drawn to be audited.
        planned: number of grid trials; damaged ones are not among ``trials``.
        looks: planned looks at the audited trials so far, by name.
        damaged_paused: ids of paused trials that are damaged, not among ``trials``.
    """

    trials: Sequence[StoredTrial]
    params: Sequence[Mapping[str, Any]]
    architectures: Indices
    planned: int
    looks: Mapping[str, AuditLook] = field(default_factory=dict)
    damaged_paused: Sequence[int] = ()

    @property
    def is_audited(self) -> bool:
        """Whether some trials are audited."""
        return any(trial.audit is not None for trial in self.trials)

    @property
    def is_idle(self) -> bool:
        """Whether every trial is finished or paused."""
        return all(trial.is_paused or trial.state.is_finished() for trial in self.trials)


class StudyProgressReader:
    """Reads the state of a study; after the first time, little more than what has changed.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        rungs: its rungs.
    """

    def __init__(self, storage: LeasedRDBStorage, study_id: int, rungs: Sequence[Rung]) -> None:
        self._storage = storage
        self._study_id = study_id
        self._reader = TrialReader(storage, study_id, (TRIAL_PARAMS, TRIAL_VALUES), rungs)
        self._numbers: list[int] = []
        self._params: list[Mapping[str, Any]] = []
        self._architectures: Indices = np.empty(0, dtype=np.int64)

    def read(self) -> StudyProgress:
        """Read the state of the study."""
        trials = self._reader.read()
        numbers = [trial.number for trial in trials]
        if numbers != self._numbers:
            self._params = [trial.params for trial in trials]
            stored = self._storage.get_study_user_attrs(self._study_id)
            nuisance = stored.get(AUDIT_NUISANCE, [])
            self._architectures = number_architectures(self._params, nuisance)
            self._numbers = numbers
        looks = read_audit_looks(self._storage, self._study_id)
        return StudyProgress(
            trials,
            self._params,
            self._architectures,
            self._reader.planned,
            looks,
            self._reader.damaged_paused,
        )


def build_state(
    progress: StudyProgress,
    design: DesignMatrix,
    steps_to_next_rung: Floats,
    deferred: Collection[int] = (),
    asked: Collection[int] = (),
) -> StudyState:
    """Return the state of a study as the policy sees it.

    Args:
        progress: state of the study.
        design: parameters of its trials.
        steps_to_next_rung: see :class:`search.pruning.study_state.StudyState`.
        deferred: ids of waiting trials to retry after an error.
        asked: indices of running trials to decide about; audited ones are not stopped yet.
    """
    trials, rungs = progress.trials, len(steps_to_next_rung) - 1
    stages = [_stage(trial, deferred) for trial in trials]
    losses = np.array([trial.losses for trial in trials])
    values = np.array([trial.value for trial in trials], dtype=np.float64)  # NaN for None
    held_out = np.full(len(trials), -1)
    for index, trial in enumerate(trials):
        if trial.audit is None:
            continue
        reached = int((~np.isnan(losses[index])).sum())
        audit = trial.audit
        stage, stop = to_decision_stage(stages[index], reached, audit.rungs, audit.pruned, rungs)
        if stop >= 0 and math.isnan(values[index]):
            losses[index, stop:] = math.nan
        elif stop >= 0:
            held_out[index] = stop
        stages[index] = stage
        if index in asked and stage is TrialStage.PAUSED:
            stages[index] = TrialStage.RUNNING
    return StudyState(
        stages, losses, values, design, steps_to_next_rung, held_out, progress.architectures
    )


def _stage(trial: StoredTrial, deferred: Collection[int]) -> TrialStage:
    if trial.is_paused:
        return TrialStage.PAUSED
    stage = TrialStage.from_state(trial.state)
    # A deferred trial is retried last, but is unfinished like a running one.
    is_deferred = stage is TrialStage.WAITING and trial.trial_id in deferred
    return TrialStage.RUNNING if is_deferred else stage
