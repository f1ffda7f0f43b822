"""Checks that a database and a study are still those that a search uses: neither is deleted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError

from studies.attributes import END
from studies.errors import StorageLostError, StudyDeletedError, StudyExtendedError
from studies.storage.engine import database_path, log_path, redact
from studies.storage.retry import error_message, is_transient
from studies.storage.trial_rows import STUDY_SYSTEM_ATTRS, STUDY_USER_ATTRS

_OPEN_FILES = Path("/proc/self/fd")
"""On Linux, a link for each file that this process has open."""


@dataclass(frozen=True)
class DatabaseFile:
    """An SQLite file as it was when it was opened.

    SQLite continues to read and write an open file that was deleted or replaced.

    Attributes:
        path: its path.
        identity: its device and inode.
    """

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

    def find(self) -> Path | None:
        """Return where the file was moved together with its log; None if that is unknown."""
        for link in _OPEN_FILES.glob("*"):
            try:
                moved = link.readlink()
                if _identity(moved) == self.identity and log_path(moved).exists():
                    return moved
            except OSError:  # a pipe, or closed meanwhile
                continue
        return None

    def require_in_place(self) -> None:
        """Check that the path still leads to this file.

        Raises:
            StorageLostError: if it does not.
        """
        if not self.is_in_place:
            raise StorageLostError(
                f"{self.path} was deleted, moved or replaced while this search used it"
            )


@dataclass(frozen=True)
class StudyIdentity:
    """Identity of a stored study, unlike that of a later study of the same name.

    The id is not enough: SQLite gives the id of a deleted study to the next one.

    Attributes:
        study_id: its id.
        name: its name.
        artifact_folder: its unique folder of artifacts.
        steps: steps to which this process trains its trials; None if it trains none.
    """

    study_id: int
    name: str
    artifact_folder: str
    steps: int | None = None

    def require_stored(self, connection: Connection) -> None:
        """Check that the study is stored, and was not extended to more steps.

        Raises:
            StudyDeletedError: if it is not.
            StudyExtendedError: if it was.
            StorageLostError: if the tables cannot be read any more.
        """
        end = sa.select(STUDY_SYSTEM_ATTRS.c.value_json).where(
            STUDY_SYSTEM_ATTRS.c.study_id == self.study_id, STUDY_SYSTEM_ATTRS.c.key == END
        )
        query = sa.select(STUDY_USER_ATTRS.c.study_id, end.scalar_subquery()).where(
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
            raise StudyDeletedError(
                f"study {self.name!r} was deleted from {storage} while this search used it: "
                "restore it from a backup to resume, or run the same command to start it again"
            )
        if self.steps is not None and found[1] not in (None, json.dumps(self.steps)):
            raise StudyExtendedError(
                f"study {self.name!r} was extended to {found[1]} steps while this search used it: "
                "run the same command to continue; recorded results are kept"
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
