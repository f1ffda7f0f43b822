"""Folders and files of studies: checkpoints, weights, code, and files for the dashboard.

All workers of a study share its folders. A file of a trial is opaque here: bytes, written whole or
not at all.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args
from uuid import uuid4

from rnn.errors import UserError
from studies.atomic_files import (
    STALE_SECONDS,
    atomic_write,
    remove_temporary_files,
    remove_temporary_files_of,
)
from studies.storage.database import parse_url
from studies.storage.edits import OwnedFiles

ArtifactKind = Literal["checkpoints", "artifacts", "weights", "cells"]
"""Kind of file: checkpoints of running trials, files for the dashboard, weights of the best
networks, or source files of users' own cells and tasks."""

TrialFileKind = Literal["checkpoint", "safetensors"]
"""Kind of a trial's file, the suffix of its name: a checkpoint of an unfinished trial, the weights
of a complete one."""

DEFAULT_PARENT = Path("studies")
"""Parent of the default folders of studies on a server, relative to the working directory."""

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

    The first write creates the folder.
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

    def read(self, number: int) -> bytes | None:
        """Return the content of a trial's file; None if there is none.

        Raises:
            OSError: if it cannot be read.
        """
        try:
            return self._path(number).read_bytes()
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
        UserError: if the folder cannot be used; nothing is created.
    """

    def __init__(self, artifacts: str | None, storage: str, read_only: bool = False) -> None:
        self._is_default = artifacts is None
        url = parse_url(storage)
        self._roots: dict[ArtifactKind, Path] = {}
        for kind in get_args(ArtifactKind):
            if artifacts is not None:
                self._roots[kind] = Path(artifacts)
            elif url.get_backend_name() == "sqlite":
                self._roots[kind] = Path(f"{url.database}.{kind}")
            else:
                self._roots[kind] = DEFAULT_PARENT / kind
        if artifacts is not None:
            _require_usable(artifacts, read_only)

    def root(self, kind: ArtifactKind) -> Path:
        """Return the folder of the files of a kind, which has one folder for each study."""
        return self._roots[kind]

    def trial_files(self, folder: str, kind: TrialFileKind) -> TrialFiles:
        """Return the trials' files of a kind of the study that has an artifact folder."""
        return TrialFiles(self.root(_OWNERS[kind]) / folder, kind)

    def measure(self, folder: str) -> int:
        """Return the bytes of the checkpoints, weights and cells of a study."""
        size = 0
        for path in self._list_files(folder):
            with contextlib.suppress(OSError):  # removed meanwhile
                size += path.stat().st_size
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
        for name in owned.artifact_ids:
            (self.root("artifacts") / name).unlink(missing_ok=True)
        if owned.folder is None:
            return
        for path in self._list_files(owned.folder):
            path.unlink(missing_ok=True)
        self._remove_temporary_files(owned.folder)
        for kind in self._roots:
            self._remove_if_empty(kind, owned.folder)

    def _list_files(self, folder: str) -> Iterator[Path]:
        """Yield the files of a study, without those of the dashboard."""
        for kind, root in self._roots.items():
            for name in _list_names(root / folder):
                if _find_kind(name) == kind:
                    yield root / folder / name

    def _remove_temporary_files(self, folder: str) -> None:
        for root in self._roots.values():
            remove_temporary_files(root / folder, _find_kind, min_age=None)

    def _remove_if_empty(self, kind: ArtifactKind, folder: str) -> None:
        """Remove the folder of a study and a default folder, if they are empty."""
        with contextlib.suppress(OSError):  # missing or not empty
            (self.root(kind) / folder).rmdir()
        if self._is_default:
            with contextlib.suppress(OSError):
                self.root(kind).rmdir()


def new_folder(name: str) -> str:
    """Return a new name for the artifact folder of a study."""
    return f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{uuid4().hex[:12]}"


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
        raise UserError(
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
