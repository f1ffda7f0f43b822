"""Copies of a study with its files, to the same storage or to another.

First the files are copied to a new folder, then the rows, in one transaction that makes the copy
visible. A killed copy leaves files that no study owns, which are recorded and removed by the next.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from uuid import uuid4

from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from studies.errors import ConfigError, StudiesError, StudyHeldError
from studies.loader import read_record
from studies.management import StudyManager, remove_files, remove_unowned
from studies.storage.backup import merge_log
from studies.storage.changes import (
    OwnedFiles,
    is_owned,
    lock_copies,
    read_owned_files,
    require_free_name,
)
from studies.storage.counts import Fingerprint, find_study, read_fingerprint
from studies.storage.engine import database_path, parse_url, redact
from studies.storage.open import list_study_names, load_study, open_storage, read_storage
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import StudyCopy, copy_rows
from studies.storage.trials import reporting_damage
from studies.study_files import CopiedFiles, StudyStores, map_artifact_ids
from studies.text import check_study_name

_RENEWAL_SECONDS = 60
"""Time after which a copy renews the record of its folder."""


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


def copy_study(
    manager: StudyManager,
    name: str,
    to: str | None = None,
    new_name: str | None = None,
    artifacts_to: str | None = None,
) -> CopyResult:
    """Copy a study with its files; the study itself is unchanged.

    Args:
        manager: manager of the storage that holds it.
        name: name of the study.
        to: URL of the storage to copy it to, which is created if it is empty; None for the same.
        new_name: name of the copy; None for the same, in another storage.
        artifacts_to: location of the copy's artifacts; None for that of the study if one is given,
            and else for the default place of the storage.

    Raises:
        ConfigError: if the name of the copy cannot be that of a study, or is missing.
        StudyExistsError: if the name is taken there.
        StudyNotFoundError, StudyHeldError, StudyFormatError: if the study cannot be copied.
        StorageError, ArtifactsError: if a storage or the artifacts cannot be used.
    """
    if to is None and new_name is None:
        raise ConfigError("a copy in the same storage needs another name: expected --as or --to")
    copied_name, target_url = new_name or name, to or manager.storage
    check_study_name(copied_name)
    target_artifacts = artifacts_to or manager.artifacts
    stores = StudyStores(manager.artifacts, manager.storage, read_only=True)
    with _open_source(manager.storage) as source:
        with source.reading() as connection:
            study_id = find_study(connection, name)
            owned = read_owned_files(connection, study_id)
        record = read_record(load_study(source, name))
        _read_unheld(manager, source, name)
        target_stores = StudyStores(target_artifacts, target_url)  # refuses what cannot be used
        with closing(open_storage(target_url)) as target:
            with target.reading() as connection:
                require_free_name(connection, copied_name)
            copier = _Copier(source, stores, owned, target, target_stores, name, copied_name)
            rows, files = manager.when_unheld(source, name, copier.run)
            merge_log(target)
            refinement = record.config.refinement
            origin = None if refinement is None else refinement.source
            is_missing = origin is not None and origin not in list_study_names(target)
    where = redact(parse_url(target_url).set(password=None))  # valid: it is read from elsewhere
    return CopyResult(copied_name, where, rows, files, origin if is_missing else None)


def _read_unheld(manager: StudyManager, source: LeasedRDBStorage, name: str) -> None:
    """Check that no worker holds trials, or wait, before the target is created."""

    def check() -> None:
        with source.snapshot() as connection:
            read_fingerprint(connection, name)

    manager.when_unheld(source, name, check)


@dataclass(frozen=True)
class _Copier:
    """One attempt at a copy; see :func:`copy_study`."""

    source: LeasedRDBStorage
    stores: StudyStores
    owned: OwnedFiles
    target: LeasedRDBStorage
    target_stores: StudyStores
    name: str
    new_name: str

    def run(self) -> tuple[dict[str, int], CopiedFiles]:
        """Copy files and rows; leave nothing if that fails."""
        folder = f"{re.sub('[^A-Za-z0-9_-]', '-', self.new_name)}-{uuid4().hex[:12]}"
        ids = map_artifact_ids(self.owned, folder)
        new_files = OwnedFiles(folder, tuple(ids.values()))
        where = redact(self.target.engine.url)
        label = f"{self.owned.folder} to {self.new_name} in {where}"
        remove_unowned(self.target, self.target_stores, label)
        with self.source.snapshot() as connection:
            before = read_fingerprint(connection, self.name)
        copy = StudyCopy(before[0], self.new_name, folder, ids)
        self.target_stores.mark_unowned(new_files, label)
        try:
            renew = _Renewal(lambda: self.target_stores.mark_unowned(new_files, label))
            files = self.stores.copy_files(self.owned, self.target_stores, folder, renew)
            return self._copy_rows(copy, before), files
        except BaseException:
            if not self._is_stored(folder):
                remove_files(self.target_stores, new_files)
            raise

    def _copy_rows(self, copy: StudyCopy, before: Fingerprint) -> dict[str, int]:
        # The target first: its lock may be waited for, and a server ends idle snapshots.
        with self.target.transaction() as target, self.source.snapshot() as source:
            lock_copies(target)
            if read_fingerprint(source, self.name) != before:
                raise StudyHeldError(
                    f"study {self.name!r} changed while its files were copied: nothing was copied; "
                    "stop its workers and copy again"
                )
            require_free_name(target, copy.name)
            with reporting_damage(self.source, copy.source_id):
                rows = copy_rows(source, target, copy)
            if not self.target_stores.is_marked_unowned(copy.folder):
                raise StudiesError(
                    f"another process began the same copy of study {self.name!r} and removed the "
                    "files of this one: nothing was copied"
                )
            self.target_stores.unmark(copy.folder)
        return rows

    def _is_stored(self, folder: str) -> bool:
        """Return whether the copy was committed although an error was raised."""
        try:
            with self.target.reading() as connection:
                return is_owned(connection, folder)
        except (SQLAlchemyError, OptunaError, StudiesError):  # unknown: its files stay
            return True


class _Renewal:
    """Renews the record of a folder, so that it does not look like one that was left."""

    def __init__(self, renew: Callable[[], None]) -> None:
        self._renew = renew
        self._renewed = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._renewed > _RENEWAL_SECONDS:
            self._renew()
            self._renewed = time.monotonic()


@contextmanager
def _open_source(url: str) -> Iterator[LeasedRDBStorage]:
    """Open the storage that holds the study, for writing if possible.

    A read-only connection to an SQLite file that no process has open would not see that one does
    so later.
    """
    opened = read_storage(url)
    path = database_path(parse_url(url))
    if path is None or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        opened.close()
        opened = open_storage(url)
    with closing(opened):
        yield opened
