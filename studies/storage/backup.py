"""Copies of SQLite files that processes may be writing to, and their write-ahead log."""

import contextlib
import filecmp
import itertools
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from studies.errors import StorageLostError, StudyDeletedError, StudyExtendedError
from studies.storage.engine import log_path
from studies.storage.storage import LeasedRDBStorage
from studies.temporary_files import temporary_file


@dataclass(frozen=True)
class BackupContent:
    """Number of the studies and trials in a copy."""

    studies: int
    trials: int
    finished: int


def copy_database(source: sqlite3.Connection, target: Path) -> BackupContent:
    """Copy a database to a new file, complete and consistent as of one commit.

    In WAL mode others may write meanwhile: the copy is read in one step from one snapshot. More
    steps would start again at each write.

    Args:
        source: open connection, outside of a transaction.
        target: file that does not exist; it appears when it is complete.

    Raises:
        OSError: if the copy cannot be written or the database is damaged; nothing is left.
    """
    with _temporary_copy(source, target) as (copy, content):
        _publish(copy, target)
    return content


def merge_log(storage: LeasedRDBStorage) -> None:
    """Move SQLite's write-ahead log into the file, so that the file alone holds everything.

    Best effort: what other processes read or write at this moment stays in the log.
    """
    if storage.file is None or not storage.file.is_in_place:
        return
    with (
        contextlib.suppress(SQLAlchemyError, sqlite3.Error, StorageLostError),
        contextlib.closing(storage.engine.raw_connection()) as connection,
    ):
        connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")  # waits for no process


@contextlib.contextmanager
def rescue_if_lost(storage: LeasedRDBStorage) -> Iterator[None]:
    """Copy the content of an SQLite file that was deleted during the context, next to its path.

    Open connections still hold it. The error that ends the context says where the copy is.
    """
    try:
        yield
    except (StudyDeletedError, StudyExtendedError):
        raise
    except StorageLostError as error:
        if storage.file is None or storage.file.is_in_place:
            raise
        raise StorageLostError(f"{error}; {_rescue(storage, storage.file.path)}") from error


def _rescue(storage: LeasedRDBStorage, path: Path) -> str:
    """Copy a lost file, unless it was only moved; return where its results are and what to do."""
    assert storage.file is not None
    if (moved := storage.file.find()) is not None:
        return f"its results are in {moved}: move it and its checkpoints back to resume"
    try:
        # Opened before the loss: the storage refuses new connections.
        with contextlib.closing(storage.engine.raw_connection()) as connection:
            source = connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            rescued = _copy_next_to(source, path)
    except (OSError, SQLAlchemyError, StorageLostError) as error:
        return f"its results are lost ({error}): restore it from a backup"
    log = log_path(path)
    # SQLite would write the content of the log into the file that is moved there.
    deletion = f"delete {log.name} and {path.name}-shm, then " if log.exists() else ""
    return f"its content was rescued: {deletion}move {rescued} to {path} to resume"


def _copy_next_to(source: sqlite3.Connection, path: Path) -> Path:
    """Copy a database to the first name that is free, or that holds the same copy already."""
    with _temporary_copy(source, path) as (copy, _):
        for number in itertools.count(1):
            suffix = ".rescued" if number == 1 else f".rescued-{number}"
            target = path.with_name(path.name + suffix)
            try:
                _publish(copy, target)
                return target
            except FileExistsError:
                if filecmp.cmp(copy, target, shallow=False):  # by another worker
                    return target
    raise AssertionError("unreachable")


def _publish(copy: Path, target: Path) -> None:
    """Give a complete file its name, unless that is taken."""
    try:
        target.hardlink_to(copy)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        target.touch(exist_ok=False)  # a rename alone would replace another file
        copy.replace(target)


@contextlib.contextmanager
def _temporary_copy(
    source: sqlite3.Connection, target: Path
) -> Iterator[tuple[Path, BackupContent]]:
    """Write a checked copy next to a file, for the duration of the context."""
    with temporary_file(target) as temporary:
        try:
            with contextlib.closing(sqlite3.connect(temporary)) as copy:
                source.backup(copy)
                content = _check(copy)
        except sqlite3.Error as error:
            raise OSError(f"cannot copy the database to {target} ({error})") from error
        yield temporary, content


def _check(copy: sqlite3.Connection) -> BackupContent:
    (problem,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if problem != "ok":
        raise OSError(f"the database is damaged: {problem.splitlines()[-1]}")
    (studies,) = copy.execute("SELECT count(*) FROM studies").fetchone()
    trials, finished = copy.execute(
        "SELECT count(*), count(CASE WHEN state NOT IN ('RUNNING', 'WAITING') THEN 1 END) "
        "FROM trials"
    ).fetchone()
    return BackupContent(studies, trials, finished)
