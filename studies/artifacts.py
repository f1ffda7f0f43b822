"""Folders and files of studies: checkpoints, weights, code, and files for the dashboard.

All workers of a study share its folders. A file of a trial is opaque here: bytes, written whole or
not at all.

Files and rows cannot change in one transaction. A record in the folder ``unowned`` next to those of
checkpoints says of a study's folder that no study owns it: it is written before the first file of
a copy, and removed before the copy's rows are committed; it is written once a study's rows are
deleted, and removed after its files. So what a killed process leaves is found, and the next process
removes it.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from uuid import UUID, uuid5

from studies.errors import ArtifactsError
from studies.files import (
    STALE_SECONDS,
    atomic_write,
    remove_temporary_files,
    remove_temporary_files_of,
)
from studies.storage.changes import OwnedFiles
from studies.storage.engine import parse_url

ArtifactKind = Literal["checkpoints", "artifacts", "weights", "cells"]
"""Kind of file: checkpoints of running trials, files for the dashboard, weights of the best
networks, or source files of users' own cells and tasks."""

TrialFileKind = Literal["checkpoint", "safetensors"]
"""Kind of a trial's file, the suffix of its name: a checkpoint of an unfinished trial, the weights
of a complete one."""

DEFAULT_PARENT = Path("studies")
"""Parent of the default folders of studies on a server, relative to the working directory."""

UNOWNED = "unowned"
"""Folder, next to those of the studies' checkpoints, of the records of unowned folders."""

_TRIAL_FILE = re.compile(r"trial-([0-9]+)\.([a-z]+)")

_CODE_FILE = re.compile(r"(cell|task)-\w+\.py")

_OWNERS: dict[str, ArtifactKind] = {
    "checkpoint": "checkpoints",
    "quarantined": "checkpoints",
    "safetensors": "weights",
}
"""Kind of the folder in which a trial's file lies, by the suffix of its name."""


class TrialFiles:
    """Files of one kind, one for each trial of a study, in a folder that the workers share.

    Args:
        folder: folder of the files; created by the first write.
        kind: kind of the files.
    """

    def __init__(self, folder: Path, kind: TrialFileKind) -> None:
        self.folder = folder
        self.kind = kind

    def write(self, number: int, content: bytes) -> None:
        """Write or replace a trial's file; remove old temporary files of killed writers.

        Raises:
            OSError: if it cannot be written; the previous file is kept.
        """
        remove_temporary_files(self.folder, _TRIAL_FILE.fullmatch, STALE_SECONDS)
        atomic_write(self._path(number), [content])

    def read(self, number: int, max_bytes: int = -1) -> bytes | None:
        """Return the content of a trial's file, at most so many bytes; None if there is none.

        Raises:
            OSError: if it cannot be read.
        """
        try:
            with self._path(number).open("rb") as file:
                return file.read(max_bytes)
        except FileNotFoundError:
            return None

    def remove(self, number: int) -> None:
        """Remove a trial's file, if there is one, and what killed writers of it left."""
        path = self._path(number)
        remove_temporary_files_of(path, min_age=None)
        path.unlink(missing_ok=True)

    def quarantine(self, number: int) -> Path:
        """Rename a damaged file, so that it is never read; return its new path."""
        path = self._path(number)
        return path.replace(path.with_suffix(".quarantined"))

    def list_trials(self) -> set[int]:
        """Return the numbers of the trials that have a file."""
        matches = map(_TRIAL_FILE.fullmatch, _list_names(self.folder))
        return {int(match[1]) for match in matches if match and match[2] == self.kind}

    def evict(self, ranking: Sequence[int], count: int) -> None:
        """Remove the files of ranked trials, the best first, but the first ``count``."""
        for number in self.list_trials().intersection(ranking[count:]):
            self.remove(number)

    def _path(self, number: int) -> Path:
        return self.folder / f"trial-{number}.{self.kind}"


class ArtifactFolders:
    """The folders of a storage's studies.

    Args:
        artifacts: folder for all kinds of files; None for one folder a kind, next to the SQLite
            file, or in :data:`DEFAULT_PARENT` for studies on a server.
        storage: URL of the storage.
        read_only: whether the folders need not be writable.

    Raises:
        ArtifactsError: if the folder cannot be used; nothing is created.
    """

    def __init__(self, artifacts: str | None, storage: str, read_only: bool = False) -> None:
        self._shared: Path | None = None
        if artifacts is not None:
            _require_usable(artifacts, read_only)
            self._shared = Path(artifacts)
            return
        url = parse_url(storage)
        is_file = url.get_backend_name() == "sqlite"
        self._default = f"{url.database}." if is_file else f"{DEFAULT_PARENT}/"

    def root(self, kind: ArtifactKind) -> Path:
        """Return the folder of the files of a kind, which has one folder for each study."""
        return self._shared or Path(f"{self._default}{kind}")

    def trial_files(self, folder: str, kind: TrialFileKind) -> TrialFiles:
        """Return the trials' files of a kind of the study that has an artifact folder."""
        return TrialFiles(self.root(_OWNERS[kind]) / folder, kind)

    def list_files(self, owned: OwnedFiles) -> Iterator[tuple[ArtifactKind, str]]:
        """Yield kind and name of a study's files; of the dashboard's, those that it lists."""
        if owned.folder is not None:
            for kind in get_args(ArtifactKind):
                for name in sorted(_list_names(self.root(kind) / owned.folder)):
                    if _find_kind(name) == kind:
                        yield kind, f"{owned.folder}/{name}"
        for name in owned.artifact_ids:
            yield "artifacts", name

    def measure(self, folder: str) -> int:
        """Return the bytes of the checkpoints, weights and cells of a study."""
        size = 0
        for kind, name in self.list_files(OwnedFiles(folder, ())):
            with contextlib.suppress(OSError):  # removed meanwhile
                size += (self.root(kind) / name).stat().st_size
        return size

    def clear(self, folder: str) -> None:
        """Remove what a finished study does not need: checkpoints, and what killed writers left."""
        checkpoints = self.trial_files(folder, "checkpoint")
        for number in checkpoints.list_trials():
            checkpoints.remove(number)
        self._remove_temporary_files(folder)
        self._remove_if_empty("checkpoints", folder)

    def remove_files(self, owned: OwnedFiles) -> None:
        """Remove the files of a study, those that killed writers left included."""
        for kind, name in self.list_files(owned):
            (self.root(kind) / name).unlink(missing_ok=True)
        if owned.folder is None:
            return
        self._remove_temporary_files(owned.folder)
        for kind in get_args(ArtifactKind):
            self._remove_if_empty(kind, owned.folder)

    def _remove_temporary_files(self, folder: str) -> None:
        for kind in get_args(ArtifactKind):
            remove_temporary_files(self.root(kind) / folder, _find_kind, min_age=None)

    def _remove_if_empty(self, kind: ArtifactKind, folder: str) -> None:
        """Remove the folder of a study and a default folder, if they are empty."""
        with contextlib.suppress(OSError):  # missing or not empty
            (self.root(kind) / folder).rmdir()
        if self._shared is None:
            with contextlib.suppress(OSError):
                self.root(kind).rmdir()

    # ------------------------------------------------------------------ copies

    def copy_files(
        self, owned: OwnedFiles, target: "ArtifactFolders", folder: str, on_file: Callable[[], None]
    ) -> "CopiedFiles":
        """Copy a study's files, and compare the SHA-256 of each with that of its copy.

        Args:
            owned: files of the study.
            target: folders to copy them to.
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
            source = self.root(kind) / name
            copy = target.root(kind) / new_name
            try:
                with source.open("rb") as content:
                    atomic_write(copy, content)
                if _digest(source) != _digest(copy):
                    raise ArtifactsError("it changed, or its copy is damaged")
            except FileNotFoundError as error:
                if kind != "artifacts":
                    raise ArtifactsError(f"{name} disappeared while it was copied") from error
                missing += 1
                continue
            except (ArtifactsError, OSError) as error:
                raise ArtifactsError(f"cannot copy {name} ({error})") from error
            count += 1
            size += copy.stat().st_size
        return CopiedFiles(count, size, missing)

    # ------------------------------------------------------------------ folders without a study

    def mark_unowned(self, owned: OwnedFiles, copy: str | None = None) -> None:
        """Record that no study owns a folder.

        Args:
            owned: the folder, and the names of the files for the dashboard.
            copy: of a copy that is under way: what is copied to where.
        """
        record = {"artifacts": list(owned.artifact_ids), "copy": copy}
        assert owned.folder is not None
        atomic_write(self._unowned / owned.folder, [json.dumps(record).encode()])

    def is_marked_unowned(self, folder: str) -> bool:
        """Return whether a folder is recorded as one that no study owns."""
        return (self._unowned / folder).exists()

    def unmark(self, folder: str) -> None:
        """Remove the record of a folder, if there is one."""
        (self._unowned / folder).unlink(missing_ok=True)
        self._remove_if_empty("checkpoints", UNOWNED)

    def list_unowned(self, copy: str | None = None) -> list[OwnedFiles]:
        """List the folders that killed processes left without a study.

        Args:
            copy: copy that is about to begin: an earlier attempt at it has ended. Those of others
                are listed if they are an hour old; a copy renews its record.
        """
        found = []
        for folder in _list_names(self._unowned):
            path = self._unowned / folder
            try:
                record = json.loads(path.read_bytes())
                of_copy, artifact_ids = record["copy"], tuple(map(str, record["artifacts"]))
                age = time.time() - path.stat().st_mtime
            except (KeyError, OSError, TypeError, ValueError):
                continue  # removed meanwhile, or not a record
            if of_copy in (None, copy) or age > STALE_SECONDS:
                found.append(OwnedFiles(folder, artifact_ids))
        return found

    @property
    def _unowned(self) -> Path:
        return self.root("checkpoints") / UNOWNED


_NAMESPACE = UUID("6f1b2d0c-6c0e-4d0b-9a55-5d2c3b9f7a41")


def map_artifact_ids(owned: OwnedFiles, folder: str) -> dict[str, str]:
    """Return the names that the files of kind ``artifacts`` have in a copy, by their own names.

    Args:
        owned: files of the study that is copied.
        folder: artifact folder of the copy.
    """
    return {name: str(uuid5(_NAMESPACE, f"{folder}/{name}")) for name in owned.artifact_ids}


@dataclass(frozen=True)
class CopiedFiles:
    """Number and size of copied files, and how many of the dashboard's files were missing."""

    count: int = 0
    size: int = 0
    missing: int = 0


def _require_usable(artifacts: str, read_only: bool) -> None:
    """Refuse a folder that neither exists nor can be created in an existing one."""
    path = existing = Path(artifacts)
    try:
        try:
            path.lstat()
        except FileNotFoundError:
            existing = path.parent
        is_usable = existing.is_dir() and (read_only or os.access(existing, os.W_OK))
    except OSError:  # a name too long, a folder without permission
        is_usable = False
    if "://" in artifacts or not is_usable:
        raise ArtifactsError(
            f"--artifacts {artifacts} is not writable: expected a folder, or a new folder in an "
            "existing one"
        )


def _list_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _find_kind(name: str) -> ArtifactKind | None:
    """Return the kind of a file in a study's folder, which all kinds may share."""
    if _CODE_FILE.fullmatch(name):
        return "cells"
    match = _TRIAL_FILE.fullmatch(name)
    return _OWNERS.get(match[2]) if match else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
