"""An open study: what claiming and settling its trials needs; imports no PyTorch."""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache

from optuna import Study

from studies.artifacts import ArtifactFolders, TrialFileKind, TrialFiles
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.storage.counts import StudyIdentity
from studies.storage.open import load_study, open_storage, read_study_record
from studies.storage.storage import LeasedRDBStorage


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
    return OpenStudy(study, storage, record.config, folders, record)
