"""The exceptions of this package.

::

    StudiesError
    ├── DefinitionError    a study definition that is missing, malformed or contradictory
    ├── StorageError       a storage that cannot be opened, or is not ours
    │   └── StorageMissing a storage that does not exist yet
    ├── StudyNotFound      a study that the storage does not hold
    ├── ArtifactsError     a place for files that cannot be used
    ├── IdentityError      settings that differ from those that the study was made with
    ├── ClaimLost          a trial that this worker no longer holds
    └── StorageOutage      a storage that has been away for longer than a worker waits
"""


class StudiesError(Exception):
    """Base of this package's errors: one line that gives the value, the bound and the mend."""


class ConfigError(StudiesError):
    """A study's definition cannot be used."""


class StorageError(StudiesError):
    """A storage cannot be used."""


class StorageNotFoundError(StorageError):
    """A storage does not exist yet."""


class StudyNotFoundError(StudiesError):
    """A storage does not hold the study."""


class ArtifactsError(StudiesError):
    """Files cannot be kept where they were asked to be."""


class ConfigMismatchError(StudiesError):
    """A worker's settings are not those of the study."""


class LeaseLostError(StudiesError):
    """A worker wrote to a trial that it does not hold, and nothing was written."""


class StorageUnavailableError(StudiesError):
    """A storage could not be reached, or written to, for longer than is waited for it."""
