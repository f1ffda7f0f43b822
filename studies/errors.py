"""The exceptions of this package.

::

    StudiesError
    ├── ConfigError                  a study config that is missing, malformed or contradictory
    ├── StorageError                 a storage that cannot be opened or holds other data
    │   └── StorageNotFoundError     a storage that does not exist yet
    ├── StudyNotFoundError           a study that the storage does not hold
    ├── StudyExistsError             a study whose name is taken
    ├── StudyHeldError               a study that workers hold trials of
    ├── StudyFormatError             a study that another program or version stored
    │   └── ImportedStudyError       a study that was imported, where one to train is needed
    ├── StudyFileError               a study file that cannot be read or written
    ├── TableError                   a table of results that cannot be imported
    ├── ConfigMismatchError          a worker's config that differs from its study's
    ├── ArtifactsError               an artifact folder that cannot be used
    ├── LeaseLostError               a trial that the worker no longer holds
    └── StorageUnavailableError      a storage that was unavailable for too long
        └── StorageLostError         a storage that was deleted or replaced during a search
            ├── StudyDeletedError    a study that was deleted during a search
            └── StudyExtendedError   a study whose grid was extended during a search
"""


class RowError(ValueError):
    """A row of a database cannot be decoded: this program cannot have stored it.

    Only this error means damage. The message is part of a line and names what is wrong; the
    storage's transactions turn it into a :class:`StudyFormatError` that names the study as well.

    Attributes:
        study_id: study of the row; None if that is not known.
        trial_id: trial of the row; None if that is not known, or it belongs to no trial.
    """

    study_id: int | None = None
    trial_id: int | None = None


class StudiesError(Exception):
    """Base of this package's errors; the message is one line that a user can act on."""


class ConfigError(StudiesError):
    """A study's config cannot be used."""


class StorageError(StudiesError):
    """A storage cannot be used."""


class StorageNotFoundError(StorageError):
    """A storage does not exist yet."""


class StudyNotFoundError(StudiesError):
    """A storage does not hold the study."""


class StudyExistsError(StudiesError):
    """A storage holds a study of that name already."""


class StudyHeldError(StudiesError):
    """Workers hold trials of a study that is to be changed."""


class StudyFormatError(StudiesError):
    """A study was stored by another program or another version of this one."""


class StudyFileError(StudiesError):
    """A study file cannot be read or written."""


class TableError(StudiesError):
    """A table of results cannot be imported."""


class ImportedStudyError(StudyFormatError):
    """A study was imported: there is nothing to train."""


class ConfigMismatchError(StudiesError):
    """A worker's config or corpus differs from its study's."""


class ArtifactsError(StudiesError):
    """Artifacts cannot be stored in the requested place."""


class LeaseLostError(StudiesError):
    """A worker wrote to a trial that it no longer holds; nothing was written."""


class StorageUnavailableError(StudiesError):
    """A storage could not be reached or written to for longer than the time limit."""


class StorageLostError(StorageUnavailableError):
    """A storage was deleted, replaced or emptied during a search."""


class StudyDeletedError(StorageLostError):
    """A study was deleted during a search."""


class StudyExtendedError(StorageLostError):
    """A study's grid was extended during a search, which knows the smaller one."""
