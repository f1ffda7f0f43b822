"""The exceptions of this package that some code catches by name.

::

    UserError                        of rnn.errors
    ├── StorageError                 a storage that cannot be opened or holds other data
    │   └── StorageNotFoundError     a storage that does not exist yet
    ├── StudyNotFoundError           a study that the storage does not hold
    ├── StudyFormatError             a study that another program or version stored
    ├── StudyFileError               a study file that cannot be read or written
    ├── LeaseLostError               a trial that the worker no longer holds
    └── StorageUnavailableError      a storage that was unavailable for too long
        └── StorageLostError         a storage or a study that changed or went during a search
"""

from rnn.errors import UserError


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


class StorageError(UserError):
    """A storage cannot be used."""


class StorageNotFoundError(StorageError):
    """A storage does not exist yet."""


class StudyNotFoundError(UserError):
    """A storage does not hold the study."""


class StudyFormatError(UserError):
    """A study was stored by another program or another version of this one."""


class StudyFileError(UserError):
    """A study file cannot be read or written."""


class LeaseLostError(UserError):
    """A worker wrote to a trial that it no longer holds; nothing was written."""


class StorageUnavailableError(UserError):
    """A storage could not be reached for longer than the time limit.

    Commands print the message and exit with code 1.
    """


class StorageLostError(StorageUnavailableError):
    """A storage was deleted or replaced during a search, or its study was deleted or extended."""
