"""An open study: what claiming and settling its trials needs; imports no PyTorch."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, TrialState

from search.errors import GridExhaustedError
from studies.artifacts import ArtifactFolders, TrialFileKind, TrialFiles
from studies.attributes import IS_GRID_TRIAL, StudyRecord
from studies.config import StudyConfig
from studies.storage.counts import StudyIdentity
from studies.storage.open import load_study, open_storage, read_study_record
from studies.storage.storage import LeasedRDBStorage

NO_TRIAL_LEFT = "no_trial_left"
"""System attribute of a trial that was asked for when no grid trial was left."""


@dataclass(frozen=True)
class OpenStudy:
    """An open study.

    Attributes:
        config: stored config, with this worker's settings for leases, checkpoints, outages and
            kept weights.
        record: what the study stored about itself when it was opened.
    """

    study: Study
    storage: LeasedRDBStorage
    config: StudyConfig
    folders: ArtifactFolders
    record: StudyRecord

    @property
    def name(self) -> str:
        """Name of the study when it was opened."""
        return self.study.study_name

    @property
    def study_id(self) -> int:
        """Id of the study in the storage."""
        return self.study._study_id

    @property
    def artifact_folder(self) -> str:
        """Name of the study's artifact folder, unique among studies, which never changes."""
        return self.record.artifact_folder

    def trial_files(self, kind: TrialFileKind) -> TrialFiles:
        """Return the files of a kind, one for each trial."""
        return self.folders.trial_files(self.artifact_folder, kind)


def open_stored(name: str, url: str, artifacts: str | None = None) -> OpenStudy:
    """Open a stored study by its name.

    Raises:
        UserError: if the folder cannot be used.
        StorageError, StudyNotFoundError, StudyFormatError: if the study cannot be opened.
    """
    folders = ArtifactFolders(artifacts, url)
    with ExitStack() as on_error:
        storage = on_error.enter_context(closing(open_storage(url)))
        opened = attach(load_study(storage, name), storage, folders)
        on_error.pop_all()
    return opened


def attach(study: Study, storage: LeasedRDBStorage, folders: ArtifactFolders) -> OpenStudy:
    """Return a study of which each write requires that it is still the one that was opened."""
    record = read_study_record(study)
    grid = record.config.grid
    count_grid = None if grid is None else cache(grid.count)
    storage.require_study(
        StudyIdentity(study._study_id, study.study_name, record.artifact_folder, count_grid)
    )
    study.sampler = GridSampler()
    study.pruner = NopPruner()
    return OpenStudy(study, storage, record.config, folders, record)


# ------------------------------------------------------------------ plain Optuna


class GridSampler(optuna.samplers.GridSampler):
    """Grid sampler of a study that contains its grid trials, under ``optimize`` or ask-and-tell.

    Optuna's sampler chooses a combination for a trial that already exists, so two processes may
    choose the same one. Here every combination is a waiting trial with fixed parameters
    (:mod:`search.create_or_join`), and asking for a trial claims one: nothing is left to sample.

    When no trial is left, ``optimize`` stops and ``ask`` raises :class:`GridExhaustedError`. A
    process that asks while another claims the last trial leaves a pruned trial without parameters,
    marked :data:`NO_TRIAL_LEFT`.
    """

    def __init__(self) -> None:
        super().__init__({})  # the study has the combinations

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Reject a trial that is neither of the grid nor enqueued.

        Raises:
            GridExhaustedError: outside ``optimize``.
        """
        if trial.params or "fixed_params" in trial.system_attrs:
            return
        study._storage.set_trial_system_attr(trial._trial_id, NO_TRIAL_LEFT, True)
        if not study._thread_local.in_optimize_loop:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)
            raise GridExhaustedError(
                f"no trial of study {study.study_name!r} is left: all are running or finished"
            )
        study.stop()

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Refuse to sample a parameter that a trial lacks.

        Raises:
            GridExhaustedError: for a trial that was rejected.
            ValueError: for any other.
        """
        if trial.system_attrs.get(NO_TRIAL_LEFT):
            raise GridExhaustedError("no grid trial is left")
        raise ValueError(
            f"trial {trial.number} has no parameter {param_name!r}: its combination is "
            f"{trial.params}"
        )

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stop ``optimize`` when no trial is waiting."""
        waiting = study._storage.get_all_trials(
            study._study_id, deepcopy=False, states=(TrialState.WAITING,)
        )
        if not waiting and study._thread_local.in_optimize_loop:
            study.stop()

    def _get_unvisited_grid_ids(self, study: Study) -> list[int]:
        """Return the numbers of unfinished grid trials, for Optuna's ``is_exhausted``."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        return [
            trial.number
            for trial in trials
            if IS_GRID_TRIAL in trial.system_attrs and not trial.state.is_finished()
        ]
