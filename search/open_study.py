"""An open study: what claiming and settling its trials needs; imports no PyTorch."""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.pruners import NopPruner

from search.grid import GridSampler
from studies.artifacts import ArtifactFolders, ArtifactKind, TrialFileKind, TrialFiles
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.loader import read_study_record
from studies.storage.identity import StudyIdentity
from studies.storage.open import load_study, open_storage
from studies.storage.storage import LeasedRDBStorage


@dataclass(frozen=True)
class OpenStudy:
    """An open study.

    Attributes:
        study: the Optuna study, with its sampler.
        storage: storage that holds it.
        config: stored config, with this worker's settings for leases, checkpoints, outages and
            kept weights.
        folders: folders with its files.
        record: what the study stored about itself when it was opened.
    """

    study: optuna.Study
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

    def folder(self, kind: ArtifactKind) -> Path:
        """Return the study's folder of files of a kind."""
        return self.folders.root(kind) / self.artifact_folder

    def trial_files(self, kind: TrialFileKind) -> TrialFiles:
        """Return the files of a kind, one for each trial."""
        return self.folders.trial_files(self.artifact_folder, kind)


def open_stored(name: str, url: str, artifacts: str | None = None) -> OpenStudy:
    """Open a stored study by its name.

    Args:
        name: name of the study.
        url: URL of the storage.
        artifacts: folder of its files, see :class:`studies.artifacts.ArtifactFolders`.

    Raises:
        ArtifactsError: if the folder cannot be used.
        StorageError, StudyNotFoundError, StudyFormatError: if the study cannot be opened.
    """
    folders = ArtifactFolders(artifacts, url)
    with ExitStack() as on_error:
        storage = on_error.enter_context(closing(open_storage(url)))
        study = load_study(storage, name)
        record = read_study_record(study)
        config = require_stored(study, storage, record)
        on_error.pop_all()
    return OpenStudy(study, storage, config, folders, record)


def require_stored(
    study: optuna.Study, storage: LeasedRDBStorage, record: StudyRecord
) -> StudyConfig:
    """Let each write require that a study is still the one that was opened; return its config."""
    config = record.config
    grid_size = None if config.grid is None else config.grid.count()
    storage.require_study(
        StudyIdentity(study._study_id, study.study_name, record.artifact_folder, grid_size)
    )
    study.sampler = GridSampler()
    study.pruner = NopPruner()
    return config
