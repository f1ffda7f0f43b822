"""Management of stored studies: rename, copy, delete and retry them, with everything they own.

Each is refused while workers hold trials of the study. The check and the change are one
transaction, so that of a worker that claims a trial at the same moment and the change, one comes
first.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from studies.errors import ConfigError, StudyHeldError
from studies.loader import read_study_record
from studies.storage.changes import (
    OwnedFiles,
    delete_study,
    is_owned,
    lock_copies,
    rename_study,
    retry_trials,
)
from studies.storage.counts import wait_until_unheld
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.storage import LeasedRDBStorage
from studies.study_files import StudyStores
from studies.text import check_study_name

_T = TypeVar("_T")

PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class StudyManager:
    """Changes the studies of a storage.

    Attributes:
        storage: URL of the storage, which must exist.
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
        wait: whether to wait while workers hold trials; trials of dead ones are requeued then.
        print_line: prints what is waited for.

    Methods raise ``StudyNotFoundError``, ``StudyHeldError`` and the errors of
    :func:`studies.storage.open.open_storage` and :func:`studies.artifacts.open_store`.
    """

    storage: str
    artifacts: str | None = None
    wait: bool = False
    print_line: PrintLine = lambda line: None

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

    def delete(self, name: str, force: bool = False) -> str | None:
        """Delete a study, then its files, and those that killed deletions left.

        Args:
            name: name of the study.
            force: whether to delete it although others derive from it.

        Returns:
            The name of its artifact folder; None if it had none of its own.

        Raises:
            StudiesError: if others derive from it.
            ArtifactsError, OSError: if files cannot be removed; the next deletion tries again.
        """
        stores = StudyStores(self.artifacts, self.storage)
        with self.open() as storage:
            remove_unowned(storage, stores)
            owned = self.when_unheld(storage, name, lambda: delete_study(storage, name, force))
        remove_files(stores, owned)
        return owned.folder

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


def remove_files(stores: StudyStores, owned: OwnedFiles) -> None:
    """Remove the files of a folder that no study owns; a killed process leaves a record of it."""
    if owned.folder is None:
        stores.remove_files(owned)
        return
    stores.mark_unowned(owned)
    stores.remove_files(owned)
    stores.unmark(owned.folder)


def remove_unowned(storage: LeasedRDBStorage, stores: StudyStores, copy: str | None = None) -> None:
    """Remove the files that killed processes left without a study.

    Args:
        storage: storage of the studies.
        stores: its artifact stores.
        copy: copy that is about to begin, see :meth:`StudyStores.list_unowned`.
    """
    for owned in stores.list_unowned(copy):
        assert owned.folder is not None
        # A copy that still runs finds its record gone in the transaction that ends it.
        with storage.transaction() as connection:
            lock_copies(connection)
            is_left = not is_owned(connection, owned.folder)
            stores.unmark(owned.folder)
        if is_left:
            remove_files(stores, owned)
