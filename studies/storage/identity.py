"""The SQLite file and the study that a process works on: whether they are still there.

SQLite continues to read and write an open file that was deleted or replaced. A storage checks that
its file is in place before each transaction, and that its study is stored.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError

from studies.attributes import GRID_SIZE
from studies.errors import StorageLostError
from studies.storage.engine import database_path, error_message, is_transient, redact
from studies.storage.tables import STUDY_SYSTEM_ATTRS, STUDY_USER_ATTRS


@dataclass(frozen=True)
class DatabaseFile:
    """An SQLite file, identified by its device and inode as it was opened."""

    path: Path
    identity: tuple[int, int]

    @classmethod
    def of(cls, url: URL) -> Self | None:
        """Return the file of a storage; None for a server, or if the file does not exist."""
        path = database_path(url)
        if path is None or not path.exists():
            return None
        return cls(path, _identity(path))

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return _identity(self.path) == self.identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # such as a network file system that does not answer: an outage
            return True


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@dataclass(frozen=True)
class StudyIdentity:
    """Identity of a stored study, unlike that of a later study of the same name.

    The id is not enough: SQLite gives the id of a deleted study to the next one.

    Attributes:
        artifact_folder: its unique folder of artifacts.
        grid_size: number of points in the grid that this process knows; None if it trains none.
    """

    study_id: int
    name: str
    artifact_folder: str
    grid_size: int | None = None

    def require_stored(self, connection: Connection) -> None:
        """Check that the study is stored, with the grid that this process knows.

        Raises:
            StorageLostError: if it is not.
            StorageLostError: if it was.
            StorageLostError: if the tables cannot be read any more.
        """
        size = sa.select(STUDY_SYSTEM_ATTRS.c.value_json).where(
            STUDY_SYSTEM_ATTRS.c.study_id == self.study_id, STUDY_SYSTEM_ATTRS.c.key == GRID_SIZE
        )
        query = sa.select(size.scalar_subquery()).where(
            STUDY_USER_ATTRS.c.study_id == self.study_id,
            STUDY_USER_ATTRS.c.key == "artifact_folder",
            STUDY_USER_ATTRS.c.value_json == json.dumps(self.artifact_folder),
        )
        storage = redact(connection.engine.url)
        try:
            found = connection.execute(query).one_or_none()
        except DBAPIError as error:
            if is_transient(error):
                raise
            raise StorageLostError(
                f"storage {storage} was damaged or emptied while this search used it "
                f"({error_message(error)}): restore it from a backup to resume"
            ) from error
        if found is None:
            raise StorageLostError(
                f"study {self.name!r} was deleted from {storage} while this search used it: "
                "restore it from a backup to resume, or run the same command to start it again"
            )
        if self.grid_size is not None and found[0] not in (None, json.dumps(self.grid_size)):
            raise StorageLostError(
                f"study {self.name!r} was extended to {found[0]} trials while this search used it: "
                "run the same command to continue; recorded results are kept"
            )
