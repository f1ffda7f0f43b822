"""The files of one study in its artifact stores: listed, copied with verification, and removed.

Files and rows cannot change in one transaction. A record in the folder ``unowned`` of the store of
checkpoints says of a study's folder that no study owns it: it is written before the first file of
a copy, and removed before the copy's rows are committed; it is written once a study's rows are
deleted, and removed after its files. So what a killed process leaves is found, and the next process
removes it.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, get_args
from uuid import UUID, uuid5

from optuna.artifacts.exceptions import ArtifactNotFound

from studies.artifacts import (
    UNOWNED,
    ArtifactKind,
    AtomicFileStore,
    Store,
    open_store,
    store_errors,
)
from studies.errors import ArtifactsError
from studies.storage.changes import OwnedFiles
from studies.temporary_files import STALE_SECONDS

_CHUNK_BYTES = 2**20

_NAMESPACE = UUID("6f1b2d0c-6c0e-4d0b-9a55-5d2c3b9f7a41")

_ROLES = ("curves.csv", "samples", *(f"best-{rank}" for rank in range(1, 100)))
"""Roles of the files that are published to optuna-dashboard."""

_MAX_RECORD_BYTES = 2**24


def artifact_id(folder: str, role: str) -> str:
    """Return the name of a file for the dashboard, the same in every process.

    Args:
        folder: artifact folder of the study.
        role: purpose of the file; a new file replaces the one of the same role.
    """
    return str(uuid5(_NAMESPACE, f"{folder}/{role}"))


def map_artifact_ids(owned: OwnedFiles, folder: str) -> dict[str, str]:
    """Return the names that the files of kind ``artifacts`` have in a copy, by their own names.

    Args:
        owned: files of the study that is copied.
        folder: artifact folder of the copy.
    """
    roles = {artifact_id(owned.folder or "", role): role for role in _ROLES}
    return {old: artifact_id(folder, roles.get(old, old)) for old in owned.artifact_ids}


@dataclass(frozen=True)
class CopiedFiles:
    """Number and size of copied files, and how many of the dashboard's files were missing."""

    count: int = 0
    size: int = 0
    missing: int = 0


class StudyStores:
    """The artifact stores of a storage.

    Args:
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
        storage: URL of the storage.
        read_only: whether the stores need not be writable.
    """

    def __init__(self, artifacts: str | None, storage: str, read_only: bool = False) -> None:
        self._stores: Mapping[ArtifactKind, Store] = {
            kind: open_store(artifacts, storage, kind, read_only) for kind in get_args(ArtifactKind)
        }

    def list_files(self, owned: OwnedFiles) -> Iterator[tuple[ArtifactKind, str]]:
        """Yield kind and name of a study's files; of the dashboard's, those that it lists."""
        if owned.folder is not None:
            for kind in ("checkpoints", "weights", "cells"):
                for name in sorted(self._stores[kind].list_names(owned.folder)):
                    if _kind(name) == kind:
                        yield kind, f"{owned.folder}/{name}"
        for name in owned.artifact_ids:
            yield "artifacts", name

    def measure(self, folder: str | None) -> int | None:
        """Return the bytes of checkpoints, weights and cells; None where that is not cheap."""
        size = 0
        for kind in ("checkpoints", "weights", "cells"):
            store = self._stores[kind]
            if not isinstance(store, AtomicFileStore):
                return None
            for name in store.list_names(folder) if folder else ():
                if _kind(name) == kind:
                    with contextlib.suppress(OSError):  # removed meanwhile
                        size += (store.path / folder / name).stat().st_size if folder else 0
        return size

    def copy_files(
        self, owned: OwnedFiles, target: "StudyStores", folder: str, on_file: Callable[[], None]
    ) -> CopiedFiles:
        """Copy a study's files, and compare the SHA-256 of each with that of its copy.

        Args:
            owned: files of the study.
            target: stores to copy them to.
            folder: artifact folder of the copy.
            on_file: called before each file.

        Raises:
            ArtifactsError: if a file cannot be copied, or changes meanwhile.
        """
        names = map_artifact_ids(owned, folder)
        count = size = missing = 0
        for kind, name in self.list_files(owned):
            on_file()
            new_name = names.get(name) or f"{folder}/{name.partition('/')[2]}"
            try:
                with contextlib.closing(self._stores[kind].open_reader(name)) as content:
                    target._stores[kind].write(new_name, content)
                copied = _digest(target._stores[kind], new_name)
                if _digest(self._stores[kind], name) != copied:
                    raise ArtifactsError("it changed, or its copy is damaged")
            except ArtifactNotFound as error:
                if kind != "artifacts":
                    raise ArtifactsError(f"{name} disappeared while it was copied") from error
                missing += 1
                continue
            except store_errors() as error:
                raise ArtifactsError(f"cannot copy {name} ({error})") from error
            count, size = count + 1, size + copied[0]
        return CopiedFiles(count, size, missing)

    def remove_files(self, owned: OwnedFiles) -> None:
        """Remove the files of a study, those that killed writers left included."""
        for kind, name in self.list_files(owned):
            with contextlib.suppress(ArtifactNotFound):
                self._stores[kind].remove(name)
        for kind in ("checkpoints", "weights", "cells"):
            store = self._stores[kind]
            if isinstance(store, AtomicFileStore) and owned.folder is not None:
                store.purge(owned.folder, "\0")  # no file has this suffix
        if isinstance(artifacts := self._stores["artifacts"], AtomicFileStore):
            artifacts.remove_if_empty()

    # ------------------------------------------------------------------ folders without a study

    def mark_unowned(self, owned: OwnedFiles, copy: str | None = None) -> None:
        """Record that no study owns a folder.

        Args:
            owned: the folder, and the names of the files for the dashboard.
            copy: of a copy that is under way: what is copied to where.
        """
        record = {"artifacts": list(owned.artifact_ids), "copy": copy}
        content = io.BytesIO(json.dumps(record).encode())
        self._stores["checkpoints"].write(f"{UNOWNED}/{owned.folder}", content)

    def is_marked_unowned(self, folder: str) -> bool:
        """Return whether a folder is recorded as one that no study owns."""
        return folder in self._stores["checkpoints"].list_names(UNOWNED)

    def unmark(self, folder: str) -> None:
        """Remove the record of a folder, if there is one."""
        store = self._stores["checkpoints"]
        with contextlib.suppress(ArtifactNotFound):
            store.remove(f"{UNOWNED}/{folder}")
        if isinstance(store, AtomicFileStore):
            store.remove_if_empty(UNOWNED)

    def list_unowned(self, copy: str | None = None) -> list[OwnedFiles]:
        """List the folders that killed processes left without a study.

        Args:
            copy: copy that is about to begin: an earlier attempt at it has ended. Those of others
                are listed if they are an hour old; a copy renews its record.
        """
        store = self._stores["checkpoints"]
        found = []
        for folder in store.list_names(UNOWNED):
            name = f"{UNOWNED}/{folder}"
            try:
                with contextlib.closing(store.open_reader(name)) as reader:
                    record = json.loads(reader.read(_MAX_RECORD_BYTES))
                of_copy, artifact_ids = record["copy"], tuple(map(str, record["artifacts"]))
                is_left = of_copy in (None, copy) or store.age(name) > STALE_SECONDS
            except (ArtifactNotFound, ArtifactsError, KeyError, OSError, TypeError, ValueError):
                continue  # removed meanwhile, or not a record
            if is_left:
                found.append(OwnedFiles(folder, artifact_ids))
        return found


def _kind(name: str) -> ArtifactKind | None:
    """Return the kind of a file in a study's folder, which all kinds may share."""
    if name.startswith(("cell-", "task-")) and name.endswith(".py"):
        return "cells"
    if not name.startswith("trial-") or name.endswith(".part"):
        return None
    return "weights" if name.endswith(".safetensors") else "checkpoints"


def _digest(store: Store, name: str) -> tuple[int, str]:
    """Return size and SHA-256 of a file."""
    size, digest = 0, hashlib.sha256()
    reader: BinaryIO | Any = store.open_reader(name)
    with contextlib.closing(reader):
        while chunk := reader.read(_CHUNK_BYTES):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()
