"""Management of stored studies: list, rename, copy, delete, retry and back up, with their files.

A change is refused while workers hold trials of the study. The check and the change are one
transaction, so that of a worker that claims a trial at the same moment and the change, one comes
first. A copy first copies the files to a new folder, then the rows, in one transaction that makes
it visible. A killed copy leaves files that no study owns, which are recorded and removed by the
next.
"""

import math
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from studies.artifacts import ArtifactFolders, CopiedFiles, map_artifact_ids
from studies.attributes import SCHEMA_VERSION, StudyRecord
from studies.best import Best, BestReader
from studies.errors import ConfigError, StorageError, StudiesError, StudyHeldError
from studies.loader import read_record, read_study_record
from studies.storage.backup import BackupContent, copy_database, merge_log
from studies.storage.changes import (
    OwnedFiles,
    delete_study,
    is_owned,
    lock_copies,
    read_owned_files,
    rename_study,
    require_free_name,
    retry_trials,
)
from studies.storage.counts import (
    ActiveWorker,
    Fingerprint,
    TrialCounts,
    count_all,
    count_trials,
    find_study,
    read_active_workers,
    read_fingerprint,
    read_times,
    wait_until_unheld,
)
from studies.storage.engine import (
    SQLITE_BUSY_SECONDS,
    database_path,
    is_in_wal_mode,
    log_path,
    parse_url,
    read_only_uri,
    redact,
)
from studies.storage.open import list_study_names, load_study, open_storage, read_storage
from studies.storage.storage import LeasedRDBStorage
from studies.storage.whole_study import new_folder, read_study, store_study
from studies.text import check_study_name, to_line

PLAIN = "plain Optuna"
DAMAGED = "damaged"

_RENEWAL_SECONDS = 60
"""Time after which a copy renews the record of its folder."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class CopyResult:
    """What was copied.

    Attributes:
        name: name of the copy.
        storage: URL of its storage, without the password.
        rows: number of rows by table.
        files: its files.
        missing_source: name of the study that it derives from, if its storage lacks that.
    """

    name: str
    storage: str
    rows: dict[str, int]
    files: CopiedFiles
    missing_source: str | None = None


@dataclass(frozen=True)
class StudyManager:
    """Changes the studies of a storage.

    Attributes:
        storage: URL of the storage, which must exist.
        artifacts: location of the artifacts, see :func:`studies.artifacts.ArtifactFolders`.
        wait: whether to wait while workers hold trials; trials of dead ones are requeued then.
        print_line: prints what is waited for.

    Methods raise ``StudyNotFoundError``, ``StudyHeldError`` and the errors of
    :func:`studies.storage.open.open_storage` and :func:`studies.artifacts.ArtifactFolders`.
    """

    storage: str
    artifacts: str | None = None
    wait: bool = False
    print_line: Callable[[str], None] = lambda line: None

    def rename(self, old: str, new: str) -> list[str]:
        """Rename a study; return the names of the studies that derive from it.

        Raises:
            ConfigError: if the new name cannot be that of a study, or is its name.
            StudyExistsError: if another study has it.
        """
        check_study_name(new)
        if new == old:
            raise ConfigError(f"study {old!r} has that name already: expected another one")
        with self.open() as storage:
            return self.when_unheld(storage, old, lambda: rename_study(storage, old, new))

    def delete(self, name: str, force: bool = False) -> None:
        """Delete a study, then its files, and those that killed deletions left.

        Args:
            name: name of the study.
            force: whether to delete it although others derive from it.

        Raises:
            StudiesError: if others derive from it.
            ArtifactsError, OSError: if files cannot be removed; the next deletion tries again.
        """
        folders = ArtifactFolders(self.artifacts, self.storage)
        with self.open() as storage:
            remove_unowned(storage, folders)
            owned = self.when_unheld(storage, name, lambda: delete_study(storage, name, force))
        remove_files(folders, owned)

    def retry(self, name: str, kinds: Collection[str]) -> dict[str, int]:
        """Set failed trials waiting again; see :func:`studies.storage.failed_trials.retry_trials`.

        Returns:
            The number of trials of each kind that were set waiting.

        Raises:
            ImportedStudyError: if another program has trained them.
        """
        with self.open() as storage:
            read_study_record(load_study(storage, name))
            return self.when_unheld(storage, name, lambda: retry_trials(storage, name, kinds))

    def copy(
        self,
        name: str,
        to: str | None = None,
        new_name: str | None = None,
        artifacts_to: str | None = None,
    ) -> CopyResult:
        """Copy a study with its files; arguments are those of :func:`rnn_search.copy_study`.

        Raises:
            ConfigError: if the name of the copy cannot be that of a study, or is missing.
            StudyExistsError: if the name is taken there.
            StudyFormatError: if the study is damaged, or another program's.
        """
        if to is None and new_name is None:
            raise ConfigError(
                "a copy in the same storage needs another name: expected --as or --to"
            )
        copied_name, target_url = new_name or name, to or self.storage
        check_study_name(copied_name)
        folders = ArtifactFolders(self.artifacts, self.storage, read_only=True)
        with closing(_open_source(self.storage)) as source:
            with source.reading() as connection:
                owned = read_owned_files(connection, find_study(connection, name))
            refinement = read_record(load_study(source, name)).config.refinement

            def require_unheld() -> None:
                with source.snapshot() as connection:
                    read_fingerprint(connection, name)

            self.when_unheld(source, name, require_unheld)  # before the target is created
            target_folders = ArtifactFolders(artifacts_to or self.artifacts, target_url)
            with closing(open_storage(target_url)) as target:
                with target.reading() as connection:
                    require_free_name(connection, copied_name)
                copier = _Copier(source, folders, owned, target, target_folders, name, copied_name)
                rows, files = self.when_unheld(source, name, copier.run)
                merge_log(target)
                names = list_study_names(target)
        origin = refinement.source if refinement and refinement.source not in names else None
        where = redact(parse_url(target_url).set(password=None))  # valid: it was opened
        return CopyResult(copied_name, where, rows, files, origin)

    def back_up(self, target: Path) -> BackupContent:
        """Copy the SQLite file to a new file, complete and consistent even while searches run.

        Raises:
            StorageError: if the storage is no such file, or the new file cannot be one.
            OSError: if the copy fails.
        """
        url = parse_url(self.storage)
        source = database_path(url)
        if source is None:
            raise StorageError(
                f"storage {redact(url)} is not an SQLite file: copy it with pg_dump instead"
            )
        _check_is_new(target, source)
        read_storage(self.storage).close()  # rejects what is not a storage of studies
        try:
            with closing(_connect(source)) as connection:
                _, content = copy_database(connection, target)
        except sqlite3.Error as error:
            raise OSError(f"cannot copy the database to {target} ({error})") from error
        return content

    @contextmanager
    def open(self) -> Iterator[LeasedRDBStorage]:
        """Open the storage for writing; it is not created."""
        read_storage(self.storage).close()
        with closing(open_storage(self.storage)) as storage:
            yield storage

    def when_unheld(self, storage: LeasedRDBStorage, name: str, operation: Callable[[], _T]) -> _T:
        """Do an operation; if it is refused because trials are held, wait and try again."""
        while True:
            try:
                return operation()
            except StudyHeldError:
                if not self.wait:
                    raise
            wait_until_unheld(storage, name, self.print_line)


def remove_files(folders: ArtifactFolders, owned: OwnedFiles) -> None:
    """Remove the files of a folder that no study owns; a killed process leaves a record of it."""
    if owned.folder is None:
        folders.remove_files(owned)
        return
    folders.mark_unowned(owned)
    folders.remove_files(owned)
    folders.unmark(owned.folder)


def remove_unowned(
    storage: LeasedRDBStorage, folders: ArtifactFolders, copy: str | None = None
) -> None:
    """Remove the files that killed processes left without a study.

    Args:
        storage: storage of the studies.
        folders: its artifact folders.
        copy: copy that is about to begin, see :meth:`ArtifactFolders.list_unowned`.
    """
    for owned in folders.list_unowned(copy):
        assert owned.folder is not None
        # A copy that still runs finds its record gone in the transaction that ends it.
        with storage.transaction() as connection:
            lock_copies(connection)
            is_left = not is_owned(connection, owned.folder)
            folders.unmark(owned.folder)
        if is_left:
            remove_files(folders, owned)


# ------------------------------------------------------------------ copy


@dataclass(frozen=True)
class _Copier:
    """One attempt at a copy; see :meth:`StudyManager.copy`."""

    source: LeasedRDBStorage
    folders: ArtifactFolders
    owned: OwnedFiles
    target: LeasedRDBStorage
    target_folders: ArtifactFolders
    name: str
    new_name: str

    def run(self) -> tuple[dict[str, int], CopiedFiles]:
        """Copy files and rows; leave nothing if that fails."""
        folder = new_folder(self.new_name)
        ids = map_artifact_ids(self.owned, folder)
        new_files = OwnedFiles(folder, tuple(ids.values()))
        where = redact(self.target.engine.url)
        label = f"{self.owned.folder} to {self.new_name} in {where}"
        remove_unowned(self.target, self.target_folders, label)
        with self.source.snapshot() as connection:
            before = read_fingerprint(connection, self.name)
        renewed = -math.inf

        def mark() -> None:
            nonlocal renewed
            if time.monotonic() - renewed > _RENEWAL_SECONDS:
                self.target_folders.mark_unowned(new_files, label)
                renewed = time.monotonic()

        mark()
        try:
            files = self.folders.copy_files(self.owned, self.target_folders, folder, mark)
            return self._copy_rows(folder, ids, before), files
        except BaseException:
            is_stored = True  # if that is unknown, its files stay
            unreadable = suppress(SQLAlchemyError, OptunaError, StudiesError)
            with unreadable, self.target.reading() as connection:
                is_stored = is_owned(connection, folder)  # it may have been committed
            if not is_stored:
                remove_files(self.target_folders, new_files)
            raise

    def _copy_rows(
        self, folder: str, artifact_ids: dict[str, str], before: Fingerprint
    ) -> dict[str, int]:
        # The target first: its lock may be waited for, and a server ends idle snapshots.
        with self.target.transaction() as target, self.source.reading() as source:
            lock_copies(target)
            if read_fingerprint(source, self.name) != before:
                raise StudyHeldError(
                    f"study {self.name!r} changed while its files were copied: nothing was copied; "
                    "stop its workers and copy again"
                )
            study = read_study(self.source, self.name).with_files(artifact_ids)
            rows = store_study(target, replace(study, name=self.new_name), folder)
            if not self.target_folders.is_marked_unowned(folder):
                raise StudiesError(
                    f"another process began the same copy of study {self.name!r} and removed the "
                    "files of this one: nothing was copied"
                )
            self.target_folders.unmark(folder)
        return rows


def _open_source(url: str) -> LeasedRDBStorage:
    """Open the storage that holds the study, for writing if possible.

    A read-only connection to an SQLite file that no process has open would not see that one does
    so later.
    """
    opened = read_storage(url)
    path = database_path(parse_url(url))
    if path is None or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        opened.close()
        opened = open_storage(url)
    return opened


# ------------------------------------------------------------------ back up


def _check_is_new(target: Path, source: Path) -> None:
    if target.exists() and source.exists() and target.samefile(source):
        raise StorageError(f"{target} is the storage itself: expected a new file")
    if target.exists() or target.is_symlink():
        raise StorageError(f"{target} exists already: expected a new file")
    if (log := log_path(target)).exists():  # SQLite would write its content into the copy
        raise StorageError(
            f"{log} is left of another file of that name: delete it, or use another file"
        )
    if not target.parent.is_dir():
        raise StorageError(f"folder {target.parent} does not exist: create it, or use another file")


def _connect(source: Path) -> sqlite3.Connection:
    """Open a file for reading; writable if possible, to remove its log files at the end."""
    is_writable = os.access(source, os.W_OK) and os.access(source.parent, os.W_OK)
    if is_writable:
        uri = f"{source.resolve().as_uri()}?mode=rw"
    else:
        is_unused = not log_path(source).exists() and is_in_wal_mode(source)
        uri = read_only_uri(source, is_unused)
    return sqlite3.connect(uri, uri=True, timeout=SQLITE_BUSY_SECONDS)


# ------------------------------------------------------------------ list


@dataclass(frozen=True)
class ListedStudy:
    """A study of a storage.

    Attributes:
        name: name of the study.
        kind: ``grid``, ``refinement of 'X'``, ``replicates of 'X'``, ``imported``, ``schema N`` for
            a study of another version of this program, :data:`PLAIN` or :data:`DAMAGED`.
        counts: its grid trials by state; of plain Optuna's study, all trials.
        best: value of its best trial, of replicates the mean of the best architecture
            (:mod:`studies.best`); None before the first complete trial.
        best_unit: unit of that; "" for none.
        best_text: both for a line of text; "" before the first complete trial.
        workers: workers that hold its trials.
        started: time at which its first trial was started, UTC, by the worker's clock.
        changed: time at which a trial was last started or finished.
        artifact_bytes: size of checkpoints, weights and cells.
        problem: what is damaged; "" for nothing.
    """

    name: str
    kind: str
    counts: TrialCounts = field(default_factory=TrialCounts)
    best: float | None = None
    best_unit: str = ""
    best_text: str = ""
    workers: tuple[ActiveWorker, ...] = ()
    started: datetime | None = None
    changed: datetime | None = None
    artifact_bytes: int | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the study as ``--json`` prints it."""
        return {
            "study": self.name,
            "kind": self.kind,
            "planned": self.counts.planned,
            "finished": self.counts.finished,
            **asdict(self.counts),
            "best": self.best,
            "best_unit": self.best_unit,
            "workers": [worker.as_json() for worker in self.workers],
            "started": self.started and f"{self.started.isoformat()}+00:00",
            "changed": self.changed and f"{self.changed.isoformat()}+00:00",
            "artifact_bytes": self.artifact_bytes,
            "problem": self.problem,
        }


def list_studies(storage: LeasedRDBStorage, folders: ArtifactFolders) -> list[ListedStudy]:
    """List the studies of a storage, by name.

    Args:
        storage: the storage.
        folders: its artifact folders.
    """
    listed = []
    for name in list_study_names(storage):
        try:
            listed.append(_read_study(storage, folders, name))
        except (KeyError, StudiesError) as error:
            if name not in list_study_names(storage):  # it was deleted meanwhile
                continue
            if not isinstance(error, StudiesError):
                raise
            listed.append(ListedStudy(name, DAMAGED, problem=to_line(str(error))))
    return listed


def _read_study(storage: LeasedRDBStorage, folders: ArtifactFolders, name: str) -> ListedStudy:
    study = load_study(storage, name)
    study_id, version = study._study_id, study.user_attrs.get("schema_version")
    kind, record, problem = f"schema {version}", None, ""
    count = count_trials
    if version is None and "artifact_folder" not in study.user_attrs:
        kind, count = PLAIN, count_all
    elif version == SCHEMA_VERSION:
        try:
            record = read_record(study)
            kind = _kind(record)
        except StudiesError as error:
            kind, problem = DAMAGED, to_line(str(error))
    with storage.reading() as connection:
        counts = count(storage, study_id)
        best = BestReader(study, storage, record.config).read() if record else None
        workers = tuple(read_active_workers(connection, study_id))
        started, changed = read_times(connection, study_id)
        folder = read_owned_files(connection, study_id).folder
    return ListedStudy(
        name,
        kind,
        counts,
        best.value if best else None,
        best.metric.unit if best else "",
        _format_best(best) if best else "",
        workers,
        started,
        changed,
        folders.measure(folder) if folder else 0,
        problem,
    )


def _format_best(best: Best) -> str:
    """Return the value with its unit, and of a task other than text with its name."""
    text = best.metric.format(best.value)
    return text if best.metric.is_text else f"{text}, {best.metric.name}"


def _kind(record: StudyRecord) -> str:
    if not record.config.is_trained:
        return "imported"
    refinement = record.config.refinement
    if refinement is None:
        return "grid"
    if refinement.trial is not None:
        return f"trial {refinement.trial} of {refinement.source!r}"
    is_same = refinement.variants == [{}]
    kind = "replicates" if is_same and refinement.replicates > 1 else "refinement"
    return f"{kind} of {refinement.source!r}"
