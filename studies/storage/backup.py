"""The database as a file: its backup while processes write to it, and its loss during a search.

SQLite continues to read and write an open file that was deleted or replaced. A storage checks that
its file is in place before each transaction, and that its study is stored; what a lost file held is
copied next to its path.
"""

import contextlib
import filecmp
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from studies.attributes import GRID_SIZE
from studies.errors import StorageLostError, StudyDeletedError, StudyExtendedError
from studies.files import temporary_file
from studies.storage.engine import database_path, error_message, is_transient, log_path, redact
from studies.storage.tables import STUDY_SYSTEM_ATTRS, STUDY_USER_ATTRS

if TYPE_CHECKING:
    from studies.storage.storage import LeasedRDBStorage


# ------------------------------------------------------------------ presence


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

    def find(self) -> Path | None:
        """Return where the file was moved together with its log; None if that is unknown."""
        for link in Path("/proc/self/fd").glob("*"):  # on Linux, a link for each open file
            with contextlib.suppress(OSError):  # a pipe, or closed meanwhile
                moved = link.readlink()
                if _identity(moved) == self.identity and log_path(moved).exists():
                    return moved
        return None


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
            StudyDeletedError: if it is not.
            StudyExtendedError: if it was.
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
            raise StudyDeletedError(
                f"study {self.name!r} was deleted from {storage} while this search used it: "
                "restore it from a backup to resume, or run the same command to start it again"
            )
        if self.grid_size is not None and found[0] not in (None, json.dumps(self.grid_size)):
            raise StudyExtendedError(
                f"study {self.name!r} was extended to {found[0]} trials while this search used it: "
                "run the same command to continue; recorded results are kept"
            )


# ------------------------------------------------------------------ copies


@dataclass(frozen=True)
class BackupContent:
    """Number of the studies and trials in a copy."""

    studies: int
    trials: int
    finished: int


def copy_database(
    source: sqlite3.Connection, path: Path, suffixes: Iterable[str] = ("",)
) -> tuple[Path, BackupContent]:
    """Copy a database to a new file in WAL mode, complete and consistent as of one commit.

    In WAL mode others may write meanwhile: the copy is read in one step from one snapshot. More
    steps would start again at each write.

    Args:
        source: open connection, outside of a transaction.
        path: path of the copy, which appears when it is complete.
        suffixes: what to append to the path; the first is used that is free, or, if it is not
            empty, whose file holds the same copy already.

    Returns:
        The file of the copy, and its content.

    Raises:
        FileExistsError: if there is another file for each suffix.
        OSError, sqlite3.Error: if the copy cannot be written or the database is damaged; nothing is
            left.
    """
    with temporary_file(path) as temporary:
        with contextlib.closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = WAL")
            (problem,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
            if problem != "ok":
                raise OSError(f"the database is damaged: {problem.splitlines()[-1]}")
            counts = copy.execute(
                "SELECT (SELECT count(*) FROM studies), count(*), "
                "count(CASE WHEN state NOT IN ('RUNNING', 'WAITING') THEN 1 END) FROM trials"
            )
            content = BackupContent(*counts.fetchone())
        for suffix in suffixes:
            target = path.with_name(path.name + suffix)
            with contextlib.suppress(FileExistsError):
                _publish(temporary, target)
                return target, content
            # By another process. A storage is not read here: closing it would release its locks.
            if suffix and filecmp.cmp(temporary, target, shallow=False):
                return target, content
    raise FileExistsError(f"{path} exists already")


def _publish(copy: Path, target: Path) -> None:
    """Give a complete file its name, unless that is taken."""
    try:
        target.hardlink_to(copy)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        target.touch(exist_ok=False)  # a rename alone would replace another file
        copy.replace(target)


def merge_log(storage: "LeasedRDBStorage") -> None:
    """Move SQLite's write-ahead log into the file, so that the file alone holds everything.

    Best effort: what other processes read or write at this moment stays in the log.
    """
    if storage.file is None:
        return
    with (
        contextlib.suppress(SQLAlchemyError, sqlite3.Error, StorageLostError),
        contextlib.closing(storage.engine.raw_connection()) as connection,
    ):
        connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")  # waits for no process


# ------------------------------------------------------------------ rescue


@contextlib.contextmanager
def rescue_if_lost(storage: "LeasedRDBStorage") -> Iterator[None]:
    """Copy the content of an SQLite file that was deleted during the context, next to its path.

    Open connections still hold it. The error that ends the context says where the copy is.
    """
    try:
        yield
    except StorageLostError as error:
        if storage.file is None or storage.file.is_in_place:
            raise
        raise StorageLostError(f"{error}; {_rescue(storage, storage.file)}") from error


def _rescue(storage: "LeasedRDBStorage", file: DatabaseFile) -> str:
    """Copy a lost file, unless it was only moved; return where its results are and what to do."""
    if (moved := file.find()) is not None:
        return f"its results are in {moved}: move it and its checkpoints back to resume"
    path, log = file.path, log_path(file.path)
    try:
        # Opened before the loss: the storage refuses new connections.
        with contextlib.closing(storage.engine.raw_connection()) as connection:
            source = connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            numbers = (f".rescued-{number}" for number in itertools.count(2))
            rescued, _ = copy_database(source, path, itertools.chain([".rescued"], numbers))
    except (OSError, sqlite3.Error, SQLAlchemyError, StorageLostError) as error:
        return f"its results are lost ({error}): restore it from a backup"
    # SQLite would write the content of the log into the file that is moved there.
    deletion = f"delete {log.name} and {path.name}-shm, then " if log.exists() else ""
    return f"its content was rescued: {deletion}move {rescued} to {path} to resume"
